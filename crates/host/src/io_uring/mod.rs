//! Fixed buffers of io_uring over managed memory: a device that needs no special hardware.
//!
//! A buffer that is registered with io_uring is a translation that the kernel never updates: when
//! the memory manager gives a page another frame, a later fixed read reports success and its data
//! is lost, and a fixed write sends what was there before. [`Ring`] is such a device with manners:
//!
//! * **An operation in flight is a pin**, from submission to completion. Reclaim passes over its
//!   pages, and `unmap` and `advise(DontNeed)` answer that they are pinned.
//! * **A slot** (a registered buffer) is made when an operation finds none that holds its pages,
//!   and stays registered. Idle, it is a *revocable holder*: an invalidation of any of its pages
//!   clears it, the kernel's *tag* says when it is let go of, and the next operation registers it
//!   again. On current kernels an idle slot is let go of at once; where the tag is late, the
//!   bracket settles on it.
//! * **A slot in use** whose overlapping pages are all pinned by operations in flight is cleared
//!   too, and the bracket goes on: it cannot mean pinned pages, it is only wider than its change.
//!   The pins stay until the kernel has let go of the slot. Where an operation uses a part of a
//!   larger slot, an invalidation of the rest would block, or waits for the operation. So does
//!   every change of access rights.
//! * **No slot, no loss.** When every slot is in use, when the kernel refuses to register, or when
//!   an invalidation of the pages is open, the operation goes through its address (a *bypass*).
//!   That is right too, because its pages are pinned; only slower.
//!
//! Pages are pinned for writing whatever the direction: the kernel registers every buffer for
//! writing, and would meet a fault on a page that is write-protected.
//!
//! How a ring that many threads share differs from one that has an owner is told at [`Kind`]; who
//! takes completions, and which lock comes before which, at the head of `drive`.
//!
//! Linux counterparts: `io_uring/rsrc.c`, `io_uring/rw.c`.

mod area;
mod drive;
mod error;
mod index;
mod kernel;
mod operation;
mod state;
mod stats;
#[cfg(test)]
mod tests;

pub use error::{AttachError, OpError, SetupError};
pub use operation::Operation;
pub use stats::RingStats;

use self::area::AreaOwner;
use self::drive::Core;
use self::kernel::{Direction, Kernel, Transfer};
use self::state::{Keep, State};
use crate::fork::is_forked_child;
use crate::mapping::HostMapping;
use core::fmt;
use core::ops::Range;
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::fault::FaultError;
use pinless_mm::gfp::Gfp;
use pinless_mm::mm_struct::{Pin, PinError, Vma};
use pinless_mm::primary_mmu::Access;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

/// The name under which reports speak of rings.
pub const NAME: &str = "io_uring";

/// The most operations a ring can have at a time.
pub const ENTRIES_MAX: u32 = 4096;

/// The most slots a ring can have (the kernel's `IORING_MAX_REG_BUFFERS`).
pub const SLOTS_MAX: u32 = 16384;

/// The most bytes one operation can carry: what the kernel transfers at once, in whole pages.
const OP_BYTES_MAX: u64 = 0x7fff_f000;

/// Who may use a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Any thread. An invalidation takes slots back itself.
    Shared,
    /// The thread that made it (`IORING_SETUP_SINGLE_ISSUER`). An invalidation in another thread
    /// posts the revocation to the owner: without blocking it is refused, otherwise it waits. The
    /// owner carries it out in its next call, or at once if it waits for an operation.
    ///
    /// While the owner does neither, its idle slots cannot be taken back. So it must not wait for
    /// a frame meanwhile, or it may wait for itself until the fault's deadline: it leaves touching
    /// managed memory to other threads, or calls [`Ring::give_back_idle`] first. The ring's own
    /// calls see to it themselves.
    SingleIssuer,
}

