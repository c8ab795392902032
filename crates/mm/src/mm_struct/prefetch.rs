//! Prefetch: pages come back before they are asked for.
//!
//! Each mapping remembers where its last hard faults were. If most of the steps between them are
//! the same, the pages ahead in that stride are filled together with the one that was asked for, in
//! the thread that asked: a trap costs more than a page. When a fault comes where the pages that
//! were filled end, twice as many are filled the next time. So a program that leaves the stride
//! pays for a few pages.
//!
//! What is in the file was written in clusters. When a second fault of late comes to one, the other
//! pages of it come back, too, in the order in which they were written: whatever order a program
//! has, if it had the same before.
//!
//! Paper: the majority stride of Leap (Al Maruf, Chowdhury, 2020). Linux counterpart:
//! `swap_vma_readahead` in `mm/swap_state.c`.

use super::Vma;
use super::demand::Demand;
use super::fault::FrameCharge;
use super::stored::in_file;
use super::vma::Owned;
use crate::addr::{PAGE_SIZE, PageBuf, PageIndex, PageRun};
use crate::memcg::stat::{add, count};
use crate::page::{State, Word};
use crate::reclaim::{Effort, InFlight, Spare};
use crate::swap::{Cluster, SLOT_BYTES_MAX, Stored};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Faults that are remembered.
const HISTORY: usize = 8;

/// Strides that are followed at the same time.
const STREAMS: usize = 4;

/// Clusters that are remembered.
const CLUSTERS: usize = 4;

/// The most pages that are filled with one fault.
const AHEAD_MAX: u32 = 32;

/// And no more than this share of all frames.
const FRAMES_SHARE: u64 = 4;

/// What is filled ahead of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ahead {
    stride: i32,
    nr: u32,
}

/// Where the hard faults of a mapping were. All of it is a hint: threads that change it at the same
/// time may lose what the other noted.
#[derive(Debug)]
pub(super) struct Trend {
    recent: [AtomicU32; HISTORY],
    nr_noted: AtomicU32,
    /// Where the next fault of each stream is expected, and its [`Ahead`]; see [`Stream`].
    streams: [AtomicU64; STREAMS],
    nr_begun: AtomicU32,
    /// The clusters of the last faults that read the file, one more than its number each.
    clusters: [AtomicU32; CLUSTERS],
    nr_clusters: AtomicU32,
}

/// A stride that is followed: 32 bits of page, 26 of stride, 6 of how many are filled ahead.
#[derive(Clone, Copy)]
struct Stream {
    expected: PageIndex,
    ahead: Ahead,
}

const AHEAD_BITS: u32 = 6;
const STRIDE_BITS: u32 = 26;

impl Stream {
    fn pack(self) -> u64 {
        let stride = self.ahead.stride as u64 & ((1 << STRIDE_BITS) - 1);
        u64::from(self.expected) << 32 | stride << AHEAD_BITS | u64::from(self.ahead.nr)
    }

    fn unpack(word: u64) -> Option<Self> {
        let nr = word as u32 & ((1 << AHEAD_BITS) - 1);
        let stride = ((word as u32) >> AHEAD_BITS << (32 - STRIDE_BITS)) as i32;
        let ahead = Ahead {
            stride: stride >> (32 - STRIDE_BITS),
            nr,
        };
        let expected = (word >> 32) as u32;
        (nr > 0).then_some(Self { expected, ahead })
    }
}

impl Trend {
    pub(super) fn new() -> Self {
        Self {
            recent: [const { AtomicU32::new(0) }; HISTORY],
            nr_noted: AtomicU32::new(0),
            streams: [const { AtomicU64::new(0) }; STREAMS],
            nr_begun: AtomicU32::new(0),
            clusters: [const { AtomicU32::new(0) }; CLUSTERS],
            nr_clusters: AtomicU32::new(0),
        }
    }

    /// Notes a fault that read `cluster`; tells whether another one did lately.
    fn note_cluster(&self, cluster: Cluster) -> bool {
        let code = cluster + 1;
        let known = |slot: &&AtomicU32| slot.load(Ordering::Relaxed) == code;
        if let Some(slot) = self.clusters.iter().find(known) {
            // It is read once.
            slot.store(0, Ordering::Relaxed);
            return true;
        }
        let nth = self.nr_clusters.fetch_add(1, Ordering::Relaxed) as usize;
        self.clusters[nth % CLUSTERS].store(code, Ordering::Relaxed);
        false
    }

