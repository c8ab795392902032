//! What a tenant's memory must hold: a version number for each block, outside of managed memory.
//!
//! A block that was never written holds the bytes of the input (version 0). Each write makes the
//! next version, whose bytes follow from the tenant, the block, the version and the seed: text of
//! the input from another place, each cache line twice, so that it does not compress worse than the
//! rest, with a stamp at the head of each line that tells whose block it is and which version. So a
//! wrong block can be told by what it holds instead.
//!
//! Whoever uses a block locks its word first; nobody waits, there are many blocks.

use super::corpus::Corpus;
use super::rng::{mix, unmix};
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};
use pinless::{PAGE_SIZE, PageIndex};
use std::sync::Arc;

/// Bytes of a block.
pub(crate) const BLOCK_BYTES: usize = 512;

/// Blocks of a page.
pub(crate) const BLOCKS_PER_PAGE: u64 = (PAGE_SIZE / BLOCK_BYTES) as u64;

const LINE_BYTES: usize = 64;
const STAMP_BYTES: usize = 8;

/// How far the text of each version is from that of the one before.
const TEXT_STRIDE: u64 = 7919;

const LOCKED: u32 = 1 << 31;
/// A write ended in an error in the middle: the block may hold anything.
const UNKNOWN: u32 = 1 << 30;
const VERSION: u32 = UNKNOWN - 1;

/// Versions that a stamp can tell apart.
const STAMP_VERSION_BITS: u32 = 24;

/// The contents of one block.
pub(crate) type Block = [u8; BLOCK_BYTES];

/// The model of one tenant's memory.
#[derive(Debug)]
pub(crate) struct Model {
    tenant: u32,
    seed: u64,
    corpus: Arc<Corpus>,
    words: Box<[AtomicU32]>,
}

/// Where a block is, and what it should hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    tenant: u32,
    block: u64,
    version: u32,
}

impl Stamp {
    fn encode(self, seed: u64) -> u64 {
        let word = u64::from(self.tenant) << 56
            | self.block << STAMP_VERSION_BITS
            | u64::from(self.version) & ((1 << STAMP_VERSION_BITS) - 1);
        mix(word ^ mix(seed))
    }

    fn decode(stamp: u64, seed: u64) -> Self {
        let word = unmix(stamp) ^ mix(seed);
        Self {
            tenant: (word >> 56) as u32,
            block: word << 8 >> (8 + STAMP_VERSION_BITS),
            version: (word & ((1 << STAMP_VERSION_BITS) - 1)) as u32,
        }
    }
}

