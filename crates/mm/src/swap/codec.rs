//! Compression of one page, in memory that the caller owns.

use super::dense;
use super::randomness::looks_random;
use super::size_class::COMPRESSED_BYTES_MAX;
use crate::addr::{PAGE_SIZE, PageBuf};
use crate::fault::StoreError;
use core::fmt;
use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};

const OUTPUT_BYTES: usize = PREFIX_BYTES + get_maximum_output_size(PAGE_SIZE);

/// Working memory for stores. One for each worker, made at start: a store allocates nothing.
pub struct Scratch {
    table: Box<CompressTable>,
    output: Box<[u8; OUTPUT_BYTES]>,
}

impl Scratch {
    /// Allocates the working memory, about 13 KiB.
    pub fn new() -> Self {
        Self {
            table: Box::new(CompressTable::small()),
            output: Box::new([0; OUTPUT_BYTES]),
        }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scratch").finish_non_exhaustive()
    }
}

/// What stands before the bytes of a page: how long its head is, how that is stored, and the
/// pattern that fills the rest.
///
/// Pages are often filled in part: the end of an arena, of a stack, of a file. Such a tail is a
/// pattern, as in a page that is filled with one, and only the head goes to the codec.
const PREFIX_BYTES: usize = 6;

/// In the length of the head: the head is stored as it is.
const RAW: u16 = 1 << 15;

/// In the length of the head: the head is stored by the [dense codec](super::dense).
const DENSE: u16 = 1 << 14;

/// A tail shorter than this is left to the codec.
const TAIL_BYTES_MIN: usize = 64;

/// Compresses a page; `None` if that is not worth it.
pub(super) fn compress<'a>(contents: &PageBuf, scratch: &'a mut Scratch) -> Option<&'a [u8]> {
    let (head, pattern) = split_tail(contents);
    let (prefix, body) = scratch.output.split_at_mut(PREFIX_BYTES);
    let mut head_bytes = head.len() as u16;
    let tried = (!looks_random(head)).then(|| {
        compress_into_with_table(head, body, &mut scratch.table)
            .expect("the output has room for the worst page")
    });
    let len = tried.filter(|&len| len < head.len()).unwrap_or_else(|| {
        body[..head.len()].copy_from_slice(head);
        head_bytes |= RAW;
        head.len()
    });
    prefix[..2].copy_from_slice(&head_bytes.to_ne_bytes());
    prefix[2..].copy_from_slice(&pattern);
    let len = PREFIX_BYTES + len;
    (len <= COMPRESSED_BYTES_MAX).then(|| &scratch.output[..len])
}

/// Compresses a page with the dense codec; `None` if that gives more than `bytes_max`.
#[cfg(feature = "zstd")]
pub(super) fn compress_densely<'a>(
    contents: &PageBuf,
    scratch: &'a mut dense::Encoder,
    bytes_max: usize,
) -> Option<&'a [u8]> {
    let (head, pattern) = split_tail(contents);
    if looks_random(head) {
        return None;
    }
    let room = bytes_max.checked_sub(PREFIX_BYTES)?;
    let output = scratch.compress(head, PREFIX_BYTES, room)?;
    output[..2].copy_from_slice(&(head.len() as u16 | DENSE).to_ne_bytes());
    output[2..PREFIX_BYTES].copy_from_slice(&pattern);
    Some(output)
}

/// Whether the dense codec made this.
#[cfg(feature = "zstd")]
pub(super) fn is_dense(compressed: &[u8]) -> bool {
    compressed.len() < PAGE_SIZE
        && compressed
            .first_chunk()
            .is_some_and(|&bytes| u16::from_ne_bytes(bytes) & (RAW | DENSE) == DENSE)
}

/// Decompresses what [`compress`] made, or the dense codec.
pub(super) fn decompress(
    compressed: &[u8],
    decoders: &dense::Decoders,
    into: &mut PageBuf,
) -> Result<(), StoreError> {
    let (prefix, body) = compressed
        .split_first_chunk::<PREFIX_BYTES>()
        .ok_or(StoreError::Corrupt)?;
    let [a, b, pattern @ ..] = *prefix;
    let head_bytes = u16::from_ne_bytes([a, b]);
    let (head, tail) = into
        .split_at_mut_checked(usize::from(head_bytes & !(RAW | DENSE)))
        .ok_or(StoreError::Corrupt)?;
    let len = match head_bytes & (RAW | DENSE) {
        0 => decompress_into(body, head).ok(),
        DENSE => decoders.decompress(body, head),
        RAW if body.len() == head.len() => {
            head.copy_from_slice(body);
            Some(head.len())
        }
        _ => None,
    };
    if len != Some(head.len()) {
        return Err(StoreError::Corrupt);
    }
    tail.as_chunks_mut().0.fill(pattern);
    Ok(())
}

/// The part of the page before its tail, and the pattern that fills the tail.
fn split_tail(contents: &PageBuf) -> (&[u8], [u8; 4]) {
    let words = contents.as_chunks::<4>().0;
    let pattern = words[words.len() - 1];
    // Whole lines first, each compared at once.
    let (line, lines) = (line_of(pattern), contents.as_chunks::<64>().0);
    let nr_lines = lines.iter().rev().take_while(|l| **l == line).count();
    let rest = &words[..words.len() - nr_lines * 64 / 4];
    let is_pattern = |word: &&[u8; 4]| **word == pattern;
    let nr_rest = rest.iter().rev().take_while(is_pattern).count();
    let head = &contents[..(rest.len() - nr_rest) * 4];
    if PAGE_SIZE - head.len() < TAIL_BYTES_MIN {
        return (contents, pattern);
    }
    (head, pattern)
}

/// A line that is filled with a pattern.
fn line_of(pattern: [u8; 4]) -> [u8; 64] {
    let mut line = [0; 64];
    line.as_chunks_mut().0.fill(pattern);
    line
}

/// The 32-bit pattern that fills the page, if one does.
pub(super) fn same_filled(contents: &PageBuf) -> Option<u32> {
    let pattern: [u8; 4] = contents[..4].try_into().expect("four bytes");
    // Most pages differ at the end already, or in their first line.
    if contents[PAGE_SIZE - 4..] != pattern {
        return None;
    }
    let line = line_of(pattern);
    let mut lines = contents.as_chunks::<64>().0.iter();
    lines
        .all(|l| *l == line)
        .then(|| u32::from_ne_bytes(pattern))
}

/// Fills the page with a pattern.
pub(super) fn fill(pattern: u32, into: &mut PageBuf) {
    into.as_chunks_mut().0.fill(pattern.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_found_to_the_word() {
        // In Miri fewer: each of the last line, and some.
        let step = if cfg!(miri) { 404 } else { 4 };
        let last = PAGE_SIZE - 2 * TAIL_BYTES_MIN;
        for head_bytes in (4..last).step_by(step).chain((last..=PAGE_SIZE).step_by(4)) {
            let mut page = [7; PAGE_SIZE];
            page[..head_bytes].fill(1);
            let (head, pattern) = split_tail(&page);
            let expected = match PAGE_SIZE - head_bytes {
                0 => 0,
                TAIL_BYTES_MIN.. => head_bytes,
                _ => PAGE_SIZE,
            };
            assert_eq!(head.len(), expected, "{head_bytes}");
            assert_eq!(pattern, [if head_bytes < PAGE_SIZE { 7 } else { 1 }; 4]);
        }
    }
}