    /// Notes a hard fault on `page`; tells what to fill ahead of it, at most `nr_max` pages.
    fn note(&self, page: PageIndex, nr_max: u32) -> Option<Ahead> {
        for slot in &self.streams {
            let stream = Stream::unpack(slot.load(Ordering::Relaxed));
            if let Some(stream) = stream.filter(|stream| stream.expected == page) {
                let nr = (stream.ahead.nr * 2).min(nr_max);
                return Self::follow(slot, page, Ahead { nr, ..stream.ahead });
            }
        }
        let stride = self.majority(page)?;
        let nth = self.nr_begun.fetch_add(1, Ordering::Relaxed) as usize;
        let slot = &self.streams[nth % STREAMS];
        let nr = nr_max.min(2);
        Self::follow(slot, page, Ahead { stride, nr })
    }

    /// The stream goes on after what is filled ahead of `page`; it ends at the end of numbers.
    fn follow(slot: &AtomicU64, page: PageIndex, ahead: Ahead) -> Option<Ahead> {
        let expected = ahead.page_after(page, ahead.nr + 1);
        let word = expected.map_or(0, |expected| Stream { expected, ahead }.pack());
        slot.store(word, Ordering::Relaxed);
        Some(ahead)
    }

    /// The step that more than half of the remembered faults were apart, this one included.
    fn majority(&self, page: PageIndex) -> Option<i32> {
        let nr = self.nr_noted.fetch_add(1, Ordering::Relaxed) as usize;
        self.recent[nr % HISTORY].store(page, Ordering::Relaxed);
        if nr + 1 < HISTORY {
            return None;
        }
        let at = |age: usize| self.recent[(nr - age) % HISTORY].load(Ordering::Relaxed);
        let step = |age: usize| i64::from(at(age)) - i64::from(at(age + 1));
        let steps = || (0..HISTORY - 1).map(step);
        // The vote of Boyer and Moore: whoever has a majority is left over.
        let (mut candidate, mut votes) = (0, 0_u32);
        for step in steps() {
            match votes {
                0 => (candidate, votes) = (step, 1),
                _ if step == candidate => votes += 1,
                _ => votes -= 1,
            }
        }
        let nr_alike = steps().filter(|&step| step == candidate).count();
        let is_far = candidate.unsigned_abs() >= 1 << (STRIDE_BITS - 1);
        let is_stride = nr_alike > (HISTORY - 1) / 2 && candidate != 0 && !is_far;
        is_stride.then_some(candidate as i32)
    }
}

impl Ahead {
    /// The page `steps` strides after `page`.
    fn page_after(self, page: PageIndex, steps: u32) -> Option<PageIndex> {
        let at = i64::from(page) + i64::from(self.stride) * i64::from(steps);
        PageIndex::try_from(at).ok()
    }
}

impl Vma {
    /// A hard fault on `page` was resolved in this thread: fills what is ahead of it, as far as
    /// frames can be had without calling or waiting for anybody.
    pub(super) fn prefetch(&self, page: PageIndex, effort: Effort) {
        // Else what was filled first would make room for what is filled last.
        let share = self.memcg().frames().max() / FRAMES_SHARE;
        let nr_max = share.clamp(1, u64::from(AHEAD_MAX)) as u32;
        let Some(ahead) = self.trend.note(page, nr_max) else {
            return;
        };
        let steps = (1..=ahead.nr).map_while(|steps| ahead.page_after(page, steps));
        let pages = steps.take_while(|&next| next < self.nr_pages());
        if self.primary().reuse().is_some() {
            self.fetch_together(pages.clone(), effort);
        } else {
            self.memcg().make_room_for(u64::from(ahead.nr), effort);
        }
        // What is left.
        for next in pages {
            if self.fetch(next, effort).is_none() {
                return;
            }
        }
    }

    /// Fills pages from the compressed store in frames that come free for it, neighbours by one
    /// operation of the machine, as far as there are any.
    fn fetch_together(&self, pages: impl Iterator<Item = PageIndex> + Clone, effort: Effort) {
        let mut pages = pages.filter(|&page| self.stored_plainly(self.pages.load(page)).is_some());
        let mut nr_left = pages.clone().count() as u32;
        while nr_left > 0 {
            let Some(spare) = self.take_spare::<{ AHEAD_MAX as usize }>(nr_left, effort) else {
                return;
            };
            let nr_wanted = spare.nr();
            nr_left = nr_left.saturating_sub(nr_wanted);
            let nr = self.fetch_into(spare, &mut pages);
            add(&self.stat().prefetched, u64::from(nr));
            if nr < nr_wanted {
                return;
            }
        }
    }