impl Model {
    /// The model of `nr_pages` pages that hold the input from `origin` of this tenant on.
    pub(crate) fn new(tenant: u32, nr_pages: u32, seed: u64, corpus: Arc<Corpus>) -> Self {
        let nr_blocks = u64::from(nr_pages) * BLOCKS_PER_PAGE;
        Self {
            tenant,
            seed,
            corpus,
            words: (0..nr_blocks).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    pub(crate) fn nr_blocks(&self) -> u64 {
        self.words.len() as u64
    }

    pub(crate) fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// Where in the endless input the tenant's memory begins.
    pub(crate) fn origin(&self) -> u64 {
        u64::from(self.tenant) * self.nr_blocks() * BLOCK_BYTES as u64
    }

    /// Locks a block, if nobody uses it and its contents are known.
    pub(crate) fn try_lock(&self, block: u64) -> Option<Locked<'_>> {
        let word = &self.words[block as usize];
        let seen = word.load(Ordering::Relaxed);
        if seen & (LOCKED | UNKNOWN) != 0 {
            return None;
        }
        // Acquire: pairs with the Release in the drop of `Locked`; what the last user of the block
        // wrote there is seen.
        word.compare_exchange(seen, seen | LOCKED, Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        Some(Locked {
            model: self,
            block,
            next: seen,
        })
    }

    /// Locks `nr` neighbouring blocks, or none.
    pub(crate) fn try_lock_run(&self, first: u64, nr: u64) -> Option<Vec<Locked<'_>>> {
        (first..first + nr)
            .map(|block| self.try_lock(block))
            .collect()
    }

    /// The bytes of a version of a block.
    pub(crate) fn contents(&self, block: u64, version: u32) -> Block {
        self.contents_of(self.tenant, block, version)
    }

    /// The same for any tenant: all have the same size.
    fn contents_of(&self, tenant: u32, block: u64, version: u32) -> Block {
        let mut bytes = [0; BLOCK_BYTES];
        let place = (u64::from(tenant) * self.nr_blocks() + block) * BLOCK_BYTES as u64;
        let text = place + u64::from(version) * TEXT_STRIDE;
        self.corpus.copy(text, &mut bytes);
        if version > 0 {
            let stamp = Stamp {
                tenant,
                block,
                version,
            };
            let stamp = stamp.encode(self.seed).to_le_bytes();
            for pair in bytes.chunks_mut(2 * LINE_BYTES) {
                pair[..STAMP_BYTES].copy_from_slice(&stamp);
                pair.copy_within(..LINE_BYTES, LINE_BYTES);
            }
        }
        bytes
    }

    /// Compares what was found in a block with its version.
    pub(crate) fn check(&self, block: u64, version: u32, found: &[u8]) -> Result<(), Mismatch> {
        let expected = self.contents(block, version);
        if expected == *found {
            return Ok(());
        }
        let differs = |&index: &usize| expected[index] != found[index];
        let first = (0..BLOCK_BYTES).find(differs).unwrap_or(0);
        Err(Mismatch {
            block,
            first_byte: first,
            expected: version,
            found: self.recognize(block, found),
        })
    }

    /// What a block holds that does not hold what it should.
    fn recognize(&self, block: u64, found: &[u8]) -> Found {
        if found.iter().all(|&byte| byte == found[0]) {
            return Found::Filled(found[0]);
        }
        if self.contents(block, 0) == *found {
            return Found::Version(0);
        }
        let lines = found.chunks(LINE_BYTES).enumerate();
        let mut stamps = lines.filter_map(|(line, bytes)| self.stamp_of(line, bytes));
        let Some(first) = stamps.next() else {
            return Found::Nobodys;
        };
        if (first.tenant, first.block) != (self.tenant, block) {
            return Found::Other(first.tenant, first.block);
        }
        match stamps.find(|other| other.version != first.version) {
            Some(other) => Found::Torn(first.version, other.version),
            None => Found::Version(first.version),
        }
    }

    /// Where a line belongs, if it is whole and was written by a tenant.
    fn stamp_of(&self, line: usize, found: &[u8]) -> Option<Stamp> {
        let stamp = u64::from_le_bytes(*found.first_chunk()?);
        let stamp = Stamp::decode(stamp, self.seed);
        let expected = self.contents_of(stamp.tenant, stamp.block, stamp.version);
        let is_whole = found == &expected[line * LINE_BYTES..][..found.len()];
        is_whole.then_some(stamp)
    }

    /// The version of a block that nobody uses; `None` when its contents are not known.
    pub(crate) fn settled_version(&self, block: u64) -> Option<u32> {
        let seen = self.words[block as usize].load(Ordering::Relaxed);
        (seen & (LOCKED | UNKNOWN) == 0).then_some(seen)
    }
}

/// A block that this actor uses alone, until dropped.
#[derive(Debug)]
#[must_use = "the block is unlocked when this is dropped"]
pub(crate) struct Locked<'a> {
    model: &'a Model,
    block: u64,
    /// The word as it will be.
    next: u32,
}

impl Locked<'_> {
    pub(crate) fn page(&self) -> PageIndex {
        (self.block / BLOCKS_PER_PAGE) as PageIndex
    }

    /// Where in its page the block begins.
    pub(crate) fn offset_in_page(&self) -> usize {
        (self.block % BLOCKS_PER_PAGE) as usize * BLOCK_BYTES
    }

    /// Where in its mapping the block begins.
    pub(crate) fn offset(&self) -> u64 {
        self.block * BLOCK_BYTES as u64
    }

    /// Compares what was read with what must be there.
    pub(crate) fn check(&self, found: &[u8]) -> Result<(), Mismatch> {
        self.model.check(self.block, self.next, found)
    }

    /// The contents of the next version. From here on the block counts as unknown, until
    /// [`Locked::written`].
    pub(crate) fn begin_write(&mut self) -> Block {
        let version = self.next + 1;
        assert!(version & !VERSION == 0, "a block was written too often");
        self.next = version | UNKNOWN;
        self.model.contents(self.block, version)
    }

    /// The contents that are there already, to be written once more.
    pub(crate) fn begin_rewrite(&mut self) -> Block {
        let version = self.next;
        self.next = version | UNKNOWN;
        self.model.contents(self.block, version)
    }

    /// The write did not take place: what was there before is there.
    pub(crate) fn not_written(&mut self) {
        self.next = (self.next & VERSION) - 1;
    }

    /// The write has succeeded.
    pub(crate) fn written(&mut self) {
        self.next &= VERSION;
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let word = &self.model.words[self.block as usize];
        // Release: pairs with the Acquire in `try_lock`.
        word.store(self.next, Ordering::Release);
    }
}

