//! Whether it is worth trying to compress something.
//!
//! What is compressed or encrypted already has every byte about as often as any other and repeats
//! nothing, and no codec makes it smaller. To find that out by trying takes several times as long
//! as to look at a few of its bytes.
//!
//! The look can be wrong: then contents take more room than they need to.
//!
//! Linux counterpart: the byte set of `btrfs_compress_heuristic`.

/// Bytes that are looked at, in words.
const NR_SAMPLES: usize = 128;
const WORD_BYTES: usize = 8;
const NR_WORDS: usize = NR_SAMPLES / WORD_BYTES;

/// What is shorter is compressed as soon as looked at.
const BYTES_MIN: usize = 4 * NR_SAMPLES;

/// Of as many bytes by chance, 101 values are expected, and seldom fewer than this. Text has hardly
/// sixty, and programs, pointers and small numbers seldom so many.
const VALUES_MIN: usize = 90;

/// Whether the bytes are as good as chance, as far as a few of them tell.
pub(super) fn looks_random(bytes: &[u8]) -> bool {
    bytes.len() >= BYTES_MIN && nr_values(bytes) >= VALUES_MIN && !has_echo(bytes)
}

/// How many values are among the sampled bytes: words from all over, a share of the bytes for each.
fn nr_values(bytes: &[u8]) -> usize {
    let share = bytes.len() / NR_WORDS;
    // A byte for each value: a bit would wait for the one before in its word.
    let mut seen = [0_u8; 256];
    let mut place: u32 = 0;
    for share in bytes.chunks_exact(share).take(NR_WORDS) {
        // Anywhere in it, at no distances that a record could have: or only one field would be
        // seen. (Numerical Recipes' generator.)
        place = place.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let at = (place >> 16) as usize % (share.len() - WORD_BYTES + 1);
        for &byte in &share[at..at + WORD_BYTES] {
            seen[usize::from(byte)] = 1;
        }
    }
    seen.iter().copied().map(usize::from).sum()
}

/// Whether the four bytes in the middle are also somewhere in the first half, as they are where
/// contents are periodic, whatever they are.
fn has_echo(bytes: &[u8]) -> bool {
    let words = bytes.as_chunks().0;
    let (first_half, rest) = words.split_at(words.len() / 2);
    let word = u32::from_ne_bytes(rest[0]);
    // No early end: so many are compared at once.
    let nr_equal: u32 = first_half
        .iter()
        .map(|other| u32::from(u32::from_ne_bytes(*other) == word))
        .sum();
    nr_equal > 0
}

#[cfg(test)]
mod tests {
    use super::super::tests::next;
    use super::*;
    use crate::addr::PAGE_SIZE;

    fn chance(mut seed: u64) -> impl Iterator<Item = u8> {
        core::iter::repeat_with(move || next(&mut seed).to_ne_bytes()).flatten()
    }

    /// A page whose byte at each place `byte` makes of chance.
    fn page(mut byte: impl FnMut(usize, u8) -> u8) -> Vec<u8> {
        let chance = (0..PAGE_SIZE).zip(chance(1));
        chance.map(|(at, chance)| byte(at, chance)).collect()
    }

    #[test]
    fn chance_looks_random() {
        let nr = if cfg!(miri) { 3 } else { 1000 };
        let nr_seen = (0..nr)
            .map(|seed| chance(seed).take(PAGE_SIZE).collect::<Vec<u8>>())
            .filter(|page| looks_random(page) && looks_random(&page[..PAGE_SIZE / 2]))
            .count();
        assert!(nr_seen >= nr as usize * 99 / 100, "{nr_seen} of {nr}");
    }

    #[test]
    fn what_a_codec_makes_smaller_does_not() {
        let block: Vec<u8> = chance(2).take(512).collect();
        let rows: [(&str, Vec<u8>); 10] = [
            ("zeros", page(|_, _| 0)),
            ("a number for each byte", page(|at, _| at as u8)),
            ("a block again and again", page(|at, _| block[at % 512])),
            ("the same, of another length", page(|at, _| block[at % 136])),
            ("letters", page(|_, chance| b'a' + chance % 26)),
            ("all of base64", page(|_, chance| b' ' + chance % 64)),
            (
                "pointers",
                page(|at, chance| match at % 8 {
                    0..3 => chance,
                    5 => 0x7f,
                    _ => 0,
                }),
            ),
            (
                "records with a key",
                page(|at, chance| match at % 44 {
                    0..8 => chance,
                    _ => 0,
                }),
            ),
            (
                "records with a checksum",
                page(|at, chance| match at % 128 {
                    0..32 => chance,
                    _ => 0,
                }),
            ),
            ("a word again and again", page(|at, _| block[at % 8])),
        ];
        for (what, page) in rows {
            assert!(!looks_random(&page), "{what}");
            assert!(!looks_random(&page[..PAGE_SIZE / 2]), "half a page: {what}");
        }
    }

    /// Nor does what is so short that the look pays little.
    #[test]
    fn what_is_short_does_not() {
        let page = page(|_, chance| chance);
        assert!(looks_random(&page[..BYTES_MIN]));
        assert!(!looks_random(&page[..BYTES_MIN - 1]));
        assert!(!looks_random(&[]));
    }
}
