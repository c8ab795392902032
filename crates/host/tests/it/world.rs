//! The memory manager on the real machine, small: a memory cgroup with its workers and one mapping.

use crate::fake::is_missing;
use pinless_host::{FaultMode, FaultService, HostMapping, MonotonicClock, Resolver};
use pinless_mm::addr::PAGE_SIZE;
use pinless_mm::limits::Limits;
use pinless_mm::mm_struct::{MmHandle, Vma};
use pinless_mm::swap::BackingFile;
use pinless_mm::{Memcg, memcg};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Rounds of waiting before it counts as never.
const ROUNDS_MAX: u32 = 20_000;

/// Dropped from the top down.
pub(crate) struct World {
    pub(crate) mapping: HostMapping,
    pub(crate) vma: Arc<Vma>,
    pub(crate) mm: MmHandle,
    pub(crate) memcg: Arc<Memcg>,
    workers: Vec<JoinHandle<()>>,
}

impl World {
    /// A mapping of `nr_pages`; `None` where the machine cannot have it.
    pub(crate) fn new(
        nr_pages: u32,
        limits: Limits,
        mode: FaultMode,
        file: Option<Arc<dyn BackingFile>>,
    ) -> Option<Self> {
        let resolver = match mode {
            FaultMode::Service => Resolver::Service(FaultService::start(1).expect("threads")),
            FaultMode::InThread => Resolver::InThread,
        };
        let mut mapping = match HostMapping::create(nr_pages, resolver) {
            Ok(mapping) => mapping,
            Err(error) => {
                assert!(is_missing(error));
                return None;
            }
        };
        let clock = Arc::new(MonotonicClock);
        let memcg = match file {
            Some(file) => Memcg::with_file(limits, clock, file),
            None => Memcg::new(limits, clock),
        };
        let memcg = memcg.expect("bounds with room");
        let loops = [
            Memcg::run_reclaim as fn(&Memcg),
            Memcg::run_settle,
            Memcg::run_reaper,
            Memcg::run_write_back,
            Memcg::run_compact,
        ];
        let start = |run: fn(&Memcg)| {
            let memcg = Arc::clone(&memcg);
            std::thread::spawn(move || run(&memcg))
        };
        let workers = loops.map(start).into();
        let mm = memcg.new_mm("world");
        let vma = mm.map(mapping.mmu()).expect("an address space that lives");
        mapping.attach(Arc::clone(&vma) as _).expect("registered");
        Some(Self {
            mapping,
            vma,
            mm,
            memcg,
            workers,
        })
    }

    pub(crate) fn stat(&self) -> memcg::StatSnapshot {
        self.memcg.stat()
    }

    /// Waits until `condition` holds.
    #[track_caller]
    pub(crate) fn wait_until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        for _ in 0..ROUNDS_MAX {
            if condition() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("{what} did not come true: {:?}", self.memcg.stat());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.mm.unmap(&self.vma);
        self.memcg.stop();
        for worker in self.workers.drain(..) {
            // One that panicked has said so itself.
            let _ = worker.join();
        }
    }
}

pub(crate) fn offset_of(page: u32) -> u64 {
    u64::from(page) * PAGE_SIZE as u64
}
