//! Where the slots are, and which invalidations are open: what a notifier asks first.
//!
//! Lives under a `ShortLock`, so that an invalidation of pages that no slot holds is never refused
//! because of the ring's lock. Allocates when it is made and never again.

use pinless_mm::addr::PageRun;

/// The number of a slot in the kernel's table.
pub(super) type SlotNr = u32;

/// Names one attached mapping among all of the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct AreaId(pub(super) u64);

/// Invalidations that can be listed. Those above it stand for any range.
const OPEN_MAX: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Entry {
    area: AreaId,
    run: PageRun,
    slot: SlotNr,
    /// Whether new operations may use it.
    is_ready: bool,
}

/// The slots in the order of their pages, and the open invalidations.
///
/// # Invariants
///
/// `entries` is sorted by area and first page, and no run is longer than `run_pages_max`. Entries
/// change only under the ring's lock, so whoever holds that may go through them in steps.
#[derive(Debug)]
pub(super) struct Index {
    entries: Vec<Entry>,
    run_pages_max: u32,
    open: [Option<(AreaId, PageRun)>; OPEN_MAX],
    nr_open_unlisted: u32,
}

impl Index {
    pub(super) fn new(nr_slots: u32) -> Self {
        Self {
            entries: Vec::with_capacity(nr_slots as usize),
            run_pages_max: 0,
            open: [None; OPEN_MAX],
            nr_open_unlisted: 0,
        }
    }

    /// Notes an invalidation of `run` if no slot overlaps it.
    pub(super) fn try_open(&mut self, area: AreaId, run: PageRun) -> bool {
        let is_free = self.overlapping(area, run).next().is_none();
        if is_free {
            self.open(area, run);
        }
        is_free
    }

