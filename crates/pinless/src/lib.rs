//! Memory that can be overcommitted while devices use it: the front door.
//!
//! [`Builder`] puts the memory manager on the real machine: it probes what the machine can do,
//! makes the [`Memcg`] with its bounds, and starts the threads that reclaim, settle, reap and
//! resolve faults. [`Pinless`] is the running whole; dropping it ends the threads.
//!
//! ```no_run
//! use pinless::{Builder, FaultMode};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pinless = Builder::new(64 << 20).build()?; // 64 MiB of frames at most
//! let mm = pinless.new_mm("cache");
//! let memory = pinless.map(&mm, 65536, FaultMode::Service)?; // 256 MiB of it
//! memory.write_at(4096, b"hello")?; // comes back, wherever the page went meanwhile
//! # Ok(())
//! # }
//! ```
//!
//! Nothing is decided here: what to evict and whom to kill is `pinless-mm`'s, how pages move is
//! `pinless-host`'s. Everything a user needs of both is exported from here.
#![forbid(unsafe_code)]

mod builder;
mod mapping;

pub use builder::{BuildError, Builder};
pub use mapping::{MapError, Mapping};

pub use pinless_host::{
    AccessError, AttachedThread, Capabilities, FaultMode, Guard, GuardError, ProbeError,
    attach_thread, io_uring,
};
pub use pinless_mm::addr::{PAGE_SIZE, PageIndex, PageRun};
pub use pinless_mm::limits::{LimitError, Limits};
pub use pinless_mm::mm_struct::{AdviseError, Building, Mlock, MlockError, UnmapError};
pub use pinless_mm::mmu_notifier;
pub use pinless_mm::oom::{self, OomReport};
pub use pinless_mm::primary_mmu::{Access, PrimaryMmu};
pub use pinless_mm::{Advice, Memcg, Mm, MmHandle, Vma};

use pinless_host::FaultService;
use std::sync::Arc;
use std::thread::JoinHandle;

/// A memory cgroup on the real machine, with its threads.
///
/// Drop the mappings first, then the address spaces, then this: a mapping that is still there keeps
/// its contents, but nothing is reclaimed any more and no new frame is had.
#[derive(Debug)]
pub struct Pinless {
    memcg: Arc<Memcg>,
    faults: Arc<FaultService>,
    capabilities: Capabilities,
    workers: Vec<JoinHandle<()>>,
}

impl Pinless {
    /// The memory cgroup: its bounds, counters and reports.
    pub fn memcg(&self) -> &Arc<Memcg> {
        &self.memcg
    }

    /// What the machine was found to be able to do.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// A new address space. Its drop tears it down.
    pub fn new_mm(&self, name: &str) -> MmHandle {
        self.memcg.new_mm(name)
    }

    /// Maps `nr_pages` pages that read as zeros.
    ///
    /// # Errors
    ///
    /// See [`MapError`].
    pub fn map(&self, mm: &Arc<Mm>, nr_pages: u32, mode: FaultMode) -> Result<Mapping, MapError> {
        self.map_through(mm, nr_pages, mode, |machine| machine)
    }

    /// The same, with `layer` between the memory manager and the machine: for whoever wants to see,
    /// or judge, each operation on the pages.
    ///
    /// # Errors
    ///
    /// See [`MapError`].
    pub fn map_through(
        &self,
        mm: &Arc<Mm>,
        nr_pages: u32,
        mode: FaultMode,
        layer: impl FnOnce(Arc<dyn PrimaryMmu>) -> Arc<dyn PrimaryMmu>,
    ) -> Result<Mapping, MapError> {
        Mapping::create(mm, nr_pages, mapping::resolver(mode, &self.faults), layer)
    }
}

impl Drop for Pinless {
    fn drop(&mut self) {
        self.memcg.stop();
        for worker in self.workers.drain(..) {
            // An error says that the thread panicked, and it has said so itself.
            let _ = worker.join();
        }
    }
}
