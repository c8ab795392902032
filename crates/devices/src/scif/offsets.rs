//! The registered address space of an endpoint, and the arithmetic of its windows.

use pinless_mm::addr::{PAGE_SIZE, PageRun};

/// A place in the registered address space, in pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Offset(pub u64);

/// How large the space is, in pages.
pub const SPACE_PAGES: u64 = 1 << 12;

/// In what a length is counted where offsets are handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// As it should be.
    Pages,
    /// As it is where somebody has taken the one for the other: a fault.
    Bytes,
}

/// Which offsets are taken. Handed out from the top downwards.
#[derive(Debug, Default)]
pub struct Offsets {
    /// Ascending, disjoint.
    taken: Vec<(u64, u64)>,
}

impl Offsets {
    /// Takes room for `nr_pages`, or says that there is none.
    pub fn take(&mut self, nr_pages: u32, unit: Unit) -> Option<Offset> {
        let nr = match unit {
            Unit::Pages => u64::from(nr_pages),
            Unit::Bytes => u64::from(nr_pages) * PAGE_SIZE as u64,
        };
        let starts = self.taken.iter().map(|&(start, _)| start);
        let gap_ends = starts.chain([SPACE_PAGES]).collect::<Vec<u64>>();
        for (at, end) in gap_ends.into_iter().enumerate().rev() {
            let below = at.checked_sub(1).map_or(0, |before| self.taken[before].1);
            if end - below >= nr {
                self.taken.insert(at, (end - nr, end));
                return Some(Offset(end - nr));
            }
        }
        None
    }

    /// Gives room back.
    ///
    /// # Panics
    ///
    /// If no room begins there.
    pub fn give_back(&mut self, offset: Offset) {
        let found = self.taken.iter().position(|&(start, _)| start == offset.0);
        self.taken.remove(found.expect("an offset that was taken"));
    }
}

/// How a window that is pinned now takes in one that is there already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Widen {
    /// To the shortest window that has both.
    Union,
    /// From the start of the old one on, as long as both together: a fault.
    FromTheOldStart,
}

/// The window for a request that overlaps another.
pub fn widen(request: PageRun, found: PageRun, how: Widen) -> PageRun {
    match how {
        Widen::Union => request.hull(found),
        Widen::FromTheOldStart => PageRun::new(found.first, request.hull(found).nr),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All pairs of small runs that overlap.
    fn pairs() -> impl Iterator<Item = (PageRun, PageRun)> {
        let runs = || (0..6).flat_map(|first| (1..5).map(move |nr| PageRun::new(first, nr)));
        runs()
            .flat_map(move |request| runs().map(move |found| (request, found)))
            .filter(|(request, found)| request.overlaps(*found))
    }

    fn contains_both(how: Widen) -> bool {
        pairs().all(|(request, found)| {
            let window = widen(request, found, how);
            window.hull(request) == window && window.hull(found) == window
        })
    }

    #[test]
    fn window_contains_what_was_asked_for() {
        assert!(contains_both(Widen::Union));
        assert!(!contains_both(Widen::FromTheOldStart), "bug 25 is seen");
    }

    fn nr_windows(unit: Unit) -> usize {
        let mut offsets = Offsets::default();
        (0..100).map_while(|_| offsets.take(2, unit)).count()
    }

    #[test]
    fn space_lasts_for_as_many_windows_as_it_has_room() {
        assert_eq!(nr_windows(Unit::Pages), 100);
        assert!(nr_windows(Unit::Bytes) < 2, "bug 28 is seen");
    }

    #[test]
    fn offsets_are_disjoint_and_come_back() {
        let mut offsets = Offsets::default();
        let first = offsets.take(3, Unit::Pages).expect("room");
        let second = offsets.take(5, Unit::Pages).expect("room");
        assert_eq!((first.0, second.0), (SPACE_PAGES - 3, SPACE_PAGES - 8));
        offsets.give_back(first);
        assert_eq!(offsets.take(4, Unit::Pages), Some(Offset(SPACE_PAGES - 12)));
        assert_eq!(offsets.take(3, Unit::Pages), Some(first));
    }
}
