//! Objects of a device under construction: pages that are gathered one by one.
//!
//! Who gathers the pages of an object makes each of them resident, and each may need a frame that
//! reclaim has to find: perhaps among the pages that were gathered just before. Then the driver is
//! told to let go of what it is about to build, and may be asked to wait for itself. The cure is
//! neither a notifier that refuses nor one that does not do what it is told: a page is marked
//! *before* the next one is faulted, and reclaim, which looks at marks before it asks any
//! notifier, passes over it.
//!
//! The mark is a pin. [`Building::finish`] hands the pins to the finished object.
//!
//! Linux counterpart: `pin_user_pages` in a loop (`i915_gem_userptr.c`); the discussion of June
//! 2020 about a flag by which notifiers might fail.

use super::{Pin, PinError, PinHolder, Vma};
use crate::addr::{PageIndex, PageRun};
use crate::gfp::Gfp;
use crate::primary_mmu::Access;
use std::sync::Arc;

/// An object under construction. Its pages stay where they are until it is dropped or finished.
#[derive(Debug)]
#[must_use = "the marks are taken away when this is dropped"]
pub struct Building {
    vma: Arc<Vma>,
    access: Access,
    gfp: Gfp,
    holder: Option<PinHolder>,
    pins: Vec<Pin>,
}

impl Building {
    /// An object without pages yet, of memory of `vma`, which the device will use for `access`.
    pub fn new(vma: Arc<Vma>, access: Access, gfp: Gfp) -> Self {
        Self {
            vma,
            access,
            gfp,
            holder: None,
            pins: Vec::new(),
        }
    }

    /// The same, with its pages pinned in the name of `holder`.
    pub fn pinned_for(self, holder: &PinHolder) -> Self {
        let holder = Some(holder.clone());
        Self { holder, ..self }
    }

    /// Makes the next page resident and marks it. The pages may come in any order, and more than
    /// once. Not callable under a lock that a notifier takes, nor from a notifier.
    ///
    /// # Errors
    ///
    /// See [`PinError`]: what was added before stays marked.
    pub fn add(&mut self, page: PageIndex) -> Result<(), PinError> {
        let (run, access) = (PageRun::single(page), self.access);
        let pin = match &self.holder {
            Some(holder) => self.vma.pin_for(holder, run, access, self.gfp)?,
            None => self.vma.pin(run, access, self.gfp)?,
        };
        self.pins.push(pin);
        Ok(())
    }

    /// The pages, in the order in which they were added.
    pub fn pages(&self) -> impl Iterator<Item = PageIndex> {
        self.pins.iter().map(|pin| pin.run().first)
    }

    /// The object is built: a pin for each page, in the order in which they were added. An object
    /// that revalidates before each use, as one with an interval subscription does, drops them.
    pub fn finish(self) -> Vec<Pin> {
        self.pins
    }
}
