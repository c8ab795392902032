//! Random choices that a seed repeats, and a number mixer that can be undone.

/// splitmix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Rng {
    /// The choices of one actor of one tenant.
    pub(crate) fn new(seed: u64, tenant: u32, actor: u32) -> Self {
        Self(mix(seed ^ mix(u64::from(tenant) << 32 | u64::from(actor))))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number below `n`, which is not 0.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        // The high half of the product; the bias is below n / 2^64.
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// Fills a buffer with bytes that no codec makes smaller.
    pub(crate) fn fill(&mut self, into: &mut [u8]) {
        for chunk in into.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Mixes a number; different numbers stay different.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Undoes [`mix`].
pub(crate) fn unmix(mut z: u64) -> u64 {
    // The multipliers are the inverses of those above modulo 2^64.
    z = (z ^ (z >> 31) ^ (z >> 62)).wrapping_mul(0x3196_42b2_d24d_8ec3);
    z = (z ^ (z >> 27) ^ (z >> 54)).wrapping_mul(0x96de_1b17_3f11_9089);
    z ^ (z >> 30) ^ (z >> 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixing_can_be_undone() {
        let mut rng = Rng::new(1, 2, 3);
        for number in (0..1000).chain((0..1000).map(|_| rng.next())) {
            assert_eq!(unmix(mix(number)), number);
        }
    }

    #[test]
    fn numbers_stay_below_their_bound() {
        let mut rng = Rng::new(4, 5, 6);
        let mut seen = [false; 7];
        for _ in 0..1000 {
            seen[rng.below(7) as usize] = true;
        }
        assert_eq!(seen, [true; 7]);
    }
}
