//! The hands of the clock: which pages come next.

use super::Effort;
use crate::addr::{PageIndex, PageRun};
use crate::limits::WINDOW_PAGES;
use crate::memcg::{Memcg, Protection};
use crate::mm_struct::{Vma, VmaId};
use crate::page::State;
use std::sync::Arc;

/// Which hand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hand {
    /// Detaches mapped pages.
    Front,
    /// Gives back the frames of detached pages.
    Back,
    /// Gives back the stored copies of clean mapped pages.
    Shed,
    /// Writes stored pages to the file.
    Cold,
    /// Packs stored pages closer.
    #[cfg_attr(
        not(feature = "zstd"),
        expect(dead_code, reason = "there is no dense codec")
    )]
    Pack,
}

/// Where a hand stands: the next page it looks at.
#[derive(Clone, Copy, Debug)]
struct Position {
    vma: VmaId,
    page: PageIndex,
}

/// Where the hands stand. A hand gives a run to whoever moves it, and no lock is held while that
/// run is worked on: the state words keep two workers apart.
#[derive(Debug)]
pub(super) struct Hands {
    front: Position,
    back: Position,
    shed: Position,
    cold: Position,
    pack: Position,
}

impl Default for Hands {
    fn default() -> Self {
        let start = Position {
            vma: VmaId(0),
            page: 0,
        };
        Self {
            front: start,
            back: start,
            shed: start,
            cold: start,
            pack: start,
        }
    }
}

/// Whether a page stays that a device has used lately.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Youth {
    Counts,
    /// Nothing else was found: that a device uses memory all the time does not save it.
    Ignored,
}

/// How much of its way round a hand still has to go.
#[derive(Debug)]
pub(super) struct Lap {
    windows_left: u64,
    /// The last windows of these, in which [`Youth`] is ignored.
    windows_heedless: u64,
    /// Stop before the memory of an address space that somebody has to be told about.
    stops_at_subscribers: bool,
    /// Look at windows that a device is going to be asked for by somebody else, too.
    asks_again: bool,
    /// What it passes over on behalf of those it belongs to.
    protection: Protection,
}

impl Memcg {
    /// The way round for `hand`.
    pub(super) fn start_lap(&self, hand: Hand, effort: Effort, protection: Protection) -> Lap {
        let nr = self.domain.nr_windows();
        let rounds = match hand {
            // The first round takes the referenced marks away, the second finds the pages. The
            // third finds those that devices had marked in the first.
            Hand::Front => 3,
            Hand::Back | Hand::Shed | Hand::Cold | Hand::Pack => 1,
        };
        // One window more, because the first may be left out in part.
        let windows = rounds * nr + 1;
        let windows_left = windows.min(effort.windows_max());
        Lap {
            windows_left,
            windows_heedless: match effort {
                Effort::LastResort => u64::MAX,
                _ => (2 * nr).saturating_sub(windows - windows_left),
            },
            stops_at_subscribers: hand == Hand::Front && effort == Effort::Fault,
            asks_again: effort == Effort::LastResort,
            protection,
        }
    }

    /// Moves `hand` on to the next pages that have work for it: a part of one window, as
    /// long as holds `wanted` such pages, which are one at least.
    pub(super) fn next_run(
        &self,
        hand: Hand,
        lap: &mut Lap,
        wanted: u64,
    ) -> Option<(Arc<Vma>, PageRun)> {
        let vmas = self.vmas.read();
        let mut hands = self.domain.hands.lock();
        let at = match hand {
            Hand::Front => &mut hands.front,
            Hand::Back => &mut hands.back,
            Hand::Shed => &mut hands.shed,
            Hand::Cold => &mut hands.cold,
            Hand::Pack => &mut hands.pack,
        };
        while lap.windows_left > 0 {
            let next = vmas.range(at.vma..).next().or_else(|| vmas.iter().next());
            let (&id, vma) = next?;
            if id != at.vma {
                *at = Position { vma: id, page: 0 };
            }
            // Passing over it would spare its pages at the cost of everybody else's.
            if lap.stops_at_subscribers && vma.mm().notifiers().has_subscriptions() {
                return None;
            }
            if matches!(hand, Hand::Front | Hand::Back) && self.passes_over(vma, lap.protection) {
                let nr_left = (vma.nr_pages() - at.page).div_ceil(WINDOW_PAGES);
                lap.windows_left = lap.windows_left.saturating_sub(u64::from(nr_left.max(1)));
                at.page = vma.nr_pages();
            }
            while at.page < vma.nr_pages() && lap.windows_left > 0 {
                let window = at.page / WINDOW_PAGES;
                let rest = vma.window(window).end() - at.page;
                let nr = match hand {
                    Hand::Front if vma.is_refused(window) && !lap.asks_again => 0,
                    Hand::Front | Hand::Shed => vma.nr_evictable_in(window),
                    Hand::Back => vma.nr_detached_in(window),
                    // Nobody counts them: these hands have time.
                    Hand::Cold | Hand::Pack => 1,
                };
                let nr_pages = match nr {
                    0 => rest,
                    _ => hand.part_with(wanted, vma, PageRun::new(at.page, rest)),
                };
                let run = PageRun::new(at.page, nr_pages);
                at.page = run.end();
                lap.windows_left -= u64::from(nr_pages == rest);
                if nr > 0 {
                    return Some((Arc::clone(vma), run));
                }
            }
            if at.page >= vma.nr_pages() {
                *at = Position {
                    vma: VmaId(id.0 + 1),
                    page: 0,
                };
            }
        }
        None
    }

    /// Whether the memory cgroup of `vma` is protected from reclaim of this one.
    fn passes_over(&self, vma: &Vma, protection: Protection) -> bool {
        let memcg = vma.memcg();
        let is_protected = memcg.is_protected_from(self, protection);
        if is_protected && !memcg.is_protected_from(self, Protection::Min) {
            self.domain.meet_low();
        }
        is_protected
    }
}

impl Lap {
    /// The hand goes over no more than so many windows.
    #[cfg(feature = "zstd")]
    pub(super) fn shorten(&mut self, nr_windows: u64) {
        self.windows_left = self.windows_left.min(nr_windows);
    }

    /// Windows that it has not gone over.
    #[cfg(feature = "zstd")]
    pub(super) fn windows_left(&self) -> u64 {
        self.windows_left
    }

    /// Whether what devices use is spared where the hand stands.
    pub(super) fn youth(&self) -> Youth {
        if self.windows_left >= self.windows_heedless {
            Youth::Counts
        } else {
            Youth::Ignored
        }
    }
}

impl Hand {
    /// How far to go in `run` for `wanted` pages that this hand can work on.
    fn part_with(self, wanted: u64, vma: &Vma, run: PageRun) -> u32 {
        let is_fit = |page: &PageIndex| {
            let word = vma.pages.load(*page);
            match self {
                Self::Front | Self::Shed => word.is_evictable(),
                Self::Back => word.is_detached(),
                Self::Cold | Self::Pack => word.state() == State::Swapped,
            }
        };
        let last = run.pages().filter(is_fit).nth(wanted as usize - 1);
        last.map_or(run.nr, |last| last + 1 - run.first)
    }
}