    /// Fills the next of `pages` in the frames of `spare`; how many.
    fn fetch_into(
        &self,
        mut spare: Spare<'_, { AHEAD_MAX as usize }>,
        pages: &mut impl Iterator<Item = PageIndex>,
    ) -> u32 {
        let _in_flight = InFlight::new(&self.memcg().reclaim);
        let mut read = [(0, Word::EMPTY); AHEAD_MAX as usize];
        let mut nr = 0;
        let mut contents = [0; PAGE_SIZE];
        while nr < spare.nr() {
            let Some(page) = pages.next() else { break };
            if let Some(owned) = self.read_owned(page, &mut contents) {
                spare.write(nr, &contents);
                read[nr as usize] = (owned.page, owned.was);
                nr += 1;
            }
        }
        let read = &read[..nr as usize];
        let mut nr_mapped = 0;
        while nr_mapped < nr {
            let left = read[nr_mapped as usize..].iter();
            match spare.map(PageRun::leading(left.map(|&(page, _)| page))) {
                Ok(nr) => nr_mapped += nr,
                Err(stopped) => {
                    nr_mapped += stopped.nr_done;
                    break;
                }
            }
        }
        for (nth, &(page, was)) in (0..).zip(read) {
            let owned = Owned { page, was };
            if nth < nr_mapped {
                self.mm().rss.frames.fetch_add(1, Ordering::Relaxed);
                self.publish_filled(owned, Demand::Ahead, false);
            } else {
                self.restore(owned);
            }
        }
        nr_mapped
    }

    /// Owns a page and reads it from the store, if it is stored plainly. What is wrong with its
    /// contents is told to whoever asks for them.
    fn read_owned(&self, page: PageIndex, contents: &mut PageBuf) -> Option<Owned> {
        let seen = self.pages.load(page);
        let stored = self.stored_plainly(seen)?;
        let owned = self.try_own(page, seen)?;
        let read = self.memcg().zswap.load(self.owner(page), stored, contents);
        if read.is_err() || self.gone().is_some() {
            self.restore(owned);
            return None;
        }
        Some(owned)
    }

    /// The stored copy of a page that comes from the compressed store, and leaves it then.
    fn stored_plainly(&self, seen: Word) -> Option<Stored> {
        let stored = seen.copy().filter(|_| seen.state() == State::Swapped)?;
        (in_file(seen).is_none() && !self.is_kept(stored, Demand::Ahead)).then_some(stored)
    }

    /// A fault was resolved from a cluster of the file in this thread: fills what was written with
    /// it, as far as frames can be had without calling or waiting for anybody.
    #[inline(never)]
    pub(super) fn prefetch_cluster(&self, cluster: Cluster) {
        if !self.trend.note_cluster(cluster) {
            return;
        }
        let memcg = self.memcg();
        let Some(mut around) = memcg.file().and_then(|file| file.look_around(cluster)) else {
            return;
        };
        let mut slot = [0; SLOT_BYTES_MAX];
        let mut nr_left = AHEAD_MAX;
        while nr_left > 0
            && let Some((handle, (owner, tag), len)) = around.next_slot(&mut slot)
        {
            let page = owner.page();
            if owner != self.owner(page) || page >= self.nr_pages() {
                continue;
            }
            let seen = self.pages.load(page);
            if in_file(seen) != Some((handle, tag)) {
                continue;
            }
            if memcg.levels().any(|level| level.room() == 0)
                || self.fetch_from((page, seen), &slot[..len], tag).is_none()
            {
                return;
            }
            nr_left -= 1;
        }
    }

    /// Fills a page, found as `seen`, from its slot in the file. `None` when it cannot be.
    fn fetch_from(&self, (page, seen): (PageIndex, Word), slot: &[u8], tag: u16) -> Option<()> {
        let mut contents = [0; PAGE_SIZE];
        let (zswap, whose) = (&self.memcg().zswap, (self.owner(page), tag));
        // What is wrong with it is told to whoever asks for it.
        if zswap.unpack(slot, whose, &mut contents).is_err() {
            return Some(());
        }
        let charge = FrameCharge::take_charge(self)?;
        let _in_flight = InFlight::new(&self.memcg().reclaim);
        let Some(owned) = self.try_own(page, seen) else {
            return Some(());
        };
        if self.gone().is_some() {
            self.restore(owned);
            return None;
        }
        self.fill_with(owned, Demand::Ahead, charge, &contents)
            .ok()?;
        count(&self.stat().prefetched);
        Some(())
    }

