//! Memory that can be overcommitted while devices use it: the front door.
//!
//! [`Builder`] puts the memory manager on the real machine: it probes what the machine can do,
//! makes the [`Memcg`] with its bounds, and starts the threads that reclaim, settle, reap and
//! resolve faults. [`Pinless`] is the running whole; dropping it ends the threads.
//!
//! ```no_run
//! use pinless::{Access, Advice, PageRun, Pinless};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pinless = Pinless::builder(64 << 20).build()?; // 64 MiB of frames at most
//! let mm = pinless.new_mm("cache");
//! let memory = pinless.map(&mm, 256 << 20)?; // 256 MiB of memory under them
//! memory.write_at(4096, b"hello")?; // comes back, wherever the page went meanwhile
//! memory.advise(memory.all(), Advice::PageOut)?;
//! let guard = memory.guard(PageRun::single(1), Access::Read)?; // stays while this lives
//! let mut word = [0; 5];
//! guard.read(0, &mut word)?;
//! assert_eq!(&word, b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! | what | is |
//! |---|---|
//! | budget, counters, reports | [`Memcg`], [`StatSnapshot`], [`Pressure`], [`OomReport`] |
//! | bounds that change, caches that shrink | [`Memcg::set_limit`], [`Knob`], [`Shrinker`] |
//! | processes that are killed for their memory | [`Pinless::kill_process`], [`PidFd`] |
//! | address spaces; what is called when one is killed | [`Mm`], [`Mm::set_on_kill`] |
//! | memory | [`Mapping`], [`MapOptions`], [`FaultMode`], [`Advice`] |
//! | memory that stays while it is used | [`Guard`], [`Io`], [`Pin`], [`Mlock`], [`Building`] |
//! | what happens, as it happens, and figures of it | [`event`], [`Metrics`] |
//! | devices that are told before memory goes | [`mmu_notifier`], [`Fence`] |
//! | what they reach memory through | [`Bus`], [`DeviceMemory`] |
//! | devices that are there | [`io_uring`], [`kvm`] |
//!
//! Nothing is decided here: what to evict and whom to kill is `pinless-mm`'s, how pages move is
//! `pinless-host`'s. Everything a user names of both is exported from here.
//!
//! What waits for a device or for memory ([`Pinless::map`], [`Mapping::guard`], [`Mapping::pin`],
//! [`Mapping::mlock`], [`Mapping::advise`], [`Mapping::unmap`], and the drop of a mapping or of an
//! address space) must not be called in a callback of a notifier, nor under a lock that one takes:
//! the two would wait for each other. The lock validator reports it.
#![forbid(unsafe_code)]

#[cfg(doctest)]
mod book;
mod builder;
mod events;
mod guard;
mod io_count;
mod mapping;
mod metrics;
mod options;

pub use builder::{BuildError, Builder};
pub use guard::{Guard, Io, Pin};
pub use mapping::{MapError, Mapping};
pub use metrics::{Metric, MetricKind, Metrics};
pub use options::{MAPPING_BYTES_MAX, MapOptions};

pub use lockdep::Class as LockClass;
pub use lockdep::sync::{self, Fence};
#[cfg(feature = "kvm")]
pub use pinless_host::kvm;
pub use pinless_host::process::{Mrelease, PidFd};
#[cfg(feature = "vm-memory")]
pub use pinless_host::vm_memory;
pub use pinless_host::{
    AccessError, AttachedThread, Capabilities, Client, CpuLatency, CreateError, Errno, FaultMode,
    FaultService, Feature, Guard as HostGuard, GuardError, HostMapping, HostMmu, MonotonicClock,
    ProbeError, Resolver, Share, ShareError, SharedMapping, Source, SwapFileError, Unavailable,
    UnknownFaultMode, attach_thread, io_uring,
};
pub use pinless_mm::addr::{PAGE_SIZE, PageBuf, PageIndex, PageRun, Vaddr};
pub use pinless_mm::bus::{Bus, BusAddr, Caught, Checks, DeviceMemory, Pinned, StaleDma};
pub use pinless_mm::env::Clock;
pub use pinless_mm::event;
pub use pinless_mm::fault::{FaultError, FaultHandler, StoreError};
pub use pinless_mm::gfp::Gfp;
pub use pinless_mm::histogram::Summary;
pub use pinless_mm::limits::{LimitError, Limits};
pub use pinless_mm::memcg::{
    CountedThread, Counter, Knob, Pressure, PressureLine, SetLimitError, Shrinker, ShrinkerHandle,
    StatSnapshot,
};
pub use pinless_mm::mm_struct::{
    AdviseError, Building, MapError as BooksError, Mlock, MlockError, Pin as BooksPin, PinError,
    PinHolder, PinnedBy, UnmapError, VmaId,
};
pub use pinless_mm::mmu_notifier;
pub use pinless_mm::oom::{self, OomReport};
pub use pinless_mm::page::State;
pub use pinless_mm::primary_mmu::{
    Access, Detached, DmaFault, MapStopped, MmuError, PrimaryMmu, ReuseFrames,
};
pub use pinless_mm::swap;
pub use pinless_mm::watch::{Callback, Conviction, Post};
pub use pinless_mm::{Advice, Memcg, Mm, MmHandle, Vma};

