//! Options of a body that chance draws for each run.
//!
//! Swarm testing (Groce, Zhang, Eide, Chen, Regehr, ISSTA 2012): a run with some features switched
//! off altogether goes where one with all of them never gets.

use crate::rng::Rng;

/// One option: its name and the values that it may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Knob {
    /// What a body asks for.
    pub name: &'static str,
    /// The least value.
    pub min: u64,
    /// The greatest value.
    pub max: u64,
}

impl Knob {
    /// An option that is on, 1, in half of the runs and off, 0, in the others.
    pub const fn flag(name: &'static str) -> Self {
        Self::number(name, 0, 1)
    }

    /// An option from `min` to `max`, both included. One draw in four gives an end of the range.
    ///
    /// # Panics
    ///
    /// If `min` is above `max`.
    pub const fn number(name: &'static str, min: u64, max: u64) -> Self {
        assert!(min <= max, "a range of values goes up");
        Self { name, min, max }
    }

    fn draw(&self, rng: &mut Rng) -> u64 {
        match rng.below(8) {
            0 => self.min,
            1 => self.max,
            _ => match (self.max - self.min).checked_add(1) {
                Some(nr) => self.min + rng.below(nr),
                None => rng.next(),
            },
        }
    }
}

/// An option and its value in a run.
pub type Setting = (&'static str, u64);

/// The stream of a seed from which options are drawn.
const STREAM: u64 = u64::MAX;

/// The values of a table for a seed, but for those that are `fixed`.
pub(super) fn draw(table: &[Knob], seed: u64, fixed: &[(String, u64)]) -> Vec<Setting> {
    let mut rng = Rng::new(crate::rng::nth(!seed, STREAM));
    let draw = |knob: &Knob| {
        // Drawn in any case: what one is fixed to does not change the others.
        let drawn = knob.draw(&mut rng);
        let set = fixed.iter().find(|(name, _)| name == knob.name);
        (knob.name, set.map_or(drawn, |&(_, value)| value))
    };
    table.iter().map(draw).collect()
}
