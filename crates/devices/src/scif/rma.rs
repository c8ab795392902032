//! Copies between windows that go on while the program does, and what the peer maps of a window.
//!
//! A copy holds the pages of its window until it is over, so a window that is unregistered
//! meanwhile is unpinned after it. Copies, marks and signals are in one order, that of the channel.
//!
//! Linux counterpart: drivers/misc/mic/scif/scif_rma.c, scif_fence.c and scif_mmap.c, version 4.19

use super::{FenceMark, Offset, Pages, Scif};
use crate::engine::{DmaFence, FarEnd, Job, until_done};
use crate::{DeviceMemory, DmaError};
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::bus::StaleDma;
use std::sync::Arc;

/// A copy between a window of this side and one of the peer's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rma {
    /// The window here, and where in it the copy begins, in bytes.
    pub here: (Offset, usize),
    /// The peer's window, and where in it.
    pub there: (Offset, usize),
    /// Bytes.
    pub nr_bytes: usize,
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
    /// if they are in none of the peer's, or one of the two is gone. Nothing was queued then,
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
        for part in parts(from, rma.nr_bytes) {
            let (at, there) = (pages.at[part.page], there + part.done);
            let peer = Arc::clone(&self.peer);
            let job = match way {
                Way::There => {
                    let far: FarEnd = Box::new(move |bytes| peer.store(there, bytes));
                    Job::to_far_end(at, part.at, part.nr_bytes, far)
                }
                Way::Here => {
                    let far: FarEnd = Box::new(move |bytes| peer.load(there, bytes));
                    Job::from_far_end(at, part.at, part.nr_bytes, far)
                }
            };
            let fence = self.submit(&job)?;
            let _pages = Arc::clone(&pages);
            self.under_way.lock().push(UnderWay { fence, _pages });
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

    /// Maps a window for the programs of the peer, which load and store in it.
    ///
    /// # Errors
    ///
    /// [`DmaError::Unregistered`], [`DmaError::Stopped`].
    pub fn map_for_peer(&self, offset: Offset) -> Result<PeerMapping, DmaError> {
        let (_, pages) = self.window(offset)?;
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

/// A window as the peer has it mapped. Its pages stay pinned until this is dropped, also after the
/// window was unregistered, or the endpoint was stopped.
pub struct PeerMapping {
    memory: Arc<dyn DeviceMemory>,
    pages: Arc<Pages>,
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
        let page = self.pages.at[at / PAGE_SIZE];
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
        let page = self.pages.at[at / PAGE_SIZE];
        self.memory.write(page, at % PAGE_SIZE, from)
    }
}

impl core::fmt::Debug for PeerMapping {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PeerMapping")
            .field("nr_pages", &self.pages.at.len())
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
}
