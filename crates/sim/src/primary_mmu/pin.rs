//! Pins that only the machine knows of: `pin_user_pages` by some kernel driver.

use super::{Page, SimMmu};
use crate::frames::Frame;
use pinless_mm::addr::{PageBuf, PageIndex};
use std::fmt;
use std::sync::Arc;

/// Keeps the frame that was at a page's address when it was taken.
///
/// The page cannot be detached meanwhile. A zap takes the frame from the address all the same, as
/// in the kernel: then the frame stays in use, unmapped, until the last pin goes.
pub struct KernelPin {
    mmu: Arc<SimMmu>,
    page: PageIndex,
    /// Frames of this page that were doomed before this pin was taken.
    nr_doomed: u64,
}

/// A frame that left its address while it was pinned.
pub(super) struct Doomed {
    /// The number of the frame among the doomed of its page.
    nth: u64,
    nr_pins: u32,
    frame: Frame,
}

impl SimMmu {
    /// Pins the frame at the address of `page`; `None` if there is none.
    pub fn kernel_pin(self: &Arc<Self>, page: PageIndex) -> Option<KernelPin> {
        let mut at = self.page(page).lock();
        at.address.as_ref()?;
        at.nr_pins += 1;
        Some(KernelPin {
            mmu: Arc::clone(self),
            page,
            nr_doomed: at.nr_doomed,
        })
    }
}

impl KernelPin {
    /// What is in the frame, wherever it is.
    pub fn read(&self) -> PageBuf {
        let at = self.mmu.page(self.page).lock();
        match at.doomed.iter().find(|doomed| doomed.nth == self.nr_doomed) {
            Some(doomed) => *doomed.frame.contents(),
            None => *at.pinned_frame().contents(),
        }
    }

    /// Whether the frame is still at the page's address.
    pub fn is_mapped(&self) -> bool {
        self.mmu.page(self.page).lock().nr_doomed == self.nr_doomed
    }
}

impl Drop for KernelPin {
    fn drop(&mut self) {
        let mut at = self.mmu.page(self.page).lock();
        let found = at
            .doomed
            .iter()
            .position(|doomed| doomed.nth == self.nr_doomed);
        let Some(found) = found else {
            at.nr_pins -= 1;
            return;
        };
        at.doomed[found].nr_pins -= 1;
        let freed = (at.doomed[found].nr_pins == 0).then(|| at.doomed.swap_remove(found));
        // The frame goes back after the lock is released: short locks do not nest.
        drop(at);
        drop(freed);
    }
}

impl Page {
    fn pinned_frame(&self) -> &Frame {
        self.address
            .as_ref()
            .expect("a pinned frame is at its address or doomed")
    }

    /// Keeps a frame that leaves its address for those who pinned it.
    pub(super) fn doom(&mut self, frame: Frame) {
        let nr_pins = core::mem::take(&mut self.nr_pins);
        self.doomed.push(Doomed {
            nth: self.nr_doomed,
            nr_pins,
            frame,
        });
        self.nr_doomed += 1;
    }
}

impl fmt::Debug for KernelPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelPin")
            .field("page", &self.page)
            .finish_non_exhaustive()
    }
}
