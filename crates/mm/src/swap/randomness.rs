//! Whether it is worth trying to compress something.
//!
//! What is compressed or encrypted already has every byte about as often as any other, and no codec
//! makes it smaller. To find that out by trying takes several times as long as to look at a few of
//! its bytes.
//!
//! Linux counterpart: the byte set of `btrfs_compress_heuristic`.

/// Bytes that are looked at, in words.
const NR_SAMPLES: usize = 128;
const WORD_BYTES: usize = 8;
const NR_WORDS: usize = NR_SAMPLES / WORD_BYTES;

/// Less than this is compressed as soon as looked at.
const BYTES_MIN: usize = 4 * NR_SAMPLES;

/// Of as many bytes by chance, 101 values are expected, and seldom fewer than this. Text has fewer
/// than sixty, programs, pointers and most numbers fewer than ninety.
const VALUES_MIN: u32 = 90;

/// How far the words are from where their equal shares of the bytes begin: by a step that is no
/// fraction of any record's length, or only one field of each record would be seen.
const STEP: usize = 37;

/// Whether the bytes are as good as chance, as far as a few of them tell. Contents that repeat only
/// over long distances look so, too.
pub(super) fn looks_random(bytes: &[u8]) -> bool {
    if bytes.len() < BYTES_MIN {
        return false;
    }
    let share = bytes.len() / NR_WORDS;
    // A byte for each value: a bit would wait for the one before in its word.
    let mut seen = [0_u8; 256];
    for (nth, share) in bytes.chunks_exact(share).take(NR_WORDS).enumerate() {
        let at = nth * STEP % (share.len() - WORD_BYTES + 1);
        for &byte in &share[at..at + WORD_BYTES] {
            seen[usize::from(byte)] = 1;
        }
    }
    let nr_values: u32 = seen.iter().copied().map(u32::from).sum();
    nr_values >= VALUES_MIN
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PAGE_SIZE;

    /// Sebastiano Vigna's splitmix64.
    fn chance(seed: u64) -> impl Iterator<Item = u8> {
        let mut state = seed;
        core::iter::repeat_with(move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)).to_ne_bytes()
        })
        .flatten()
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
        let rows: [(&str, Vec<u8>); 7] = [
            ("zeros", page(|_, _| 0)),
            ("a number for each byte", page(|at, _| at as u8 / 4)),
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
                "records with a checksum",
                page(|at, chance| match at % 128 {
                    0..32 => chance,
                    _ => 0,
                }),
            ),
            (
                "a word again and again",
                page(|at, _| chance(9).nth(at % 8).expect("no end")),
            ),
        ];
        for (what, page) in rows {
            assert!(!looks_random(&page), "{what}");
            assert!(!looks_random(&page[..PAGE_SIZE / 2]), "half a page: {what}");
        }
    }

    /// So does what is too short to tell, and where it pays little.
    #[test]
    fn what_is_short_does_not() {
        let page = page(|_, chance| chance);
        assert!(looks_random(&page[..BYTES_MIN]));
        assert!(!looks_random(&page[..BYTES_MIN - 1]));
        assert!(!looks_random(&[]));
    }
}
