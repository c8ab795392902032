//! G3 and G5: blockable starts succeed, and each successful start has one end.

use super::Breach;
use crate::conformance::Invariant;

/// The starts and ends of one subscription.
#[derive(Debug, Default)]
pub struct Brackets {
    nr_open: u64,
    is_released: bool,
}

impl Brackets {
    /// Nothing happened yet.
    pub const fn new() -> Self {
        Self {
            nr_open: 0,
            is_released: false,
        }
    }

    /// A start succeeded.
    pub fn started(&mut self) {
        self.nr_open += 1;
    }

    /// An end came.
    ///
    /// # Errors
    ///
    /// [`Breach`] if no start was without one.
    pub fn ended(&mut self) -> Result<(), Breach> {
        match self.nr_open.checked_sub(1) {
            Some(left) => self.nr_open = left,
            None => return Err(Breach::of(Invariant::P4, "an end came without its start")),
        }
        Ok(())
    }

    /// The release came.
    ///
    /// # Errors
    ///
    /// [`Breach`] if it had come before.
    pub fn released(&mut self) -> Result<(), Breach> {
        if self.is_released {
            return Err(Breach::of(Invariant::P10, "a second release came"));
        }
        self.is_released = true;
        Ok(())
    }

    /// A blockable start did not succeed although every device answers.
    pub fn failed(why: &dyn core::fmt::Display) -> Breach {
        Breach::of(Invariant::P2, format!("a blockable start failed: {why}"))
    }

    /// No bracket is open any more.
    ///
    /// # Errors
    ///
    /// [`Breach`] if a start has no end.
    pub fn finish(&self) -> Result<(), Breach> {
        if self.nr_open == 0 {
            return Ok(());
        }
        let nr = self.nr_open;
        Err(Breach::of(
            Invariant::P4,
            format!("{nr} starts have no end"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_end_for_each_start() {
        let mut brackets = Brackets::new();
        brackets.started();
        brackets.started();
        assert!(brackets.finish().is_err(), "two are open");
        brackets.ended().expect("the first");
        brackets.ended().expect("the second");
        brackets.finish().expect("all are closed");
        assert_eq!(
            brackets.ended().expect_err("one too many").invariant,
            Some(Invariant::P4)
        );
        brackets.released().expect("the first");
        assert!(brackets.released().is_err(), "the second");
    }
}
