//! Compression of one page, in memory that the caller owns.

use super::size_class::COMPRESSED_BYTES_MAX;
use crate::addr::{PAGE_SIZE, PageBuf};
use crate::fault::StoreError;
use core::fmt;
use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};

const OUTPUT_BYTES: usize = get_maximum_output_size(PAGE_SIZE);

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

/// Compresses a page; `None` if that is not worth it.
pub(super) fn compress<'a>(contents: &PageBuf, scratch: &'a mut Scratch) -> Option<&'a [u8]> {
    let len = compress_into_with_table(contents, &mut scratch.output[..], &mut scratch.table)
        .expect("the output has room for the worst page");
    (len <= COMPRESSED_BYTES_MAX).then(|| &scratch.output[..len])
}

/// Decompresses what [`compress`] made.
pub(super) fn decompress(compressed: &[u8], into: &mut PageBuf) -> Result<(), StoreError> {
    match decompress_into(compressed, into) {
        Ok(PAGE_SIZE) => Ok(()),
        _ => Err(StoreError::Corrupt),
    }
}

/// The 32-bit pattern that fills the page, if one does.
pub(super) fn same_filled(contents: &PageBuf) -> Option<u32> {
    let pattern: [u8; 4] = contents[..4].try_into().expect("four bytes");
    // Most pages differ at the end already, or in their first line.
    if contents[PAGE_SIZE - 4..] != pattern {
        return None;
    }
    let mut line = [0; 64];
    line.as_chunks_mut().0.fill(pattern);
    contents
        .as_chunks::<64>()
        .0
        .iter()
        .all(|l| *l == line)
        .then(|| u32::from_ne_bytes(pattern))
}

/// Fills the page with a pattern.
pub(super) fn fill(pattern: u32, into: &mut PageBuf) {
    into.as_chunks_mut().0.fill(pattern.to_ne_bytes());
}
