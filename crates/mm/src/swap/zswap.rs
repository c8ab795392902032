//! The compressed store.

use super::codec::{self, Scratch};
use super::dense::Decoders;
use super::header::{HEADER_BYTES, Header, tag_of};
use super::size_class::{BLOCK_BYTES, NR_CLASSES, RAW, SizeClass};
use super::slab::Slab;
use super::{Owner, SlotHandle, Stored};
use crate::addr::{PAGE_SIZE, PageBuf};
use crate::fault::StoreError;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A compressed store with a hard bound, for any number of threads at once.
///
/// All of its memory is set aside by [`Zswap::new`]; afterwards nothing allocates.
///
/// # Invariants
///
/// The sum of the sizes of the slots in use never exceeds `max_bytes`: a store is charged before
/// it takes its slot, and uncharged after the slot is given back.
pub struct Zswap {
    pub(super) slab: Slab,
    decoders: Decoders,
    max_bytes: u64,
    // The orders are `Relaxed`: the bound rests on the atomicity of the charge alone, and what is
    // in a slot is guarded by its block's lock.
    charged_bytes: AtomicU64,
    charged_bytes_peak: AtomicU64,
    counters: Counters,
    fault: Faults,
}

/// A fault for the store to commit, so that a test can show that it is seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inject {
    /// None.
    None,
    /// Every so many stores, one is acknowledged but not written.
    LoseStore {
        /// One store in this many; one means every store.
        one_in: u32,
    },
    /// Every so many stores, one bit of the slot changes afterwards.
    CorruptSlot {
        /// One store in this many; one means every store.
        one_in: u32,
    },
}

/// What a store holds and has done. Exact when no thread is at work in it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stats {
    /// Pages held, same-filled ones included.
    pub stored_pages: u64,
    /// Pages held that use no slot.
    pub same_filled: u64,
    /// Pages held as they are, since compression was not worth it.
    pub incompressible: u64,
    /// Bytes of the slots in use: what `max_bytes` bounds.
    pub compressed_bytes: u64,
    /// Bytes of the pages held, before compression.
    pub original_bytes: u64,
    /// Bytes of the blocks with a slot in use: the memory that the store occupies.
    pub block_bytes: u64,
    /// Bytes of all slots ever taken.
    pub slot_bytes_total: u64,
    /// Of those, the bytes that held a header or contents.
    pub payload_bytes_total: u64,
    /// Stores that were acknowledged.
    pub stores: u64,
    /// Loads that gave the page back.
    pub loads: u64,
    /// Loads that ended in an error.
    pub errors: u64,
    /// Stores refused since the bound was reached.
    pub full: u64,
    /// Stores refused below the bound, since no block was empty.
    pub fragmented: u64,
}

impl Stats {
    /// The share of the occupied memory that holds nothing, in thousandths: free slots in blocks
    /// that are in use, and what the slots in use have too much, on the average since the start.
    pub fn fragmentation_permille(&self) -> u64 {
        if self.block_bytes == 0 {
            return 0;
        }
        let filled = u128::from(self.compressed_bytes) * u128::from(self.payload_bytes_total)
            / u128::from(self.slot_bytes_total);
        1000 - (filled * 1000 / u128::from(self.block_bytes)) as u64
    }
}

#[derive(Default)]
struct Counters {
    same_filled: AtomicU64,
    same_filled_total: AtomicU64,
    /// Slots that were taken for pages that were stored already.
    moved: AtomicU64,
    payload_bytes_total: AtomicU64,
    loads: AtomicU64,
    errors: AtomicU64,
    full: AtomicU64,
    fragmented: AtomicU64,
}

