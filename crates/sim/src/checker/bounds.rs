//! G6: no charge exceeds its bound.

use super::Breach;

/// A bound, and the highest charge that was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    what: &'static str,
    max: u64,
    peak: u64,
}

impl Bounds {
    /// `what` is charged up to `max`.
    pub const fn new(what: &'static str, max: u64) -> Self {
        Self { what, max, peak: 0 }
    }

    /// So much is charged at this moment.
    ///
    /// # Errors
    ///
    /// [`Breach`] if that is more than may be.
    pub fn charged(&mut self, charge: u64) -> Result<(), Breach> {
        self.peak = self.peak.max(charge);
        if charge <= self.max {
            return Ok(());
        }
        let (what, max) = (self.what, self.max);
        Err(Breach::against(
            "G6",
            format!("{charge} {what} are charged, {max} may be"),
        ))
    }

    /// The highest charge so far.
    pub const fn peak(&self) -> u64 {
        self.peak
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_above_the_bound_is_a_breach() {
        let mut frames = Bounds::new("frames", 3);
        frames.charged(3).expect("at the bound");
        frames.charged(0).expect("below it");
        assert_eq!(frames.peak(), 3);
        assert_eq!(frames.charged(4).expect_err("above").guarantee, "G6");
    }
}
