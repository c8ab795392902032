//! Copies between windows that go on while the program does, and what the peer maps of a window.
//!
//! A copy holds the pages of its window until it is over, so a window that is unregistered
//! meanwhile is unpinned after it. Copies, marks and signals are in one order, that of the channel;
//! but the channel copies whole lines, and the processor does the ends of a copy at once, unless
//! somebody waits for the [last bytes](Tail::Last).
//!
//! Linux counterpart: drivers/misc/mic/scif/scif_rma.c, scif_fence.c and scif_mmap.c, version 4.19

use super::{FenceMark, Offset, Pages, Scif, Worker};
use crate::engine::{DmaFence, FarEnd, Job, until_done};
use crate::{DeviceMemory, DmaError};
use core::ops::Range;
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::bus::{BusAddr, StaleDma};
use std::sync::Arc;

/// Bytes that the channel copies at a time, and at a multiple of which it begins.
pub const LINE: usize = 64;

/// A copy between a window of this side and one of the peer's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rma {
    /// The window here, and where in it the copy begins, in bytes.
    pub here: (Offset, usize),
    /// The peer's window, and where in it.
    pub there: (Offset, usize),
    /// Bytes.
    pub nr_bytes: usize,
    /// When the last ones land.
    pub tail: Tail,
}

/// When the last bytes of a copy land.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tail {
    /// When it suits. Where a copy fills lines, bytes at its ends that fill none land before the
    /// call returns: before the others, and before earlier copies that are still queued.
    AnyTime,
    /// After all others: whoever sees the last byte sees the whole copy. If a reset loses some of
    /// it, what comes after that is lost, too.
    Last,
}

/// Who copies a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    /// The program's own processor, before the call returns.
    Processor,
    /// The channel, in order.
    Channel,
}

/// The pieces of a copy that begins at `from` in its window, in the order in which they are begun.
fn pieces(from: usize, nr_bytes: usize, tail: Tail) -> impl Iterator<Item = (Range<usize>, By)> {
    let end = from + nr_bytes;
    let lines = from.next_multiple_of(LINE)..end / LINE * LINE;
    let all = match tail {
        Tail::AnyTime if !lines.is_empty() => [
            (from..lines.start, By::Processor),
            (lines.end..end, By::Processor),
            (lines, By::Channel),
        ],
        Tail::AnyTime => [
            (from..end, By::Channel),
            (end..end, By::Channel),
            (end..end, By::Channel),
        ],
        Tail::Last => {
            let last = (end.saturating_sub(1) / LINE * LINE).max(from);
            [
                (from..last, By::Channel),
                (last..end, By::Channel),
                (end..end, By::Channel),
            ]
        }
    };
    all.into_iter().filter(|(bytes, _)| !bytes.is_empty())
}

/// A copy whose end nobody has seen yet: its window stays pinned.
pub(super) struct UnderWay {
    fence: DmaFence,
    _pages: Arc<Pages>,
}

/// A part of a copy that stays in one page.
struct Part {
    /// The page of the window.
    page: usize,
    /// Where in the page.
    at: usize,
    nr_bytes: usize,
    /// How much of the copy comes before it.
    done: usize,
}

/// Which way a copy goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    There,
    Here,
}

/// The pages of a copy, in order.
fn parts(from: usize, nr_bytes: usize) -> impl Iterator<Item = Part> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let (start, left) = (from + done, nr_bytes - done);
        let at = start % PAGE_SIZE;
        let part = Part {
            page: start / PAGE_SIZE,
            at,
            nr_bytes: left.min(PAGE_SIZE - at),
            done,
        };
        done += part.nr_bytes;
        (left > 0).then_some(part)
    })
}

impl Scif {
    /// Queues a copy from a window here to one of the peer's, and does not wait for it.
    ///
    /// # Errors
    ///
    /// [`DmaError::Unregistered`] if the bytes are in no window of this side, [`DmaError::Stopped`]
    /// if they are in none of the peer's, or one of the two is gone. Nothing was copied then,
    /// unless the channel was stopped in the middle.
    pub fn write_to(&self, rma: &Rma) -> Result<(), DmaError> {
        self.queue(rma, Way::There)
    }

    /// Queues a copy to a window here from one of the peer's, and does not wait for it.
    ///
    /// # Errors
    ///
    /// As [`write_to`](Self::write_to).
    pub fn read_from(&self, rma: &Rma) -> Result<(), DmaError> {
        self.queue(rma, Way::Here)
    }

    /// Has `value` stored at `at` in the peer's memory when every copy that was queued so far is
    /// over, and does not wait for it.
    ///
    /// # Errors
    ///
    /// [`DmaError::Stopped`]
    pub fn signal(&self, at: usize, value: u64) -> Result<(), DmaError> {
        let peer = Arc::clone(&self.peer);
        let job = Job::status(Box::new(move |_| peer.store(at, &value.to_le_bytes())));
        self.submit(&job).map(|_| ())
    }