impl Zswap {
    /// Makes an empty store that never holds more than `max_bytes`.
    ///
    /// Sets aside address space for the bound, an eighth more, and one block for each size class;
    /// memory is used as it fills.
    ///
    /// # Panics
    ///
    /// If `max_bytes` is so large that 32 bits cannot number its slots (about 227 GiB).
    pub fn new(max_bytes: u64) -> Self {
        let nr_blocks = match max_bytes {
            0 => 0,
            _ => (max_bytes + max_bytes / 8).div_ceil(BLOCK_BYTES as u64) as usize + NR_CLASSES,
        };
        Self {
            slab: Slab::new(nr_blocks),
            decoders: Decoders::new(),
            max_bytes,
            charged_bytes: AtomicU64::new(0),
            charged_bytes_peak: AtomicU64::new(0),
            counters: Counters::default(),
            fault: Faults::default(),
        }
    }

    /// Stores a page. Allocates nothing, takes only locks of the store's own, for short.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] at the bound, or when the free memory is in blocks of other sizes;
    /// nothing is stored then.
    pub fn store(
        &self,
        owner: Owner,
        contents: &PageBuf,
        scratch: &mut Scratch,
    ) -> Result<Stored, NoRoom> {
        self.store_for(&Nobody, owner, contents, scratch)
    }

    /// The same, at the charge of `payer`, who may refuse. What he is charged is
    /// [`Zswap::charge_of`] what is stored.
    pub(crate) fn store_for(
        &self,
        payer: &dyn Charge,
        owner: Owner,
        contents: &PageBuf,
        scratch: &mut Scratch,
    ) -> Result<Stored, NoRoom> {
        if let Some(pattern) = codec::same_filled(contents) {
            self.counters.same_filled.fetch_add(1, Relaxed);
            self.counters.same_filled_total.fetch_add(1, Relaxed);
            return Ok(Stored::SameFilled(pattern));
        }
        let payload = codec::compress(contents, scratch).unwrap_or(contents);
        self.store_payload(payer, owner, payload)
    }

    /// Stores what a codec made of a page, at the charge of `payer`.
    pub(super) fn store_payload(
        &self,
        payer: &dyn Charge,
        owner: Owner,
        payload: &[u8],
    ) -> Result<Stored, NoRoom> {
        let class = SizeClass::for_payload(payload.len());
        self.charge(class)?;
        let bytes = class.slot_bytes() as u64;
        if !payer.try_charge(bytes) {
            self.uncharge(class);
            return Err(NoRoom(Some(class)));
        }
        let fault = self.fault.next();
        let taken = self.slab.insert(class, |slot, sequence| {
            if !matches!(fault, Some(Fault::Lost)) {
                put(slot, owner, sequence, payload);
            }
            if let Some(Fault::Flipped(nth)) = fault {
                let bit = nth as usize % ((HEADER_BYTES + payload.len()) * 8);
                slot[bit / 8] ^= 1 << (bit % 8);
            }
        });
        let Some((handle, sequence)) = taken else {
            self.uncharge(class);
            payer.uncharge(bytes);
            self.counters.fragmented.fetch_add(1, Relaxed);
            return Err(NoRoom(Some(class)));
        };
        self.note_payload(payload);
        Ok(Stored::Slot {
            handle,
            tag: tag_of(sequence),
        })
    }

    /// Gives the contents of a stored page; the store keeps them too. Allocates nothing.
    ///
    /// # Errors
    ///
    /// [`StoreError::Misplaced`] when the slot holds another store, or none,
    /// [`StoreError::Corrupt`] when it holds what nobody stored. `into` is all zeros then.
    ///
    /// # Panics
    ///
    /// If the slot is not in use: the caller freed it.
    pub fn load(&self, owner: Owner, stored: Stored, into: &mut PageBuf) -> Result<(), StoreError> {
        let result = match stored {
            Stored::SameFilled(pattern) => {
                codec::fill(pattern, into);
                Ok(())
            }
            Stored::Slot { handle, tag } => self.load_slot(owner, handle, tag, into),
            Stored::File { .. } => unreachable!("the file reads what is in it"),
        };
        match result {
            Ok(()) => self.counters.loads.fetch_add(1, Relaxed),
            Err(_) => {
                into.fill(0);
                self.counters.errors.fetch_add(1, Relaxed)
            }
        };
        result
    }

