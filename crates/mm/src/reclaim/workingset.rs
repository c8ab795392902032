//! The working set: whether a page that comes back was taken too early.
//!
//! Each memory cgroup counts the pages that it evicts; the count is its age. A page that is evicted
//! keeps the age as its *shadow*, in its state word. When it comes back, as many pages were evicted
//! as the age has grown by: its *refault distance*. Had there been that many frames more for pages
//! that are not active, it would have stayed. If the active ones have so many, they may be used
//! less than this one, which is *active* from now on, too: the front hand passes over it. A share
//! of all frames counts as if active pages had it, or none would ever be the first.
//!
//! The hand makes an active page inactive again when nobody was seen to use it for a round, and at
//! most half of the pages are active: when there are more, it does so with all that it meets. So
//! pages that are all used alike push each other out as they would without.
//!
//! Linux counterpart: `mm/workingset.c`, `inactive_is_low` in `mm/vmscan.c`.

use super::domain::Domain;
use crate::memcg::Memcg;
use crate::memcg::stat::count;
use crate::mm_struct::Vma;
use crate::page::{SHADOW_BITS, Word};
use core::sync::atomic::{AtomicU64, Ordering};

/// A shadow has few bits: the age is kept in steps of this share of the frames, and what is older
/// than 16 times as many evictions as there are frames looks young again.
const STEPS: u64 = 64;

/// The steps of a quarter of the frames, as a power of two.
const QUARTER_ORDER: u32 = (STEPS / 4).ilog2();

/// The share of all frames that counts as if active pages had it.
const HEAD_START: u64 = 8;

/// As many count where there are few: what comes back within so many evictions is active, and stays
/// for a round, so that two who want more than there is do not always take from each other what
/// neither has used yet.
const HEAD_START_MIN: u64 = 8;

/// The age of a memory cgroup.
#[derive(Debug)]
pub(super) struct Age {
    nr_evicted: AtomicU64,
    /// The frames of a step, as a power of two.
    step_order: u32,
}

impl Age {
    pub(super) fn new(frames_max: u64) -> Self {
        Self {
            nr_evicted: AtomicU64::new(0),
            step_order: (frames_max / STEPS).max(1).ilog2(),
        }
    }

    fn shadow(&self) -> u16 {
        let steps = self.nr_evicted.load(Ordering::Relaxed) >> self.step_order;
        (steps & SHADOW_MASK) as u16
    }

    /// How many pages were evicted since the shadow was taken, about.
    fn distance(&self, shadow: u16) -> u64 {
        let steps = u64::from(self.shadow()).wrapping_sub(u64::from(shadow)) & SHADOW_MASK;
        steps << self.step_order
    }
}

const SHADOW_MASK: u64 = (1 << SHADOW_BITS) - 1;

impl Domain {
    /// `nr` pages are being evicted: their shadow, and whether a quarter of the frames has been
    /// evicted since this was last true.
    fn evict(&self, nr: u64) -> (u16, bool) {
        let before = self.age.nr_evicted.fetch_add(nr, Ordering::Relaxed);
        let quarter = self.age.step_order + QUARTER_ORDER;
        (
            self.age.shadow(),
            before >> quarter != (before + nr) >> quarter,
        )
    }
}

impl Vma {
    /// Whether a stored page has not come back for as many evictions as there are frames.
    pub(super) fn is_cold(&self, stored: Word) -> bool {
        let memcg = self.memcg();
        let distance = |shadow| memcg.domain.age.distance(shadow);
        let frames = memcg.frames().usage();
        stored
            .shadow()
            .is_none_or(|shadow| distance(shadow) >= frames)
    }

    /// Whether a stored page has not come back for `rounds` times as many evictions as there are
    /// frames.
    #[cfg(feature = "zstd")]
    pub(super) fn has_been_away(&self, stored: Word, rounds: u64) -> bool {
        let memcg = self.memcg();
        let frames = memcg.frames().usage().max(1);
        let distance = stored
            .shadow()
            .map(|shadow| memcg.domain.age.distance(shadow));
        distance.is_some_and(|distance| distance >= rounds * frames)
    }

    /// A page comes back from the store for somebody: as what. `filled` is its word, with what is
    /// left of the time when it was stored.
    pub(crate) fn refault_as(&self, filled: Word) -> Word {
        let shadow = filled.shadow();
        let filled = filled.without_shadow();
        let Some(shadow) = shadow else {
            return filled;
        };
        let memcg = self.memcg();
        count(&self.stat().workingset_refault);
        let head_start = (memcg.frames().usage() / HEAD_START).max(HEAD_START_MIN);
        if memcg.domain.age.distance(shadow) > memcg.domain.nr_active() + head_start {
            return filled;
        }
        count(&self.stat().workingset_activate);
        filled.active()
    }
}

impl Memcg {
    /// `nr` pages are being evicted: their shadow.
    pub(super) fn note_evicted(&self, nr: u64) -> u16 {
        let (shadow, is_quarter_over) = self.domain.evict(nr);
        if is_quarter_over {
            self.kick_compaction();
        }
        shadow
    }

    /// Whether there are fewer inactive pages than active ones.
    pub(super) fn is_inactive_low(&self) -> bool {
        2 * self.domain.nr_active() > self.frames().usage()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The distance after `nr` evictions with `frames`, and by how much it may be off.
    #[track_caller]
    fn check(frames: u64, before: u64, nr: u64) {
        let age = Age::new(frames);
        age.nr_evicted.store(before, Ordering::Relaxed);
        let shadow = age.shadow();
        age.nr_evicted.fetch_add(nr, Ordering::Relaxed);
        let off = age.distance(shadow).abs_diff(nr);
        assert!(
            off <= frames / STEPS,
            "{nr} evictions with {frames} frames: off by {off}"
        );
    }

    #[test]
    fn a_distance_is_known_to_a_step() {
        for frames in [4, 63, 64, 1000, 1 << 20] {
            for before in [0, 1, 12345, u64::from(u32::MAX)] {
                for times in [0, 1, 2, 3, 7] {
                    check(frames, before, frames * times);
                    check(frames, before, frames * times + frames / 3);
                }
            }
        }
    }
}