use events::{Events, span};
use io_count::IoCount;
use pinless_host::is_forked_child;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

/// A memory cgroup on the real machine, with its threads.
///
/// Drop the mappings first, then the address spaces, then this: a mapping that is still there keeps
/// its contents, but nothing is reclaimed any more and no new frame is had. The drop waits for the
/// end of the threads, but for the one that it happens in.
#[derive(Debug)]
pub struct Pinless {
    memcg: Arc<Memcg>,
    faults: Arc<FaultService>,
    capabilities: Capabilities,
    fault_mode: FaultMode,
    io: Arc<IoCount>,
    /// If anybody watches.
    events: Option<Events>,
    workers: Vec<JoinHandle<()>>,
}

impl Pinless {
    /// A system with at most `max_bytes` of frames, to be built; the same as [`Builder::new`].
    pub fn builder(max_bytes: u64) -> Builder {
        Builder::new(max_bytes)
    }

    /// The memory cgroup: its bounds, counters and reports.
    pub fn memcg(&self) -> &Arc<Memcg> {
        &self.memcg
    }

    /// What the machine was found to be able to do.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Operations of devices under way on guarded pages, and those that were abandoned: see [`Io`].
    pub fn io_counts(&self) -> (u64, u64) {
        (self.io.in_flight(), self.io.abandoned())
    }

    /// A new address space. Its drop tears it down.
    pub fn new_mm(&self, name: &str) -> MmHandle {
        self.new_mm_in(&self.memcg, name)
    }

    /// A new address space in a memory cgroup below this one's: see [`Memcg::new_child`].
    ///
    /// # Panics
    ///
    /// If `memcg` is of another tree, for which the threads of this one do nothing.
    pub fn new_mm_in(&self, memcg: &Arc<Memcg>, name: &str) -> MmHandle {
        assert!(
            memcg.is_within(&self.memcg),
            "the memory cgroup of {name} is not below this one's: make it with `new_child`"
        );
        let mm = memcg.new_mm(name);
        if let Some(events) = &self.events {
            mm.set_event_log(Arc::clone(events.log()));
        }
        mm
    }

    /// Events that were dropped because more happened than were told of.
    pub fn events_lost(&self) -> u64 {
        self.events.as_ref().map_or(0, |events| events.log().lost())
    }

    /// Maps memory that reads as zeros: so many bytes, or what [`MapOptions`] say.
    ///
    /// # Errors
    ///
    /// See [`MapError`].
    pub fn map(&self, mm: &Arc<Mm>, options: impl Into<MapOptions>) -> Result<Mapping, MapError> {
        self.map_through(mm, options, |machine| machine)
    }

    /// The same, with `layer` between the memory manager and the machine: for whoever wants to see,
    /// or judge, each operation on the pages. What `layer` gives keeps the contract of
    /// [`PrimaryMmu`]: simplest, by handing each operation on.
    ///
    /// # Errors
    ///
    /// See [`MapError`].
    pub fn map_through(
        &self,
        mm: &Arc<Mm>,
        options: impl Into<MapOptions>,
        layer: impl FnOnce(Arc<dyn PrimaryMmu>) -> Arc<dyn PrimaryMmu>,
    ) -> Result<Mapping, MapError> {
        let options = options.into();
        span!("map", mm = mm.name(), bytes = options.len_bytes());
        let resolver = match options.fault_mode_or(self.fault_mode) {
            FaultMode::Service => Resolver::Service(Arc::clone(&self.faults)),
            FaultMode::InThread => Resolver::InThread,
        };
        Mapping::create(mm, options, resolver, &self.io, layer)
    }

    /// Kills another process and takes its memory back, as often and with such pauses as
    /// [`Builder::reap`] says; blocks no longer than that. The report says how long it took.
    ///
    /// # Errors
    ///
    /// What the system answers to the signal: `ESRCH` if the process is gone, `EPERM` if it is not
    /// ours to kill.
    pub fn kill_process(&self, process: &PidFd) -> Result<oom::ProcessReport, Errno> {
        oom::kill_process(process, self.memcg.limits(), &MonotonicClock)
    }

    /// Lets the process at the other end of `stream`, which calls [`Client::join`], use a mapping
    /// that was made with [`MapOptions::shared`], until the answer is dropped. See
    /// [`HostMapping::share`].
    ///
    /// # Errors
    ///
    /// See [`ShareError`].
    pub fn share(&self, mapping: &Mapping, stream: UnixStream) -> Result<Share, ShareError> {
        mapping.host().share(stream, &self.faults)
    }
}

impl Drop for Pinless {
    fn drop(&mut self) {
        if is_forked_child() {
            // The threads are the parent's.
            return core::mem::forget(core::mem::take(&mut self.workers));
        }
        self.memcg.stop();
        self.workers.drain(..).for_each(join);
    }
}

/// Waits for the end of a thread, unless this is it: the last owner may go in a callback.
fn join(thread: JoinHandle<()>) {
    if thread.thread().id() != std::thread::current().id() {
        // An error says that the thread panicked, and it has said so itself.
        let _ = thread.join();
    }
}