    /// Whether there is room now for what there was none for.
    pub fn has_room_for(&self, refused: NoRoom) -> bool {
        let NoRoom(Some(class)) = refused else {
            return true;
        };
        self.bytes() + refused.slot_bytes() <= self.max_bytes && self.slab.has_room(class)
    }

    /// Forgets a stored page. To be called once for each store, after a load that failed too. Says
    /// whether a block of the store has become sparse by that.
    ///
    /// # Panics
    ///
    /// If the slot is not in use: it was freed twice.
    pub fn free(&self, stored: Stored) -> bool {
        let Stored::Slot { handle, .. } = stored else {
            assert!(stored.is_same_filled(), "the file frees what is in it");
            let before = self.counters.same_filled.fetch_sub(1, Relaxed);
            assert!(
                before > 0,
                "a same-filled page was freed that was never stored"
            );
            return false;
        };
        let class = self.slab.class_of(handle);
        let is_sparse = self
            .slab
            .remove(handle, |slot| slot[..HEADER_BYTES].fill(0));
        self.uncharge(class);
        is_sparse
    }

    /// Bytes that this stored page is charged for.
    pub fn charge_of(&self, stored: Stored) -> u64 {
        match stored {
            Stored::SameFilled(_) | Stored::File { .. } => 0,
            Stored::Slot { handle, .. } => self.slab.class_of(handle).slot_bytes() as u64,
        }
    }

    /// Bytes of the slots in use.
    pub fn bytes(&self) -> u64 {
        self.charged_bytes.load(Relaxed)
    }

    /// The most that [`Zswap::bytes`] has been.
    pub fn peak_bytes(&self) -> u64 {
        self.charged_bytes_peak.load(Relaxed)
    }

    /// The bound.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Bytes of address space that were set aside at start.
    pub fn reserved_bytes(&self) -> u64 {
        (self.slab.nr_blocks() * BLOCK_BYTES) as u64
    }

    /// What the store holds and has done.
    pub fn stats(&self) -> Stats {
        let counters = &self.counters;
        let same_filled = counters.same_filled.load(Relaxed);
        let mut stats = Stats {
            stored_pages: same_filled,
            same_filled,
            payload_bytes_total: counters.payload_bytes_total.load(Relaxed),
            stores: counters.same_filled_total.load(Relaxed),
            loads: counters.loads.load(Relaxed),
            errors: counters.errors.load(Relaxed),
            full: counters.full.load(Relaxed),
            fragmented: counters.fragmented.load(Relaxed),
            ..Stats::default()
        };
        for class in SizeClass::all() {
            let usage = self.slab.usage(class);
            stats.stored_pages += usage.nr_slots;
            stats.stores += usage.nr_taken;
            stats.compressed_bytes += usage.nr_slots * class.slot_bytes() as u64;
            stats.slot_bytes_total += usage.nr_taken * class.slot_bytes() as u64;
            stats.block_bytes += usage.nr_blocks * BLOCK_BYTES as u64;
            if class == RAW {
                stats.incompressible = usage.nr_slots;
            }
        }
        stats.stores = stats.stores.saturating_sub(counters.moved.load(Relaxed));
        stats.original_bytes = stats.stored_pages * PAGE_SIZE as u64;
        stats
    }

    /// Starts or stops committing a fault. Same-filled pages use no slot and are spared.
    ///
    /// # Panics
    ///
    /// If it is to hit one store in zero.
    pub fn inject(&self, inject: Inject) {
        self.fault.set(inject);
    }

    /// Flips one bit of a stored page's slot, counted from the start of its header.
    #[cfg(test)]
    pub(super) fn flip(&self, handle: SlotHandle, bit: usize) {
        self.slab
            .modify(handle, |slot| slot[bit / 8] ^= 1 << (bit % 8));
    }

