//! How much an address space is to blame, and who is the most.
//!
//! Every address space is looked at: an order that is kept up to date would cost each fault. What
//! is looked at is one cache line of each, and none is taken hold of but the worst.
//!
//! Linux counterpart: `oom_badness`, `select_bad_process`.

use super::report::CONSIDERED_MAX;
use crate::memcg::Member;
use crate::mm_struct::{Mm, Rss};
use core::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// Never chosen.
pub(super) const OOM_SCORE_ADJ_MIN: i32 = -1000;

/// The pages that would come free, plus the adjustment in thousandths of the limit; `None` for
/// who must not be chosen, or would give nothing back.
pub(super) fn badness(rss: &Rss, limit_pages: u64) -> Option<i64> {
    let adj = rss.oom_score_adj.load(Ordering::Relaxed);
    if adj == OOM_SCORE_ADJ_MIN || rss.is_killed() {
        return None;
    }
    let held = |count: &core::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    let pages = (held(&rss.frames) + held(&rss.swapped)) as i64;
    if pages == 0 {
        return None;
    }
    Some(pages + i64::from(adj) * limit_pages as i64 / 1000)
}

/// The candidates of the highest badness, which comes first; of equals the younger.
pub(super) struct Worst {
    /// Weak: the last owner of an address space must not be whoever looks at many under a lock.
    mms: [(i64, Weak<Mm>); CONSIDERED_MAX],
    nr: usize,
    /// How many were considered.
    pub(super) candidates: u64,
}

impl Worst {
    /// Of `members`, youngest first. Allocates nothing.
    pub(super) fn of<'a>(members: impl Iterator<Item = &'a Member>, limit_pages: u64) -> Self {
        let mut worst = Self {
            mms: core::array::from_fn(|_| (0, Weak::new())),
            nr: 0,
            candidates: 0,
        };
        for member in members {
            if let Some(badness) = badness(&member.rss, limit_pages) {
                worst.consider(badness, member);
            }
        }
        worst
    }

    fn consider(&mut self, badness: i64, member: &Member) {
        self.candidates += 1;
        let place = self.mms[..self.nr].partition_point(|&(known, _)| known >= badness);
        if place == CONSIDERED_MAX {
            return;
        }
        self.nr = CONSIDERED_MAX.min(self.nr + 1);
        self.mms[place..self.nr].rotate_right(1);
        self.mms[place] = (badness, Weak::clone(&member.mm));
    }

    /// Those that are still there, with their badness.
    pub(super) fn mms(&self) -> impl Iterator<Item = (i64, Arc<Mm>)> {
        let known = self.mms[..self.nr].iter();
        known.filter_map(|(badness, mm)| Some((*badness, mm.upgrade()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Clock;
    use crate::limits::Limits;
    use crate::memcg::Memcg;

    #[derive(Debug)]
    struct NoTime;

    impl Clock for NoTime {
        fn now_ns(&self) -> u64 {
            0
        }
    }

    /// Address spaces with `(frames, oom_score_adj)`, oldest first, under a limit of 1000 pages.
    #[track_caller]
    fn check(held: &[(u64, i32)], candidates: u64, worst: &[(usize, i64)]) {
        let memcg = Memcg::new(Limits::new(1000 << 12), Arc::new(NoTime)).expect("a good limit");
        let mms: Vec<_> = held.iter().map(|_| memcg.new_mm("one")).collect();
        for (mm, &(frames, adj)) in mms.iter().zip(held) {
            mm.rss.frames.store(frames, Ordering::Relaxed);
            mm.set_oom_score_adj(adj);
        }
        let found = memcg.worst_now();
        let place = |mm: Arc<Mm>| mms.iter().position(|known| known.id() == mm.id());
        let named: Vec<_> = found
            .mms()
            .map(|(badness, mm)| (place(mm), badness))
            .collect();
        let worst: Vec<_> = worst
            .iter()
            .map(|&(at, badness)| (Some(at), badness))
            .collect();
        assert_eq!((found.candidates, named), (candidates, worst));
    }

    #[test]
    fn the_worst_come_first_and_of_equals_the_younger() {
        check(&[], 0, &[]);
        check(&[(0, 0), (5, -1000)], 0, &[]);
        check(&[(1, 0), (3, 0), (2, 0)], 3, &[(1, 3), (2, 2), (0, 1)]);
        check(&[(2, 0), (2, 0), (2, 0)], 3, &[(2, 2), (1, 2), (0, 2)]);
        check(
            &[(9, -500), (1, 100), (50, 0)],
            3,
            &[(1, 101), (2, 50), (0, -491)],
        );
        let many = [1, 9, 2, 8, 3, 7, 4, 6, 5, 10].map(|frames| (frames, 0));
        let worst = [
            (9, 10),
            (1, 9),
            (3, 8),
            (5, 7),
            (7, 6),
            (8, 5),
            (6, 4),
            (4, 3),
        ];
        check(&many, 10, &worst);
    }
}