    fn queue(&self, rma: &Rma, way: Way) -> Result<(), DmaError> {
        self.retire();
        let (offset, from) = rma.here;
        let (run, pages) = self.window(offset)?;
        let room = run.nr as usize * PAGE_SIZE;
        if from.checked_add(rma.nr_bytes).is_none_or(|end| end > room) {
            return Err(DmaError::Unregistered { page: run.end() });
        }
        let there = self.peer.place(rma.there.0, rma.there.1, rma.nr_bytes);
        let there = there.ok_or(DmaError::Stopped)?;
        let mut before = None;
        for (bytes, by) in pieces(from, rma.nr_bytes, rma.tail) {
            let there = there + (bytes.start - from);
            for part in parts(bytes.start, bytes.len()) {
                let there = there + part.done;
                match by {
                    By::Processor => self.copy_now(&pages, &part, there, way)?,
                    By::Channel => {
                        let fence = self.queue_part((&pages, &part), there, way, before)?;
                        before = (rma.tail == Tail::Last).then_some(fence);
                    }
                }
            }
        }
        Ok(())
    }

    /// Queues a part, which is lost if that `before` it is.
    fn queue_part(
        &self,
        (pages, part): (&Arc<Pages>, &Part),
        there: usize,
        way: Way,
        before: Option<DmaFence>,
    ) -> Result<DmaFence, DmaError> {
        let (at, peer) = (pages.at[part.page], Arc::clone(&self.peer));
        let job = match way {
            Way::There => {
                let far: FarEnd = Box::new(move |bytes| peer.store(there, bytes));
                Job::to_far_end(at, part.at, part.nr_bytes, far)
            }
            Way::Here => {
                let far: FarEnd = Box::new(move |bytes| peer.load(there, bytes));
                Job::from_far_end(at, part.at, part.nr_bytes, far)
            }
        }
        .after(before);
        // Listed first: whoever stops the endpoint finds each copy that was queued before.
        let copy = UnderWay {
            fence: job.fence().clone(),
            _pages: Arc::clone(pages),
        };
        self.under_way.lock().push(copy);
        self.submit(&job).inspect_err(|_| {
            job.abandon();
            self.retire();
        })
    }

    /// The caller holds the pages, so nobody has to wait for it.
    fn copy_now(&self, pages: &Pages, part: &Part, there: usize, way: Way) -> Result<(), DmaError> {
        let (at, mut bytes) = (pages.at[part.page], vec![0; part.nr_bytes]);
        let copied = match way {
            Way::There => self.memory.read(at, part.at, &mut bytes),
            Way::Here => {
                self.peer.load(there, &mut bytes);
                self.memory.write(at, part.at, &bytes)
            }
        };
        copied.map_err(DmaError::Stale)?;
        if way == Way::There {
            self.peer.store(there, &bytes);
        }
        Ok(())
    }

    /// The window at an offset.
    fn window(&self, offset: Offset) -> Result<(PageRun, Arc<Pages>), DmaError> {
        let rma = self.rma.lock();
        if rma.is_over || !self.endpoint.is_connected() {
            return Err(DmaError::Stopped);
        }
        let window = rma.windows.iter().find(|window| window.offset == offset);
        let window = window.ok_or(DmaError::Unregistered { page: 0 })?;
        Ok((window.run, Arc::clone(&window.pages)))
    }

    /// Puts a job into the order of copies, when there is room for it.
    pub(super) fn submit(&self, job: &Job) -> Result<DmaFence, DmaError> {
        until_done(|| {
            let mut last = self.last.lock();
            let submitted = self.channel.submit(job)?.then(|| job.fence().clone());
            if submitted.is_some() {
                last.clone_from(&submitted);
            }
            Ok(submitted)
        })
    }

    /// Lets go of the windows of copies that are over, with no lock held.
    pub(super) fn retire(&self) {
        let mut under_way = self.under_way.lock();
        let is_over = |copy: &mut UnderWay| copy.fence.is_signalled();
        let over: Vec<UnderWay> = under_way.extract_if(.., is_over).collect();
        drop(under_way);
        drop(over);
    }

    /// Hands pages of a window to a driver of the peer, which uses them by their bus addresses:
    /// `nr` of them from `first` on.
    ///
    /// # Errors
    ///
    /// [`DmaError::Unregistered`], also if the window has fewer; [`DmaError::Stopped`].
    pub fn pages_for_peer(
        &self,
        offset: Offset,
        first: usize,
        nr: usize,
    ) -> Result<PeerPages, DmaError> {
        // Counted first: whoever stops the endpoint closes its windows, and then looks for this.
        let mut lent = PeerPages::of(&self.worker);
        let (run, pages) = self.window(offset)?;
        let end = first.checked_add(nr);
        let end = end.filter(|&end| nr > 0 && end <= run.nr as usize);
        let end = end.ok_or(DmaError::Unregistered { page: run.end() })?;
        (lent.held, lent.range) = (Some(pages), first..end);
        Ok(lent)
    }