    fn load_slot(
        &self,
        owner: Owner,
        handle: SlotHandle,
        tag: u16,
        into: &mut PageBuf,
    ) -> Result<(), StoreError> {
        // Under the lock the bytes are only copied; they are judged and decompressed after it.
        let mut copy = [0; PAGE_SIZE];
        let (header, len) = self.slab.read(handle, |slot| {
            let (head, body) = slot.split_at(HEADER_BYTES);
            let header = Header::decode(head)?;
            let payload = header.expect(owner, tag, body)?;
            copy[..payload.len()].copy_from_slice(payload);
            Ok((header, payload.len()))
        })?;
        open(&header, &copy[..len], &self.decoders, into)
    }

    pub(super) fn note_payload(&self, payload: &[u8]) {
        let filled = (HEADER_BYTES + payload.len()) as u64;
        self.counters.payload_bytes_total.fetch_add(filled, Relaxed);
    }

    /// A slot was taken for a page that was stored already.
    pub(super) fn note_moved(&self) {
        self.counters.moved.fetch_add(1, Relaxed);
    }

    /// Gives the contents of a slot, which may be one that went elsewhere.
    ///
    /// # Errors
    ///
    /// See [`Zswap::load`].
    pub(crate) fn unpack(
        &self,
        slot: &[u8],
        whose: (Owner, u16),
        into: &mut PageBuf,
    ) -> Result<(), StoreError> {
        unpack(slot, whose, &self.decoders, into)
    }

    /// Calls `take` with the slot of a stored page, as it is and as long as it is: for it to be
    /// stored elsewhere. The caller owns the page.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the slot is not that of the page.
    pub(crate) fn with_slot<R>(
        &self,
        owner: Owner,
        (handle, tag): (SlotHandle, u16),
        take: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, StoreError> {
        self.slab
            .read(handle, |slot| Ok(take(whole(slot, owner, tag)?)))
    }

    pub(super) fn charge(&self, class: SizeClass) -> Result<(), NoRoom> {
        let bytes = class.slot_bytes() as u64;
        let charged = self.charged_bytes.try_update(Relaxed, Relaxed, |charged| {
            charged
                .checked_add(bytes)
                .filter(|&sum| sum <= self.max_bytes)
        });
        match charged {
            Ok(before) => {
                // Every rise of the charge passes here with its own sum, so the peak is exact.
                self.charged_bytes_peak.fetch_max(before + bytes, Relaxed);
                Ok(())
            }
            Err(_) => {
                self.counters.full.fetch_add(1, Relaxed);
                Err(NoRoom(Some(class)))
            }
        }
    }

    pub(super) fn uncharge(&self, class: SizeClass) {
        let bytes = class.slot_bytes() as u64;
        let before = self.charged_bytes.fetch_sub(bytes, Relaxed);
        assert!(before >= bytes, "more was uncharged than charged");
    }
}

/// Gives the contents of a slot that begins with `bytes`, if it is that of `owner` with `tag`.
fn unpack(
    bytes: &[u8],
    (owner, tag): (Owner, u16),
    decoders: &Decoders,
    into: &mut PageBuf,
) -> Result<(), StoreError> {
    let slot = whole(bytes, owner, tag)?;
    let (head, payload) = slot.split_at(HEADER_BYTES);
    open(&Header::decode(head)?, payload, decoders, into)
}

/// The slot at the start of `bytes`, as long as its header says it is.
pub(super) fn whole(bytes: &[u8], owner: Owner, tag: u16) -> Result<&[u8], StoreError> {
    let (head, body) = bytes.split_at(HEADER_BYTES);
    let payload = Header::decode(head)?.expect(owner, tag, body)?;
    Ok(&bytes[..HEADER_BYTES + payload.len()])
}

/// Writes a slot.
pub(super) fn put(slot: &mut [u8], owner: Owner, sequence: u32, payload: &[u8]) {
    let header = Header::new(owner, sequence, payload).encode();
    slot[..HEADER_BYTES].copy_from_slice(&header);
    slot[HEADER_BYTES..HEADER_BYTES + payload.len()].copy_from_slice(payload);
}

fn open(
    header: &Header,
    payload: &[u8],
    decoders: &Decoders,
    into: &mut PageBuf,
) -> Result<(), StoreError> {
    header.verify(payload)?;
    if payload.len() == PAGE_SIZE {
        into.copy_from_slice(payload);
        return Ok(());
    }
    codec::decompress(payload, decoders, into)
}

impl fmt::Debug for Zswap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zswap")
            .field("bytes", &self.bytes())
            .field("max_bytes", &self.max_bytes)
            .finish_non_exhaustive()
    }
}