    /// Fills a page from the compressed store, if it is there. `None` when it cannot be.
    fn fetch(&self, page: PageIndex, effort: Effort) -> Option<()> {
        let seen = self.pages.load(page);
        if seen.state() != State::Swapped || in_file(seen).is_some() {
            return Some(());
        }
        // What nobody has asked for takes nothing above `high`, nor what reclaim needs.
        if self.memcg().levels().any(|level| level.room() == 0) {
            return None;
        }
        let charge = FrameCharge::take_free(self, effort)?;
        let _in_flight = InFlight::new(&self.memcg().reclaim);
        let Some(owned) = self.try_own(page, seen) else {
            return Some(());
        };
        if self.gone().is_some() {
            self.restore(owned);
            return None;
        }
        // What is wrong with its contents is told to whoever asks for them.
        self.fill_stored(owned, Demand::Ahead, charge).ok()?;
        count(&self.stat().prefetched);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Faults on `pages`, one after the other: what is filled ahead of each.
    #[track_caller]
    fn check(pages: impl IntoIterator<Item = PageIndex>, wanted: &[Option<(i32, u32)>]) {
        let trend = Trend::new();
        let told: Vec<_> = pages
            .into_iter()
            .map(|page| {
                trend
                    .note(page, AHEAD_MAX)
                    .map(|ahead| (ahead.stride, ahead.nr))
            })
            .collect();
        let from = told.len() - wanted.len();
        assert_eq!(&told[from..], wanted, "{told:?}");
    }

    #[test]
    fn a_stride_is_followed_as_far_as_it_is_kept() {
        let first = || 0..7;
        check(first(), &[None; 7]);
        check(first().chain([7]), &[Some((1, 2))]);
        check(
            first().chain([7, 10, 15, 24, 41]),
            &[
                Some((1, 2)),
                Some((1, 4)),
                Some((1, 8)),
                Some((1, 16)),
                Some((1, 32)),
            ],
        );
        check((0..8).map(|nth| 800 - nth * 100), &[Some((-100, 2))]);
        // Most, not all.
        check([5, 6, 7, 90, 91, 92, 93, 94], &[Some((1, 2))]);
        check([5, 60, 7, 90, 91, 2, 93, 94], &[None]);
        check((0..8).map(|_| 3), &[None]);
        check([7, 1, 9, 3, 8, 2, 4, 0, 6, 5], &[None; 10]);
        check((0..8).map(|nth| nth << 28), &[None]);
    }

    #[test]
    fn few_frames_are_left_to_their_pages() {
        let trend = Trend::new();
        let told: Vec<_> = [0, 1, 2, 3, 4, 5, 6, 7, 9, 11]
            .map(|page| trend.note(page, 1))
            .into();
        let one = Some(Ahead { stride: 1, nr: 1 });
        assert_eq!(told[7..], [one; 3]);
    }

    #[test]
    fn a_cluster_is_read_at_the_second_fault_of_late() {
        let trend = Trend::new();
        let told = [7, 7, 7, 7, 1, 2, 3, 4, 5, 1, 5].map(|cluster| trend.note_cluster(cluster));
        let wanted = [
            false, true, false, true, false, false, false, false, false, false, true,
        ];
        assert_eq!(told, wanted);
    }

    #[test]
    fn a_stream_ends_with_the_pages() {
        let trend = Trend::new();
        let told: Vec<_> = (0..8)
            .rev()
            .map(|page| trend.note(page, AHEAD_MAX))
            .collect();
        assert_eq!(told[7], Some(Ahead { stride: -1, nr: 2 }));
        assert!(told[7].is_some_and(|ahead| ahead.page_after(0, 1).is_none()));
    }

    /// Threads that each go through pages of their own one by one, in turn, and fault where nothing
    /// was filled: a thread's first pages are alone, for its stride to show.
    #[test]
    fn streams_do_not_push_each_other_out() {
        let trend = Trend::new();
        let mut filled = [0; 3];
        let mut nr_faults = 0;
        let mut touch = |thread: usize, page: PageIndex| {
            if page < filled[thread] {
                return;
            }
            nr_faults += 1;
            let ahead = trend.note(thread as u32 * 10_000 + page, AHEAD_MAX);
            filled[thread] = page + 1 + ahead.map_or(0, |ahead| ahead.nr);
        };
        for thread in 0..3 {
            (0..20).for_each(|page| touch(thread, page));
        }
        for page in 20..1000 {
            (0..3).for_each(|thread| touch(thread, page));
        }
        // Of three times a thousand.
        assert!(nr_faults < 240, "{nr_faults}");
    }
}