/// A ring with a table of fixed buffers over managed memory.
///
/// Dropping it ends everything: slots are taken back, operations in flight are cancelled, and the
/// pins of those that the kernel cannot end at once are parked with a thread that waits for them.
/// The drop itself does not wait. Drop a [`Kind::SingleIssuer`] ring in its owner's thread: in
/// another one nothing can be taken back, and the kernel lets go of idle slots some time after.
pub struct Ring {
    core: Arc<Core>,
    service: Option<JoinHandle<()>>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("kind", &self.core.kind)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// A mapping that a ring may use; made by [`Ring::attach`]. Clones are the same.
///
/// Dropping the last one takes its slots back. Operations in flight go on.
#[derive(Clone, Debug)]
pub struct Area {
    owner: Arc<AreaOwner>,
}

impl Area {
    /// The mapping.
    pub fn vma(&self) -> &Arc<Vma> {
        self.owner.vma()
    }
}

impl Ring {
    /// A ring for `entries` operations at a time and `nr_slots` registered buffers. Everything that
    /// invalidations need later is reserved here.
    ///
    /// # Errors
    ///
    /// See [`SetupError`]: where io_uring is forbidden, go on without this device and say so.
    pub fn new(entries: u32, nr_slots: u32, kind: Kind) -> Result<Self, SetupError> {
        let (kernel, queues) = Kernel::setup(entries, nr_slots, kind)?;
        let state = State::new(queues, entries, nr_slots);
        let core = Arc::new(Core::new(kernel, kind, state));
        core.carry_out(&mut core.state.lock());
        let service = spawn_service(&core).map_err(|error| SetupError::Os {
            operation: "starting the ring's thread",
            errno: crate::Errno(error.raw_os_error().unwrap_or(libc::EAGAIN)),
        })?;
        let service = Some(service);
        Ok(Self { core, service })
    }

    /// Lets the ring use `vma`, which is over the pages of `mapping`, and subscribes it to the
    /// changes of them. Allocates; not in a notifier.
    ///
    /// # Errors
    ///
    /// See [`AttachError`].
    pub fn attach(&self, mapping: &HostMapping, vma: &Arc<Vma>) -> Result<Area, AttachError> {
        let owner = Arc::new(AreaOwner::attach(&self.core, mapping, vma)?);
        Ok(Area { owner })
    }

    /// Reads from `fd`, at `file_offset` where it has offsets, into the `bytes` of `area`, and
    /// waits.
    ///
    /// # Errors
    ///
    /// See [`OpError`].
    pub fn read_fixed(
        &self,
        area: &Area,
        fd: BorrowedFd<'_>,
        file_offset: u64,
        bytes: Range<u64>,
    ) -> Result<(), OpError> {
        self.submit_read(area, fd, file_offset, bytes)?.wait()
    }

    /// Writes the `bytes` of `area` to `fd`, at `file_offset` where it has offsets, and waits.
    ///
    /// # Errors
    ///
    /// See [`OpError`].
    pub fn write_fixed(
        &self,
        area: &Area,
        fd: BorrowedFd<'_>,
        file_offset: u64,
        bytes: Range<u64>,
    ) -> Result<(), OpError> {
        self.submit_write(area, fd, file_offset, bytes)?.wait()
    }

    /// Starts what [`read_fixed`](Self::read_fixed) does, and does not wait. May reclaim memory:
    /// not in a notifier, nor under a lock that one takes.
    ///
    /// # Errors
    ///
    /// See [`OpError`]; nothing stays pinned.
    pub fn submit_read(
        &self,
        area: &Area,
        fd: BorrowedFd<'_>,
        file_offset: u64,
        bytes: Range<u64>,
    ) -> Result<Operation, OpError> {
        self.submit(Direction::Read, area, fd, file_offset, bytes)
    }

    /// Starts what [`write_fixed`](Self::write_fixed) does, and does not wait. Otherwise like
    /// [`submit_read`](Self::submit_read).
    ///
    /// # Errors
    ///
    /// See [`OpError`]; nothing stays pinned.
    pub fn submit_write(
        &self,
        area: &Area,
        fd: BorrowedFd<'_>,
        file_offset: u64,
        bytes: Range<u64>,
    ) -> Result<Operation, OpError> {
        self.submit(Direction::Write, area, fd, file_offset, bytes)
    }