/// Who pays for what is stored.
pub(crate) trait Charge {
    /// Charges `bytes`, or nothing.
    fn try_charge(&self, bytes: u64) -> bool;

    /// Takes a charge back.
    fn uncharge(&self, bytes: u64);
}

/// Nothing is charged but to the store's own bound.
pub(super) struct Nobody;

impl Charge for Nobody {
    fn try_charge(&self, _bytes: u64) -> bool {
        true
    }

    fn uncharge(&self, _bytes: u64) {}
}

/// A page that the store had no room for, as far as it can be remembered: the size of its slot, or
/// none when nothing may be stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom(Option<SizeClass>);

impl NoRoom {
    /// The code of one without a size.
    const ANY: u32 = u32::MAX;

    /// There is no room for any page.
    pub(crate) fn for_any() -> Self {
        Self(None)
    }

    /// Bytes of the slot that there was no room for.
    pub(crate) fn slot_bytes(self) -> u64 {
        self.0.map_or(0, |class| class.slot_bytes() as u64)
    }

    /// A number for it that is not zero.
    pub(crate) fn code(self) -> u32 {
        self.0.map_or(Self::ANY, |class| class.index() as u32 + 1)
    }

    /// What has this number; zero is none.
    ///
    /// # Panics
    ///
    /// If nothing has.
    pub(crate) fn from_code(code: u32) -> Option<Self> {
        let index = code.checked_sub(1)?;
        if code == Self::ANY {
            return Some(Self(None));
        }
        let index = u8::try_from(index).expect("a class has a small number");
        Some(Self(Some(SizeClass::from_index(index))))
    }
}

/// The fault to commit, and how many stores it has been asked for.
#[derive(Default)]
struct Faults {
    /// Zero for none; else the kind above [`Faults::KIND_SHIFT`] and "one in" below it.
    plan: AtomicU64,
    nr_stores: AtomicU64,
}

/// What happens to one store.
enum Fault {
    /// It is not written.
    Lost,
    /// A bit is flipped; which one, the number of the store says.
    Flipped(u64),
}

impl Faults {
    const KIND_SHIFT: u32 = 32;
    const LOSE: u64 = 1;
    const FLIP: u64 = 2;

    fn set(&self, inject: Inject) {
        let (kind, one_in) = match inject {
            Inject::None => (0, 0),
            Inject::LoseStore { one_in } => (Self::LOSE, one_in),
            Inject::CorruptSlot { one_in } => (Self::FLIP, one_in),
        };
        assert!(
            one_in > 0 || inject == Inject::None,
            "one store in zero cannot be hit"
        );
        self.plan
            .store(kind << Self::KIND_SHIFT | u64::from(one_in), Relaxed);
    }

    #[inline]
    fn next(&self) -> Option<Fault> {
        let plan = self.plan.load(Relaxed);
        if plan == 0 {
            return None;
        }
        let nth = self.nr_stores.fetch_add(1, Relaxed);
        let one_in = plan & u64::from(u32::MAX);
        if nth % one_in != one_in - 1 {
            return None;
        }
        match plan >> Self::KIND_SHIFT {
            Self::LOSE => Some(Fault::Lost),
            // A prime factor spreads the bits over the slot from one store to the next.
            _ => Some(Fault::Flipped((nth / one_in).wrapping_mul(7919))),
        }
    }
}
