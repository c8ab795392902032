//! Our side: managed memory under a hard limit.

use super::super::report::BenchError;
use super::Side;
use super::program::{LIMIT_BYTES, NR_PAGES, PAGE_BYTES, Region};
use pinless_host::{CpuLatency, FaultService, HostMapping, Resolver, attach_thread};
use pinless_mm::addr::PageRun;
use pinless_mm::env::Clock;
use pinless_mm::gfp::Gfp;
use pinless_mm::limits::Limits;
use pinless_mm::memcg::Memcg;
use pinless_mm::mm_struct::{MmHandle, Pin, Vma};
use pinless_mm::primary_mmu::Access;
use std::fmt::Display;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

struct WallClock(Instant);

impl Clock for WallClock {
    fn now_ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// A mapping under a limit, and how it is accessed. Dropped from the top down.
pub(super) struct Managed {
    host: HostMapping,
    vma: Arc<Vma>,
    _mm: MmHandle,
    workers: Workers,
    by_guard: bool,
}

/// The name of a worker and its loop.
type WorkerLoop = (&'static str, fn(&Memcg));

const WORKERS: [WorkerLoop; 4] = [
    ("pinless-reclaim", Memcg::run_reclaim),
    ("pinless-settle", Memcg::run_settle),
    ("pinless-reaper", Memcg::run_reaper),
    ("pinless-compact", Memcg::run_compact),
];

struct Workers {
    memcg: Arc<Memcg>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    fn start(memcg: Arc<Memcg>) -> Result<Self, BenchError> {
        let mut workers = Self {
            memcg,
            threads: Vec::new(),
        };
        for (name, run) in WORKERS {
            let memcg = Arc::clone(&workers.memcg);
            let thread = std::thread::Builder::new().name(name.into());
            let thread = thread.spawn(move || run(&memcg));
            workers
                .threads
                .push(thread.map_err(|e| failed("start a worker", e))?);
        }
        Ok(workers)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.memcg.stop();
        for thread in self.threads.drain(..) {
            // A worker that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

fn failed(what: &str, error: impl Display) -> BenchError {
    BenchError(format!("cannot {what}: {error}"))
}

impl Managed {
    pub(super) fn new(side: Side) -> Result<Self, BenchError> {
        let resolver = match side {
            Side::Service => Resolver::Service(
                FaultService::start(1).map_err(|e| failed("start a fault service", e))?,
            ),
            Side::ServiceAwake => {
                let request = CpuLatency::open().map_err(|e| failed("keep processors awake", e))?;
                let service = FaultService::start_awake(vec![request]);
                Resolver::Service(service.map_err(|e| failed("start a fault service", e))?)
            }
            _ => Resolver::InThread,
        };
        let clock = Arc::new(WallClock(Instant::now()));
        let memcg = Memcg::new(Limits::new(LIMIT_BYTES), clock)
            .map_err(|e| failed("make a memory cgroup", e))?;
        let mm = memcg.new_mm("bench");
        let mut host =
            HostMapping::create(NR_PAGES, resolver).map_err(|e| failed("make a mapping", e))?;
        let vma = mm.map(host.mmu()).map_err(|e| failed("map it", e))?;
        host.attach(Arc::clone(&vma) as _)
            .map_err(|e| failed("attach it", e))?;
        Ok(Self {
            host,
            vma,
            _mm: mm,
            workers: Workers::start(memcg)?,
            by_guard: side == Side::Guard,
        })
    }

    /// Holds the page in place, on the side that does.
    fn hold(&self, page: u32, access: Access) -> Result<Option<Pin>, BenchError> {
        if !self.by_guard {
            return Ok(None);
        }
        let pin = self.vma.pin(PageRun::single(page), access, Gfp::Kernel);
        pin.map(Some).map_err(|e| failed("hold a page", e))
    }
}

fn offset(page: u32, word: usize) -> u64 {
    u64::from(page) * PAGE_BYTES as u64 + word as u64 * 8
}

impl Region for Managed {
    fn fill(&self, page: u32, contents: &[u8; PAGE_BYTES]) -> Result<(), BenchError> {
        let _held = self.hold(page, Access::Write)?;
        self.host
            .write_at(offset(page, 0), contents)
            .map_err(|e| failed("fill a page", e))
    }

    fn read(&self, page: u32, word: usize) -> Result<u64, BenchError> {
        let _held = self.hold(page, Access::Read)?;
        self.host
            .load_u64(offset(page, word))
            .map_err(|e| failed("read a page", e))
    }

    fn write(&self, page: u32, word: usize, value: u64) -> Result<(), BenchError> {
        let _held = self.hold(page, Access::Write)?;
        self.host
            .store_u64(offset(page, word), value)
            .map_err(|e| failed("write a page", e))
    }

    fn attached(&self, body: &mut dyn FnMut() -> Result<(), BenchError>) -> Result<(), BenchError> {
        let _attached = attach_thread().map_err(|e| failed("attach a thread", e))?;
        body()
    }

    /// All anonymous memory of the process: frames, the compressed store and the books, and what
    /// the program itself has, as in the figure of the kernel's side. Nothing is given back on the
    /// way, so the end is the peak.
    fn peak_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib << 10)
    }

    fn about(&self) -> String {
        let memcg = &self.workers.memcg;
        let stat = memcg.stat();
        let counters: Vec<String> = stat
            .counters()
            .filter(|&(_, value)| value > 0)
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        let pool_mib = memcg.zswap().peak_bytes() >> 20;
        format!("{}, pool {pool_mib} MiB", counters.join(", "))
    }
}
