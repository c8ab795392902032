//! The hands of the clock: which window comes next.

use crate::addr::PageRun;
use crate::memcg::Memcg;
use crate::mm_struct::{Vma, VmaId};
use core::sync::atomic::Ordering;
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
}

/// Where a hand stands: the next window it looks at.
#[derive(Clone, Copy, Debug)]
struct Position {
    vma: VmaId,
    window: u32,
}

/// Where the hands stand. A hand gives a window to whoever moves it, and no lock is held while
/// that window is worked on: the state words keep two workers apart.
#[derive(Debug)]
pub(super) struct Hands {
    front: Position,
    back: Position,
    shed: Position,
}

impl Default for Hands {
    fn default() -> Self {
        let start = Position {
            vma: VmaId(0),
            window: 0,
        };
        Self {
            front: start,
            back: start,
            shed: start,
        }
    }
}

/// How much of its way round a hand still has to go.
#[derive(Debug)]
pub(super) struct Lap {
    windows_left: u64,
}

impl Memcg {
    /// The way round for `hand`.
    pub(super) fn start_lap(&self, hand: Hand) -> Lap {
        let nr = self.reclaim.nr_windows.load(Ordering::Relaxed);
        let rounds = match hand {
            // The first round takes the referenced marks away, the second finds the pages.
            Hand::Front => 2,
            Hand::Back | Hand::Shed => 1,
        };
        Lap {
            windows_left: rounds * nr,
        }
    }

    /// Moves `hand` to the next window that has pages for it.
    pub(super) fn next_window(&self, hand: Hand, lap: &mut Lap) -> Option<(Arc<Vma>, PageRun)> {
        let vmas = self.vmas.read();
        let mut hands = self.reclaim.hands.lock();
        let at = match hand {
            Hand::Front => &mut hands.front,
            Hand::Back => &mut hands.back,
            Hand::Shed => &mut hands.shed,
        };
        while lap.windows_left > 0 {
            let next = vmas.range(at.vma..).next().or_else(|| vmas.iter().next());
            let (&id, vma) = next?;
            if id != at.vma {
                *at = Position { vma: id, window: 0 };
            }
            while at.window < vma.nr_windows() && lap.windows_left > 0 {
                let window = at.window;
                at.window += 1;
                lap.windows_left -= 1;
                let nr = match hand {
                    Hand::Front | Hand::Shed => vma.nr_mapped_in(window),
                    Hand::Back => vma.nr_detached_in(window),
                };
                if nr > 0 {
                    return Some((Arc::clone(vma), vma.window(window)));
                }
            }
            if at.window >= vma.nr_windows() {
                *at = Position {
                    vma: VmaId(id.0 + 1),
                    window: 0,
                };
            }
        }
        None
    }
}
