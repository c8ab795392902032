//! Chance from a seed.
//!
//! The generator is splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
//! generators", 2014): every seed is as good as any other, so seeds may simply be counted up.

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A generator of numbers that look random; equal seeds give equal numbers.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// The generator of this seed.
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GAMMA);
        mix(self.state)
    }

    /// A number below `bound`.
    ///
    /// # Panics
    ///
    /// If `bound` is zero.
    pub const fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "there is no number below zero");
        // The upper half of a product: no division, and a bias of less than 2^-32 for the small
        // bounds that are asked for here.
        ((self.next() as u128 * bound as u128) >> 64) as u64
    }

    /// Whether something that happens once in `one_in` times happens now; never for zero.
    pub const fn one_in(&mut self, one_in: u64) -> bool {
        one_in != 0 && self.below(one_in) == 0
    }

    /// Another generator, which goes its own way.
    #[must_use]
    pub const fn fork(&mut self) -> Self {
        Self::new(self.next())
    }
}

/// The `nth` number of the generator with this seed.
pub(crate) const fn nth(seed: u64, nth: u64) -> u64 {
    mix(seed.wrapping_add(nth.wrapping_add(1).wrapping_mul(GAMMA)))
}

const fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