    /// Takes the completions that have come, carries out what was posted to this thread, and lets
    /// go of what finished operations have left behind. Never sleeps. The owner of a
    /// [`Kind::SingleIssuer`] ring calls it when it has done nothing else with the ring for long.
    pub fn poll(&self) {
        let mut state = self.core.state.lock();
        self.core.carry_out(&mut state);
        self.core.take_completions_beside(&mut state);
        drop(state);
        self.core.release_retired();
    }

    /// Takes every idle slot back; the next operations register theirs again. For the owner of a
    /// [`Kind::SingleIssuer`] ring, before it does anything that may wait for a frame: see there.
    /// In other threads it does nothing.
    pub fn give_back_idle(&self) {
        self.core.give_back_idle();
        self.core.release_retired();
    }

    /// Who may use it.
    pub fn kind(&self) -> Kind {
        self.core.kind
    }

    /// Its name, for reports.
    pub fn name(&self) -> &'static str {
        NAME
    }

    /// Operations in the kernel's hands now.
    pub fn nr_in_flight(&self) -> u32 {
        self.core.state.lock().nr_in_flight
    }

    /// What happened so far.
    pub fn stats(&self) -> RingStats {
        self.core.counters.snapshot()
    }

    fn submit(
        &self,
        direction: Direction,
        area: &Area,
        fd: BorrowedFd<'_>,
        file_offset: u64,
        bytes: Range<u64>,
    ) -> Result<Operation, OpError> {
        let core = &self.core;
        if !core.may_issue() {
            return Err(OpError::NotOwner);
        }
        if !area.owner.is_of(core) {
            return Err(OpError::OtherRing);
        }
        let vma = area.vma();
        let run = run_of(vma, &bytes)?;
        let pin = self.pin(area, run).map_err(OpError::Pin)?;
        let transfer = Transfer {
            direction,
            fd: fd.as_raw_fd(),
            file_offset,
            address: vma.base().0 as usize + bytes.start as usize,
            len: (bytes.end - bytes.start) as u32,
            slot: None,
        };
        let keep = Keep {
            pin,
            area: Arc::clone(&area.owner),
        };
        let number = core.start_op(&area.owner, run, transfer, keep)?;
        Ok(Operation::new(Arc::clone(core), number))
    }
}

impl Ring {
    /// Pins for writing, whatever the direction; see the head of this module.
    fn pin(&self, area: &Area, run: PageRun) -> Result<Pin, PinError> {
        let (vma, holder) = (area.vma(), area.owner.holder());
        if self.core.kind == Kind::SingleIssuer {
            // Who waits for a frame must not be the one who alone can give some back.
            match vma.pin_for(holder, run, Access::Write, Gfp::NoWait) {
                Err(PinError::Fault {
                    error: FaultError::NoFrame { .. },
                    ..
                }) => self.core.give_back_idle(),
                answer => return answer,
            }
        }
        vma.pin_for(holder, run, Access::Write, Gfp::Kernel)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if is_forked_child() {
            // The queues and the thread are the parent's.
            return core::mem::forget((self.service.take(), Arc::clone(&self.core)));
        }
        let is_over = self.core.close();
        self.core.release_retired();
        // A thread that has something left to do goes on alone until the kernel is done.
        if let Some(service) = self.service.take_if(|_| is_over && self.core.may_issue()) {
            drop(service.join());
        }
    }
}

fn spawn_service(core: &Arc<Core>) -> std::io::Result<JoinHandle<()>> {
    let core = Arc::clone(core);
    std::thread::Builder::new()
        .name(NAME.to_owned())
        .spawn(move || core.serve())
}

/// The pages that hold `bytes`.
fn run_of(vma: &Vma, bytes: &Range<u64>) -> Result<PageRun, OpError> {
    let page_size = PAGE_SIZE as u64;
    let len_bytes = u64::from(vma.nr_pages()) * page_size;
    let is_fit = bytes.start < bytes.end
        && bytes.end <= len_bytes
        && bytes.end - bytes.start <= OP_BYTES_MAX;
    if !is_fit {
        return Err(OpError::OutOfRange {
            bytes: bytes.clone(),
            len_bytes,
        });
    }
    let first = bytes.start / page_size;
    let end = bytes.end.div_ceil(page_size);
    Ok(PageRun::new(first as u32, (end - first) as u32))
}