    /// Notes an invalidation of `run`.
    pub(super) fn open(&mut self, area: AreaId, run: PageRun) {
        match self.open.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some((area, run)),
            None => self.nr_open_unlisted += 1,
        }
    }

    /// Forgets one invalidation of `run`.
    pub(super) fn close(&mut self, area: AreaId, run: PageRun) {
        let closed = Some((area, run));
        match self.open.iter_mut().find(|place| **place == closed) {
            Some(place) => *place = None,
            None => {
                assert!(self.nr_open_unlisted > 0, "an end without a start");
                self.nr_open_unlisted -= 1;
            }
        }
    }

    /// Adds a slot, unless an invalidation of its pages is open.
    pub(super) fn insert(&mut self, area: AreaId, run: PageRun, slot: SlotNr) -> bool {
        let is_open = |place: &Option<(AreaId, PageRun)>| {
            place.is_some_and(|(other, open)| other == area && open.overlaps(run))
        };
        if self.nr_open_unlisted > 0 || self.open.iter().any(is_open) {
            return false;
        }
        assert!(
            self.entries.len() < self.entries.capacity(),
            "more entries than slots"
        );
        let at = self
            .entries
            .partition_point(|entry| (entry.area, entry.run.first) < (area, run.first));
        self.entries.insert(
            at,
            Entry {
                area,
                run,
                slot,
                is_ready: true,
            },
        );
        // INVARIANT: the longest run may have got longer. It never gets shorter, which costs a
        // few more looks.
        self.run_pages_max = self.run_pages_max.max(run.nr);
        true
    }

    /// No new operation may use the slot.
    pub(super) fn retire(&mut self, area: AreaId, run: PageRun, slot: SlotNr) {
        if let Some(at) = self.position(area, run, slot) {
            self.entries[at].is_ready = false;
        }
    }

    /// The slot holds nothing any more.
    pub(super) fn remove(&mut self, area: AreaId, run: PageRun, slot: SlotNr) {
        if let Some(at) = self.position(area, run, slot) {
            self.entries.remove(at);
        }
    }

    /// A slot that new operations may use and that holds all of `run`.
    pub(super) fn covering(&self, area: AreaId, run: PageRun) -> Option<SlotNr> {
        self.overlapping(area, run)
            .find(|entry| {
                entry.is_ready && entry.run.first <= run.first && run.end() <= entry.run.end()
            })
            .map(|entry| entry.slot)
    }

    /// The overlapping slot with the lowest number from `from` on.
    pub(super) fn next_overlapping(
        &self,
        area: AreaId,
        run: PageRun,
        from: SlotNr,
    ) -> Option<SlotNr> {
        self.overlapping(area, run)
            .map(|entry| entry.slot)
            .filter(|&slot| slot >= from)
            .min()
    }

    fn overlapping(&self, area: AreaId, run: PageRun) -> impl Iterator<Item = &Entry> {
        let lowest = (area, run.first.saturating_sub(self.run_pages_max));
        let start = self
            .entries
            .partition_point(|entry| (entry.area, entry.run.first) < lowest);
        self.entries[start..]
            .iter()
            .take_while(move |entry| entry.area == area && entry.run.first < run.end())
            .filter(move |entry| entry.run.overlaps(run))
    }

    fn position(&self, area: AreaId, run: PageRun, slot: SlotNr) -> Option<usize> {
        let start = self
            .entries
            .partition_point(|entry| (entry.area, entry.run.first) < (area, run.first));
        let at = self.entries[start..]
            .iter()
            .position(|entry| entry.slot == slot)?;
        Some(start + at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: AreaId = AreaId(7);

    fn run(first: u32, end: u32) -> PageRun {
        PageRun::new(first, end - first)
    }

    fn index(runs: &[(u32, u32)]) -> Index {
        let mut index = Index::new(16);
        for (slot, &(first, end)) in (0..).zip(runs) {
            assert!(index.insert(AREA, run(first, end), slot));
        }
        index
    }

    fn overlapping(index: &Index, area: AreaId, run: PageRun) -> Vec<SlotNr> {
        let next = |from| index.next_overlapping(area, run, from);
        core::iter::successors(next(0), |&slot| next(slot + 1)).collect()
    }

    #[test]
    fn slots_are_found_by_their_pages() {
        let index = index(&[(0, 4), (8, 9), (2, 6), (9, 20), (2, 3)]);
        for (first, end, expected) in [
            (0, 1, &[0][..]),
            (2, 3, &[0, 2, 4]),
            (5, 8, &[2]),
            (6, 8, &[]),
            (8, 10, &[1, 3]),
            (19, 40, &[3]),
            (20, 40, &[]),
            (0, 40, &[0, 1, 2, 3, 4]),
        ] {
            assert_eq!(overlapping(&index, AREA, run(first, end)), expected);
            assert_eq!(overlapping(&index, AreaId(6), run(first, end)), [0; 0]);
            assert_eq!(overlapping(&index, AreaId(8), run(first, end)), [0; 0]);
        }
        for (first, end, expected) in [(2, 4, Some(0)), (2, 6, Some(2)), (8, 10, None)] {
            assert_eq!(index.covering(AREA, run(first, end)), expected);
        }
    }

    #[test]
    fn a_retired_slot_is_met_but_not_used() {
        let mut index = index(&[(0, 4), (0, 4)]);
        index.retire(AREA, run(0, 4), 0);
        assert_eq!(index.covering(AREA, run(1, 2)), Some(1));
        assert_eq!(overlapping(&index, AREA, run(1, 2)), [0, 1]);
        index.remove(AREA, run(0, 4), 1);
        assert_eq!(index.covering(AREA, run(1, 2)), None);
        assert!(!index.try_open(AREA, run(3, 9)));
        index.remove(AREA, run(0, 4), 0);
        assert!(index.try_open(AREA, run(3, 9)));
    }

    #[test]
    fn open_invalidations_keep_slots_out() {
        let mut index = index(&[]);
        index.open(AREA, run(4, 8));
        index.open(AREA, run(4, 8));
        assert!(!index.insert(AREA, run(7, 9), 0));
        assert!(index.insert(AREA, run(8, 9), 1));
        assert!(index.insert(AreaId(1), run(4, 8), 2));
        index.close(AREA, run(4, 8));
        assert!(!index.insert(AREA, run(7, 9), 0));
        index.close(AREA, run(4, 8));
        assert!(index.insert(AREA, run(7, 9), 0));
    }

    #[test]
    fn invalidations_beyond_the_list_keep_every_slot_out() {
        let mut index = index(&[]);
        let nr = OPEN_MAX as u32 + 2;
        for page in 0..nr {
            assert!(index.try_open(AREA, PageRun::single(page)));
        }
        assert!(!index.insert(AREA, run(1000, 1001), 0));
        for page in 0..nr {
            assert!(index.nr_open_unlisted == 0 || !index.insert(AREA, run(1000, 1001), 0));
            index.close(AREA, PageRun::single(nr - 1 - page));
        }
        assert!(index.insert(AREA, run(0, nr), 0));
    }
}
