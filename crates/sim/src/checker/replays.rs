//! G15: a seed repeats its run.

use super::Breach;
use crate::scheduler::Run;
use std::collections::BTreeMap;

/// Runs by their seeds.
#[derive(Debug, Default)]
pub struct Replays {
    digests: BTreeMap<u64, u64>,
}

impl Replays {
    /// No run yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A run was made, with a strategy and options that its seed decides.
    ///
    /// # Errors
    ///
    /// [`Breach`] if the seed gave another run before.
    pub fn seen(&mut self, run: &Run) -> Result<(), Breach> {
        let before = *self.digests.entry(run.seed).or_insert(run.digest);
        if before == run.digest {
            return Ok(());
        }
        let what = format!("seed {} gave two different runs", run.seed);
        Err(Breach::against("G15", what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sim;
    use lockdep::sync::Mutex;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    fn steps(sim: &Sim, nr: u64) {
        let total = Arc::new(Mutex::new("total", 0));
        for _ in 0..2 {
            let total = Arc::clone(&total);
            sim.spawn("adder", move || (0..nr).for_each(|_| *total.lock() += 1));
        }
        sim.join_all();
    }

    #[test]
    fn a_run_that_its_seed_does_not_decide_is_found_out() {
        let mut replays = Replays::new();
        for _ in 0..2 {
            let run = Sim::run(7, |sim| steps(sim, 2));
            replays.seen(&run).expect("the seed decides it");
        }
        let outside = Arc::new(AtomicU64::new(1));
        let found = (0..2).find_map(|_| {
            let outside = Arc::clone(&outside);
            let run = Sim::run(8, move |sim| steps(sim, outside.fetch_add(1, Relaxed)));
            replays.seen(&run).err()
        });
        assert_eq!(found.expect("a counter from outside").guarantee, "G15");
    }
}