/// A block that does not hold what it must.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mismatch {
    block: u64,
    first_byte: usize,
    expected: u32,
    found: Found,
}

/// What was found instead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    /// One byte over and over.
    Filled(u8),
    /// Another version of the same block.
    Version(u32),
    /// Lines of two versions.
    Torn(u32, u32),
    /// A block of somebody else, or from elsewhere.
    Other(u32, u64),
    /// Bytes that nobody wrote.
    Nobodys,
}

impl Mismatch {
    pub(crate) fn page(&self) -> PageIndex {
        (self.block / BLOCKS_PER_PAGE) as PageIndex
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let block = self.block % BLOCKS_PER_PAGE;
        write!(
            f,
            "page {} block {block}: expected version {}, found ",
            self.page(),
            self.expected
        )?;
        match self.found {
            Found::Filled(0) => f.write_str("zeros")?,
            Found::Filled(byte) => write!(f, "nothing but {byte:#04x}")?,
            Found::Version(version) if version == self.expected => {
                f.write_str("the same, damaged")?;
            }
            Found::Version(version) => write!(f, "version {version}")?,
            Found::Torn(a, b) => write!(f, "versions {a} and {b} mixed")?,
            Found::Other(tenant, block) => write!(
                f,
                "page {} block {} of tenant-{tenant}",
                block / BLOCKS_PER_PAGE,
                block % BLOCKS_PER_PAGE
            )?,
            Found::Nobodys => f.write_str("bytes that nobody wrote")?,
        }
        write!(f, " (first wrong byte: {})", self.first_byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(tenant: u32) -> Model {
        let text = (0..10_000)
            .map(|i: u32| (mix(u64::from(i)) % 61) as u8)
            .collect();
        Model::new(tenant, 4, 99, Arc::new(Corpus::of_bytes(text)))
    }

    #[track_caller]
    fn check(found: &[u8], message: &str) {
        let text = match model(1).check(9, 5, found) {
            Ok(()) => "fine".to_owned(),
            Err(mismatch) => mismatch.to_string(),
        };
        assert_eq!(text, message);
    }

    #[test]
    fn a_wrong_block_is_told_by_what_it_holds() {
        let at = "page 1 block 1: expected version 5, found";
        let right = model(1).contents(9, 5);
        check(&right, "fine");
        check(
            &[0; BLOCK_BYTES],
            &format!("{at} zeros (first wrong byte: 0)"),
        );
        let old = model(1).contents(9, 4);
        check(&old, &format!("{at} version 4 (first wrong byte: 0)"));
        let first = model(1).contents(9, 0);
        check(&first, &format!("{at} version 0 (first wrong byte: 0)"));
        let mut torn = right;
        torn[256..].copy_from_slice(&old[256..]);
        check(
            &torn,
            &format!("{at} versions 5 and 4 mixed (first wrong byte: 256)"),
        );
        let mut flipped = right;
        flipped[300] ^= 1;
        check(
            &flipped,
            &format!("{at} the same, damaged (first wrong byte: 300)"),
        );
        let foreign = model(3).contents(17, 2);
        check(
            &foreign,
            &format!("{at} page 2 block 1 of tenant-3 (first wrong byte: 0)"),
        );
        check(
            &[1, 2].repeat(256),
            &format!("{at} bytes that nobody wrote (first wrong byte: 0)"),
        );
    }

    #[test]
    fn a_block_has_one_user_and_is_unknown_after_a_failed_write() {
        let model = model(0);
        let mut locked = model.try_lock(3).expect("nobody uses it");
        assert!(model.try_lock(3).is_none());
        assert!(model.try_lock_run(2, 4).is_none());
        let next = locked.begin_write();
        assert_eq!(next, model.contents(3, 1));
        locked.written();
        drop(locked);
        assert_eq!(model.settled_version(3), Some(1));
        let mut run = model.try_lock_run(2, 4).expect("all are free");
        let _ = run[1].begin_write();
        drop(run);
        assert_eq!(
            (model.settled_version(2), model.settled_version(3)),
            (Some(0), None)
        );
        assert!(model.try_lock(3).is_none());
    }
}
