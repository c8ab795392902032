//! The simulated machine as the shared suite wants it: on the tasks of a run, or on plain threads.

use lockdep::sync::Completion;
use pinless_mm::addr::{PAGE_SIZE, Vaddr};
use pinless_mm::env::Clock;
use pinless_mm::fault::FaultError;
use pinless_mm::primary_mmu::PrimaryMmu;
use pinless_mm::suite::{Join, Machine, Mapping};
use pinless_mm::swap::BackingFile;
use pinless_mm::{Mm, Vma};
use pinless_sim::{FileFaults, Frames, Sim, SimFile, SimMmu};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Frames of the machine: more than any test may use.
const NR_FRAMES: u64 = 3000;

/// A simulated machine on the tasks of a run.
pub(crate) struct OnTasks {
    sim: Sim,
    memory: Memory,
}

/// A simulated machine on threads that the operating system schedules.
pub(crate) struct OnThreads {
    memory: Memory,
    clock: Arc<RealClock>,
}

/// Frames, and addresses that no mapping has yet.
struct Memory {
    frames: Arc<Frames>,
    next: AtomicU64,
}

struct RealClock(Instant);

/// How a mapping is made on frames.
type Make = fn(Vaddr, u32, &Arc<Frames>) -> Arc<SimMmu>;

/// A mapping whose faults are resolved in the task that runs into them.
struct SimMapping {
    mmu: Arc<SimMmu>,
    vma: Arc<Vma>,
}

impl OnTasks {
    pub(crate) fn new(sim: &Sim) -> Self {
        Self {
            sim: sim.clone(),
            memory: Memory::new(),
        }
    }

    /// A mapping of a file that others may map, too.
    pub(crate) fn map_shared(&self, mm: &Arc<Mm>, nr_pages: u32) -> Arc<dyn Mapping> {
        self.memory.map(mm, nr_pages, SimMmu::shared)
    }
}

impl OnThreads {
    pub(crate) fn new() -> Self {
        Self {
            memory: Memory::new(),
            clock: Arc::new(RealClock(Instant::now())),
        }
    }
}

impl Clock for RealClock {
    fn now_ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

impl Memory {
    fn new() -> Self {
        Self {
            frames: Frames::new(NR_FRAMES),
            next: AtomicU64::new(0x7000_0000_0000),
        }
    }

    fn map(&self, mm: &Arc<Mm>, nr_pages: u32, make: Make) -> Arc<dyn Mapping> {
        let len = u64::from(nr_pages) * PAGE_SIZE as u64;
        let base = Vaddr(self.next.fetch_add(len, Ordering::Relaxed));
        let mmu = make(base, nr_pages, &self.frames);
        let primary = Arc::clone(&mmu) as Arc<dyn PrimaryMmu>;
        let vma = mm
            .map(primary)
            .expect("a mapping of a living address space");
        Arc::new(SimMapping { mmu, vma })
    }
}

/// A file whose device takes its time.
fn slow_file(nr_clusters: u32) -> Arc<dyn BackingFile> {
    let file = SimFile::new(nr_clusters, 4, 1);
    file.set_faults(FileFaults {
        latency: Duration::from_micros(20),
        ..FileFaults::default()
    });
    Arc::new(file)
}

impl Machine for OnTasks {
    fn clock(&self) -> Arc<dyn Clock> {
        self.sim.clock()
    }

    fn map(&self, mm: &Arc<Mm>, nr_pages: u32) -> Arc<dyn Mapping> {
        self.memory.map(mm, nr_pages, SimMmu::new)
    }

    fn file(&self, nr_clusters: u32) -> Option<Arc<dyn BackingFile>> {
        Some(slow_file(nr_clusters))
    }

    fn spawn(&self, name: &'static str, body: Box<dyn FnOnce() + Send>) -> Join {
        let ended = Arc::new(Completion::new("ended"));
        let ends = Arc::clone(&ended);
        self.sim.spawn(name, move || {
            body();
            ends.complete_all();
        });
        Box::new(move || ended.wait())
    }
}

impl Machine for OnThreads {
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as Arc<dyn Clock>
    }

    fn map(&self, mm: &Arc<Mm>, nr_pages: u32) -> Arc<dyn Mapping> {
        self.memory.map(mm, nr_pages, SimMmu::new)
    }

    fn file(&self, nr_clusters: u32) -> Option<Arc<dyn BackingFile>> {
        Some(slow_file(nr_clusters))
    }

    fn spawn(&self, _name: &'static str, body: Box<dyn FnOnce() + Send>) -> Join {
        let thread = std::thread::spawn(body);
        Box::new(move || {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        })
    }
}

impl Mapping for SimMapping {
    fn vma(&self) -> &Arc<Vma> {
        &self.vma
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), FaultError> {
        self.mmu.cpu_read(&*self.vma, offset, into)
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), FaultError> {
        self.mmu.cpu_write(&*self.vma, offset, from)
    }
}
