//! Unmapping and teardown.
//!
//! Linux counterpart: `do_munmap`, `exit_mmap`.

use super::vma::Life;
use super::{Mm, Scope, Vma};
use crate::addr::PageIndex;
use crate::mmu_notifier::{BracketError, Event};
use crate::reclaim::Awaited;
use core::fmt;
use std::sync::Arc;

/// Why a mapping cannot be unmapped. It is as it was.
#[derive(Clone, Debug)]
pub enum UnmapError {
    /// It was unmapped already, or belongs to another address space.
    NotMapped,
    /// A page is pinned.
    Pinned {
        /// The first such page.
        page: PageIndex,
    },
    /// A device did not let go in time.
    Notifier(BracketError),
}

impl fmt::Display for UnmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMapped => write!(
                f,
                "the mapping is not mapped in this address space; unmap it once, in its own"
            ),
            Self::Pinned { page } => {
                write!(
                    f,
                    "page {page} is pinned; drop its guards and finish its I/O first"
                )
            }
            Self::Notifier(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for UnmapError {}

impl Mm {
    /// Unmaps `vma`: tells every device, and gives all of its memory back. Blocks until the
    /// devices have let go.
    ///
    /// # Errors
    ///
    /// See [`UnmapError`].
    pub fn unmap(&self, vma: &Vma) -> Result<(), UnmapError> {
        if vma.mm().id() != self.id() {
            return Err(UnmapError::NotMapped);
        }
        if let Some(page) = vma.first_pinned() {
            return Err(UnmapError::Pinned { page });
        }
        vma.unmap()
    }

    /// Tears the address space down: has the devices release it, then unmaps everything.
    pub(super) fn exit(self: &Arc<Self>) {
        let _pending = self
            .memcg()
            .reclaim
            .pending
            .begin(self.memcg().clock.now_ns());
        self.mark_exited();
        let _sitting = self.memcg().watch.sit_as_program();
        let _is_gone = self.tear_down();
    }

    /// Goes on with a teardown: releases, which happens once, and unmaps. False when a device has
    /// not let go.
    pub(crate) fn tear_down(self: &Arc<Self>) -> bool {
        let deadline = self.memcg().limits.settle_deadline;
        let released = self.notifiers().release(deadline);
        match released.and_then(|()| self.unmap_all()) {
            Ok(()) => {
                self.forget_if_empty();
                true
            }
            Err(error) => {
                self.park(error);
                false
            }
        }
    }

    /// Unmaps every mapping of an address space that is left.
    fn unmap_all(&self) -> Result<(), BracketError> {
        for vma in self.vmas() {
            match vma.unmap() {
                // Somebody else is unmapping it, and finishes for us: see `Vma::unmap`.
                Ok(()) | Err(UnmapError::NotMapped | UnmapError::Pinned { .. }) => {}
                Err(UnmapError::Notifier(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// A device still uses the memory. It stays mapped and charged, where no hand finds it, until
    /// the device answers: then the settle worker goes on.
    fn park(self: &Arc<Self>, error: BracketError) {
        for vma in self.vmas() {
            self.memcg().forget_vma(&vma);
        }
        let awaited = match error {
            BracketError::Stuck { fence, .. } => Awaited::Fence(fence),
            BracketError::Overdue { .. } => Awaited::Return,
            BracketError::Panicked { .. } => Awaited::Nothing,
        };
        self.memcg().reclaim.parked.push(Arc::clone(self), awaited);
        self.memcg().reclaim.refused.wake_all();
    }

    /// Nobody need know of an address space that is torn down. As long as somebody else is
    /// unmapping a part of it, there are devices to tell: that one comes by here when it is done.
    fn forget_if_empty(&self) {
        if !self.vmas.read().is_empty() {
            return;
        }
        self.notifiers().forget_all();
        self.memcg().remove_mm(self.id());
        self.memcg().oom.forget(self.id());
    }
}

impl Vma {
    /// The first page that is pinned.
    pub(crate) fn first_pinned(&self) -> Option<PageIndex> {
        self.all()
            .pages()
            .find(|&page| self.pages.load(page).pins() > 0)
    }

    fn unmap(&self) -> Result<(), UnmapError> {
        if !self.begin_unmapping() {
            return Err(UnmapError::NotMapped);
        }
        loop {
            match self.tell_and_zap() {
                Ok(()) => {
                    if self.mm().is_exited() {
                        self.mm().forget_if_empty();
                    }
                    return Ok(());
                }
                Err(error) => {
                    self.set_life(Life::Alive);
                    // Whoever tore the address space down meanwhile left this mapping to us.
                    let is_ours = self.mm().is_exited() && self.begin_unmapping();
                    if !is_ours {
                        return Err(UnmapError::Notifier(error));
                    }
                }
            }
        }
    }

    fn tell_and_zap(&self) -> Result<(), BracketError> {
        let _pending = self
            .memcg()
            .reclaim
            .pending
            .begin(self.memcg().clock.now_ns());
        let deadline = self.memcg().limits.settle_deadline;
        let end = self.address(self.nr_pages());
        let notifiers = self.mm().notifiers();
        let began_ns = self.mm().note_begin();
        let _bracket = notifiers.start_blockable(self.base(), end, Event::Unmap, deadline)?;
        self.set_life(Life::Told);
        // Nothing comes back into the mapping now; what is moving stops by itself. What is pinned
        // goes with its last pin.
        while self.zap_told(self.all(), Scope::Gone).busy > 0 {}
        self.mm().forget_vma(self);
        self.mm().note_bracket(self.all(), began_ns);
        Ok(())
    }
}