    /// Maps a window for the programs of the peer, which load and store in it.
    ///
    /// # Errors
    ///
    /// [`DmaError::Unregistered`], [`DmaError::Stopped`].
    pub fn map_for_peer(&self, offset: Offset) -> Result<PeerMapping, DmaError> {
        let (run, _) = self.window(offset)?;
        let pages = self.pages_for_peer(offset, 0, run.nr as usize)?;
        Ok(PeerMapping {
            memory: Arc::clone(&self.memory),
            pages,
        })
    }

    /// A place in the order of copies: after all that were queued so far.
    pub fn mark(&self) -> FenceMark {
        FenceMark {
            last: self.last.lock().clone(),
        }
    }
}

/// Pages of a window in the hands of the peer. They stay pinned until this is dropped, also after
/// the window was unregistered, or the endpoint was stopped: the peer cannot unpin pages of another
/// node, so it tells the worker there.
pub struct PeerPages {
    worker: Arc<Worker>,
    /// There, once the peer has this, until the drop.
    held: Option<Arc<Pages>>,
    range: Range<usize>,
}

impl PeerPages {
    /// Nothing yet, but counted.
    fn of(worker: &Arc<Worker>) -> Self {
        worker.lent.lock().nr += 1;
        Self {
            worker: Arc::clone(worker),
            held: None,
            range: 0..0,
        }
    }

    /// Where the peer's hardware finds them, in order. Not to be used after this is dropped.
    ///
    /// # Panics
    ///
    /// Never: the pages are there until the drop.
    pub fn addresses(&self) -> &[BusAddr] {
        let held = self.held.as_ref().expect("they are held until the drop");
        &held.at[self.range.clone()]
    }
}

impl Drop for PeerPages {
    fn drop(&mut self) {
        let mut lent = self.worker.lent.lock();
        match self.held.take() {
            Some(pages) => lent.returned.push(pages),
            None => lent.nr -= 1,
        }
        drop(lent);
        self.worker.bell.ring();
    }
}

impl core::fmt::Debug for PeerPages {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PeerPages")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

/// A window as the peer has it mapped: it has the [pages](PeerPages).
pub struct PeerMapping {
    memory: Arc<dyn DeviceMemory>,
    pages: PeerPages,
}

impl PeerMapping {
    /// Loads bytes, which stay in one page of the window.
    ///
    /// # Errors
    ///
    /// [`StaleDma`], which nobody should see: the pages are pinned.
    ///
    /// # Panics
    ///
    /// If they are not in the window.
    pub fn load(&self, at: usize, into: &mut [u8]) -> Result<(), StaleDma> {
        let page = self.pages.addresses()[at / PAGE_SIZE];
        self.memory.read(page, at % PAGE_SIZE, into)
    }

    /// Stores bytes, as [`load`](Self::load) loads them.
    ///
    /// # Errors
    ///
    /// [`StaleDma`]
    ///
    /// # Panics
    ///
    /// If they are not in the window.
    pub fn store(&self, at: usize, from: &[u8]) -> Result<(), StaleDma> {
        let page = self.pages.addresses()[at / PAGE_SIZE];
        self.memory.write(page, at % PAGE_SIZE, from)
    }
}

impl core::fmt::Debug for PeerMapping {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PeerMapping")
            .field("pages", &self.pages)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_cut_at_pages_and_nothing_is_lost() {
        for (from, nr_bytes) in [(0, 0), (0, 1), (PAGE_SIZE - 1, 2), (5, 3 * PAGE_SIZE)] {
            let mut end = from;
            for part in parts(from, nr_bytes) {
                assert_eq!(part.page * PAGE_SIZE + part.at, end, "in order");
                assert_eq!(part.done, end - from);
                assert!(part.nr_bytes > 0 && part.at + part.nr_bytes <= PAGE_SIZE);
                end += part.nr_bytes;
            }
            assert_eq!(end, from + nr_bytes);
        }
    }

    #[test]
    fn pieces_are_the_copy_and_an_ordered_tail_comes_last() {
        for (from, nr) in [
            (0, 0),
            (0, 1),
            (3, 64),
            (8, 150),
            (64, 64),
            (60, 8),
            (1, 300),
        ] {
            for tail in [Tail::AnyTime, Tail::Last] {
                let all: Vec<_> = pieces(from, nr, tail).collect();
                let mut bytes: Vec<usize> = all.iter().flat_map(|(one, _)| one.clone()).collect();
                let last = bytes.last().copied();
                bytes.sort_unstable();
                assert!(
                    bytes.into_iter().eq(from..from + nr),
                    "{from} {nr} {tail:?}"
                );
                if tail == Tail::Last && nr > 0 {
                    assert_eq!(last, Some(from + nr - 1));
                    assert!(all.iter().all(|(_, by)| *by == By::Channel));
                }
            }
        }
        let first = pieces(8, 150, Tail::AnyTime)
            .map(|(one, by)| (one.start, by))
            .nth(1);
        assert_eq!(first, Some((128, By::Processor)), "the tail overtakes");
    }
}
