//! Guards that keep their mapping, and the operations of devices that outlive them.

use crate::mapping::Shared;
use core::ops::Deref;
use pinless_host::{GuardError, HostMapping};
use pinless_mm::addr::PageRun;
use pinless_mm::gfp::Gfp;
use pinless_mm::mm_struct::{self, PinError, PinHolder};
use pinless_mm::primary_mmu::Access;
use std::sync::Arc;

/// Keeps pages of a [`Mapping`](crate::Mapping) resident, and reads and writes them without a trap,
/// until dropped. It owns a share in the mapping: a mapping that is dropped earlier is unmapped
/// with its last guard.
///
/// It gives out no reference, since a device may write the same bytes at any moment: they are
/// copied, or loaded and stored as words. What it does is told at [`pinless_host::Guard`].
#[derive(Debug)]
#[must_use = "the pages may be taken back when this is dropped"]
pub struct Guard {
    /// Before the share: the last one unmaps, which finds no pin of ours then.
    guard: pinless_host::Guard<Arc<HostMapping>>,
    shared: Arc<Shared>,
}

impl Guard {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        run: PageRun,
        access: Access,
    ) -> Result<Self, GuardError> {
        let host = Arc::clone(&shared.host);
        Ok(Self {
            guard: pinless_host::Guard::new(host, &shared.vma, run, access)?,
            shared: Arc::clone(shared),
        })
    }

    /// Says that a device, or the kernel, is going to use the pages until
    /// [`complete`](Io::complete). If the guard is dropped before that, the pages are *parked*:
    /// they stay where they are, mapped and charged, until the operation is over.
    ///
    /// # Errors
    ///
    /// [`PinError::TooManyPins`] when a page has too many operations at once, and
    /// [`PinError::Fault`] when the address space was killed meanwhile.
    pub fn begin_io(&self) -> Result<Io, PinError> {
        let (run, access) = (self.guard.run(), self.guard.access());
        let pin = self.shared.vma.pin(run, access, Gfp::Kernel)?;
        Ok(self.io_with(pin))
    }

    /// The same, with the pages pinned in the name of `holder`: so it is told who uses them, also
    /// when the guard is gone.
    ///
    /// # Errors
    ///
    /// See [`begin_io`](Self::begin_io).
    ///
    /// # Panics
    ///
    /// If `holder` is of another address space.
    pub fn begin_io_for(&self, holder: &PinHolder) -> Result<Io, PinError> {
        let (run, access) = (self.guard.run(), self.guard.access());
        let vma = &self.shared.vma;
        Ok(self.io_with(vma.pin_for(holder, run, access, Gfp::Kernel)?))
    }

    fn io_with(&self, pin: mm_struct::Pin) -> Io {
        self.shared.io.begin();
        Io {
            pin: Some(pin),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Deref for Guard {
    type Target = pinless_host::Guard<Arc<HostMapping>>;

    fn deref(&self) -> &Self::Target {
        &self.guard
    }
}

/// An operation of a device on the pages of a guard, from [`Guard::begin_io`] to
/// [`complete`](Self::complete).
///
/// If it is dropped without `complete`, nobody knows whether the device is done: then the pages
/// stay parked for good, which is counted (`io_abandoned`). Memory is lost that way, but never
/// somebody else's data.
#[derive(Debug)]
#[must_use = "an operation that is not completed keeps its pages for good"]
pub struct Io {
    /// Before the share, as in a guard.
    pin: Option<mm_struct::Pin>,
    shared: Arc<Shared>,
}

impl Io {
    /// The address of the first byte, for the device. Valid until the operation is over.
    pub fn as_ptr(&self) -> *mut u8 {
        let run = self.run();
        let offset = run.first as usize * pinless_mm::addr::PAGE_SIZE;
        self.shared.host.as_ptr().wrapping_add(offset)
    }

    /// The pages.
    pub fn run(&self) -> PageRun {
        let pin = self.pin.as_ref();
        pin.expect("taken by `complete` alone, which consumes this")
            .run()
    }

    /// The device does not use the pages any more, and will not.
    pub fn complete(mut self) {
        drop(self.pin.take());
        self.shared.io.complete();
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        if let Some(pin) = self.pin.take() {
            // The device may write there at any time from now on.
            core::mem::forget((pin, Arc::clone(&self.shared)));
            self.shared.io.abandon();
        }
    }
}

/// Keeps pages of a [`Mapping`](crate::Mapping) resident and where they are, for a device that
/// reaches them through [`Vma`](crate::Vma) and its bus, until dropped. It owns a share in the
/// mapping, as a [`Guard`] does.
#[derive(Debug)]
#[must_use = "the pages may be taken back when this is dropped"]
pub struct Pin {
    /// Before the share, as in a guard.
    pin: mm_struct::Pin,
    _shared: Arc<Shared>,
}

impl Pin {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        run: PageRun,
        access: Access,
    ) -> Result<Self, PinError> {
        Ok(Self {
            pin: shared.vma.pin(run, access, Gfp::Kernel)?,
            _shared: Arc::clone(shared),
        })
    }

    pub(crate) fn new_for(
        shared: &Arc<Shared>,
        holder: &PinHolder,
        run: PageRun,
        access: Access,
    ) -> Result<Self, PinError> {
        Ok(Self {
            pin: shared.vma.pin_for(holder, run, access, Gfp::Kernel)?,
            _shared: Arc::clone(shared),
        })
    }
}

impl Deref for Pin {
    type Target = mm_struct::Pin;

    fn deref(&self) -> &Self::Target {
        &self.pin
    }
}
