//! The frames of the simulated machine.

use lockdep::sync::ShortLock;
use pinless_mm::addr::{PAGE_SIZE, PageBuf};
use std::fmt;
use std::sync::Arc;

/// The physical memory of a machine: so many frames, and no more.
///
/// All frames are made at start, so that the simulated machine allocates nothing either. How many
/// are in use is counted here, apart from the books of the memory manager: what it must not exceed
/// can be held against this count.
pub struct Frames {
    pool: ShortLock<Pool>,
    nr_frames: u64,
}

struct Pool {
    free: Vec<Box<PageBuf>>,
    nr_used_peak: u64,
}

/// A frame in use; goes back when dropped.
pub(crate) struct Frame {
    contents: Option<Box<PageBuf>>,
    home: Arc<Frames>,
}

impl Frames {
    /// A machine with `nr_frames` frames.
    pub fn new(nr_frames: u64) -> Arc<Self> {
        crate::lock_order::prime();
        let free = (0..nr_frames).map(|_| Box::new([0; PAGE_SIZE])).collect();
        let pool = Pool {
            free,
            nr_used_peak: 0,
        };
        Arc::new(Self {
            pool: ShortLock::new("sim.frames", pool),
            nr_frames,
        })
    }

    /// Frames in use now.
    pub fn nr_used(&self) -> u64 {
        self.nr_frames - self.pool.lock().free.len() as u64
    }

    /// The most frames that were in use at any moment.
    pub fn nr_used_peak(&self) -> u64 {
        self.pool.lock().nr_used_peak
    }

    /// A frame that holds `contents`, if one is free.
    pub(crate) fn take(self: &Arc<Self>, contents: &PageBuf) -> Option<Frame> {
        let mut pool = self.pool.lock();
        let mut frame = pool.free.pop()?;
        let nr_used = self.nr_frames - pool.free.len() as u64;
        pool.nr_used_peak = pool.nr_used_peak.max(nr_used);
        drop(pool);
        *frame = *contents;
        Some(Frame {
            contents: Some(frame),
            home: Arc::clone(self),
        })
    }
}

impl Frame {
    pub(crate) fn contents(&self) -> &PageBuf {
        self.contents.as_ref().expect("only the drop takes it")
    }

    pub(crate) fn contents_mut(&mut self) -> &mut PageBuf {
        self.contents.as_mut().expect("only the drop takes it")
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        if let Some(mut contents) = self.contents.take() {
            // Whoever reads on finds this, not what was there: a stale access shows.
            contents.fill(0xde);
            self.home.pool.lock().free.push(contents);
        }
    }
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames")
            .field("nr_frames", &self.nr_frames)
            .finish_non_exhaustive()
    }
}
