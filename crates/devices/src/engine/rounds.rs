//! The scheme by which no translation outlives a change: a count of open rounds and a sequence.
//!
//! A fault reads the sequence, asks the memory manager for a translation, and then, under the lock
//! of its table, asks [`Rounds::is_fresh`]. Each bracket is a round here, from `start` to `end`.
//! Let `q` be the sequence that the fault read, and let a round change its page:
//!
//! * the round is still open at the check: it is counted, and its pages lie in the hull;
//! * it ended between the read of `q` and the check: its end has changed the sequence;
//! * it ended before the read of `q`: the translation was made after the change;
//! * it begins after the check: its start finds the translation in the table and drops it.
//!
//! The last case needs `start` to take the same lock as the check. The hull never shrinks while a
//! round is open, so it may be too wide: that costs a retry, never a stale translation.
//!
//! Linux counterpart: mmu_invalidate_retry_gfn() in include/linux/kvm_host.h

use pinless_mm::addr::PageRun;

/// The rounds of one mapping. The driver chooses the lock around it, one that `end` may take.
#[derive(Debug, Default)]
pub struct Rounds {
    nr_open: u32,
    /// Covers all rounds since `nr_open` was last zero.
    hull: Option<PageRun>,
    sequence: u64,
}

impl Rounds {
    /// No round yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A round over `run` begins.
    pub fn begin(&mut self, run: PageRun) {
        self.nr_open += 1;
        self.hull = Some(self.hull.map_or(run, |hull| hull.hull(run)));
    }

    /// A round ends.
    ///
    /// # Panics
    ///
    /// If none is open.
    pub fn end(&mut self) {
        assert!(self.nr_open > 0, "an end without a start");
        self.nr_open -= 1;
        self.sequence += 1;
        if self.nr_open == 0 {
            self.hull = None;
        }
    }

    /// Whether a round is open.
    pub fn is_open(&self) -> bool {
        self.nr_open > 0
    }

    /// The value to read before asking for a translation.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether no round was open since `sequence` was read, over any page at all. Who asks this
    /// waits for changes that do not concern him.
    pub fn is_idle_since(&self, sequence: u64) -> bool {
        self.nr_open == 0 && self.sequence == sequence
    }

    /// Whether a translation of `run` may be installed that was asked for at `sequence`.
    pub fn is_fresh(&self, run: PageRun, sequence: u64) -> bool {
        !self.hull.is_some_and(|hull| hull.overlaps(run)) && self.sequence == sequence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_only_if_no_round_came_between() {
        let page = PageRun::single;
        let mut rounds = Rounds::new();
        let before = rounds.sequence();
        assert!(rounds.is_fresh(page(3), before));

        rounds.begin(page(3));
        assert!(!rounds.is_fresh(page(3), before), "open over the page");
        assert!(rounds.is_fresh(page(4), before), "open beside the page");
        rounds.begin(page(6));
        assert!(!rounds.is_fresh(page(4), before), "in the hull of both");

        rounds.end();
        let inside = rounds.sequence();
        assert!(
            !rounds.is_fresh(page(3), inside),
            "the hull stays until all are closed"
        );
        rounds.end();
        assert!(
            !rounds.is_fresh(page(3), inside),
            "asked for while it was open"
        );
        assert!(!rounds.is_fresh(page(3), before), "asked for before it");
        assert!(rounds.is_fresh(page(3), rounds.sequence()));
    }
}
