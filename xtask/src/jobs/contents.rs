//! What is in the pages of a job: it follows from a number, so that nothing has to be kept to judge
//! what is read.

/// Bytes of a page.
pub(super) const PAGE_BYTES: usize = pinless::PAGE_SIZE;

/// Contents of a page.
pub(super) type Contents = [u8; PAGE_BYTES];

/// Random numbers that a seed repeats: splitmix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Fills a page with what follows from `seed`: one word all over, text, records of which a part is
/// random, or nothing that a codec could make smaller.
pub(super) fn fill(seed: u64, page: &mut Contents) {
    const WORDS: [&[u8; 8]; 8] = [
        b"a page, ",
        b"a frame ",
        b"is told ",
        b"before, ",
        b"reclaim ",
        b"comes by",
        b"; a slot",
        b"no more.",
    ];
    let mut rng = Rng(seed);
    let kind = rng.below(16);
    let own = rng.next();
    let nr_random = match kind {
        0 | 1 => 0,
        2..=7 => 64,
        8..=14 => 512,
        _ => page.len(),
    };
    for (nth, word) in page.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *word = match kind {
            0 | 1 => ((own as u32 as u64) << 32 | own as u32 as u64).to_ne_bytes(),
            _ if nth * 8 < nr_random => rng.next().to_ne_bytes(),
            2..=7 => *WORDS[rng.below(8) as usize],
            _ => (own & 0xff).to_ne_bytes(),
        };
    }
}
