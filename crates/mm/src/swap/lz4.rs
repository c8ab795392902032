//! Decoding of one page from the LZ4 block format, in safe code.
//!
//! What a page is full of is runs: zeros most of all. A run is a match that overlaps itself, and
//! here it is laid in strides that double, where `lz4_flex` goes byte by byte: a page whose second
//! half is zeros takes a tenth of the time, others as long as there.
//!
//! Format: `lz4_Block_format.md` of LZ4.

use crate::addr::{PAGE_SIZE, PageBuf};

/// The shortest match; lengths count from here.
const MATCH_MIN: usize = 4;
/// A length field of a token that goes on in the bytes after it.
const MORE: usize = 15;
/// Moved at once when literals are short: a multiple of what a register holds.
const LITERALS_AT_ONCE: usize = 16;
/// The longest match whose length fits the token.
const MATCH_AT_ONCE: usize = MORE - 1 + MATCH_MIN;
const OFFSET_BYTES: usize = 2;

/// Decodes a whole page; `None` when `input` is not the code of one, and then `into` may hold
/// anything.
pub(super) fn decode(input: &[u8], into: &mut PageBuf) -> Option<()> {
    let (mut at, mut done) = (0, 0);
    loop {
        let token = usize::from(*input.get(at)?);
        at += 1;
        let (nr_literals, nr_matched) = (token >> 4, token & MORE);
        if nr_literals < MORE
            && nr_matched < MORE
            && let Some(ahead) = input.get(at..at + LITERALS_AT_ONCE + OFFSET_BYTES)
            && let Some(out) = into.get_mut(done..done + LITERALS_AT_ONCE + MATCH_AT_ONCE)
        {
            // Most of them. Moves of a fixed size go past the end of what is meant; the excess
            // stays in the page, and is written over.
            out[..LITERALS_AT_ONCE].copy_from_slice(&ahead[..LITERALS_AT_ONCE]);
            at += nr_literals + OFFSET_BYTES;
            done += nr_literals;
            let offset = offset_of(&ahead[nr_literals..]);
            copy_short(into, done, offset, nr_matched + MATCH_MIN)?;
            done += nr_matched + MATCH_MIN;
            continue;
        }
        let nr_literals = length(nr_literals, input, &mut at)?;
        let literals = input.get(at..at + nr_literals)?;
        into.get_mut(done..done + nr_literals)?
            .copy_from_slice(literals);
        at += nr_literals;
        done += nr_literals;
        if at == input.len() {
            return (done == PAGE_SIZE).then_some(());
        }
        let offset = offset_of(input.get(at..at + OFFSET_BYTES)?);
        at += OFFSET_BYTES;
        let nr_matched = length(nr_matched, input, &mut at)? + MATCH_MIN;
        if offset == 0 || offset > done || nr_matched > PAGE_SIZE - done {
            return None;
        }
        repeat(into, done, offset, nr_matched);
        done += nr_matched;
    }
}

fn offset_of(bytes: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// A length field, with the bytes that it goes on in.
fn length(field: usize, input: &[u8], at: &mut usize) -> Option<usize> {
    let mut length = field;
    if field == MORE {
        loop {
            let byte = *input.get(*at)?;
            *at += 1;
            length += usize::from(byte);
            if byte != u8::MAX {
                break;
            }
        }
    }
    Some(length)
}

/// Copies a match of up to [`MATCH_AT_ONCE`] bytes; so many must have room.
#[inline]
fn copy_short(into: &mut PageBuf, to: usize, offset: usize, nr: usize) -> Option<()> {
    let from = to.checked_sub(offset)?;
    if offset >= nr {
        let mut short = [0; MATCH_AT_ONCE];
        short.copy_from_slice(&into[from..from + MATCH_AT_ONCE]);
        into[to..to + MATCH_AT_ONCE].copy_from_slice(&short);
    } else if offset > 0 {
        repeat(into, to, offset, nr);
    } else {
        return None;
    }
    Some(())
}

/// Copies a match that may overlap itself. What was copied is copied again with what it came
/// from, so each stride is as long as all before it.
fn repeat(into: &mut PageBuf, to: usize, offset: usize, nr: usize) {
    let from = to - offset;
    let mut copied = 0;
    while copied < nr {
        let stride = (offset + copied).min(nr - copied);
        into.copy_within(from..from + stride, to + copied);
        copied += stride;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Pages of pieces that repeat, at many lengths and distances.
    fn page() -> impl Strategy<Value = Box<PageBuf>> {
        let piece = (vec(any::<u8>(), 1..40), 1..300_usize);
        vec(piece, 1..60).prop_map(|pieces| {
            let mut page = Box::new([0; PAGE_SIZE]);
            let bytes = pieces.iter().flat_map(|(piece, nr)| {
                let run = if nr % 3 == 0 { *nr } else { 1 };
                piece.iter().copied().cycle().take(piece.len() * run)
            });
            for (to, byte) in page.iter_mut().zip(bytes) {
                *to = byte;
            }
            page
        })
    }

    fn encode(page: &PageBuf) -> Vec<u8> {
        let mut code = vec![0; get_maximum_output_size(PAGE_SIZE)];
        let len = compress_into(page, &mut code).expect("the output has room");
        code.truncate(len);
        code
    }

    proptest! {
        #[test]
        fn what_was_encoded_comes_back(page in page()) {
            let mut out = [0xa5; PAGE_SIZE];
            prop_assert_eq!(decode(&encode(&page), &mut out), Some(()));
            prop_assert!(out == *page);
        }

        #[test]
        fn a_broken_code_is_judged_as_lz4_flex_does(
            page in page(),
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in 0..4_usize,
        ) {
            let mut code = encode(&page);
            for (at, byte) in changes {
                let at = at.index(code.len());
                code[at] = byte;
            }
            code.truncate(code.len() - cut.min(code.len()));
            let (mut ours, mut theirs) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
            let decoded = decode(&code, &mut ours);
            let is_page = decompress_into(&code, &mut theirs).is_ok_and(|len| len == PAGE_SIZE);
            prop_assert_eq!(decoded.is_some(), is_page);
            prop_assert!(!is_page || ours == theirs);
        }

        #[test]
        fn noise_is_no_code_and_harms_nobody(code in vec(any::<u8>(), 0..600)) {
            let mut out = [0; PAGE_SIZE];
            let _ = decode(&code, &mut out);
        }
    }
}
