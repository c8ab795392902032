//! Victims that hold a lock while they are killed.

use lockdep::sync::sleep;
use pinless_mm::addr::{PAGE_SIZE, PageBuf, PageIndex, PageRun, Vaddr};
use pinless_mm::limits::Limits;
use pinless_mm::oom::Held;
use pinless_mm::primary_mmu::{Access, Detached, DmaFault, MmuError, PrimaryMmu};
use pinless_mm::{Memcg, MmHandle};
use pinless_sim::{Frames, Sim, SimMmu};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

const STEP: Duration = Duration::from_micros(200);

/// A mapping whose address takes long to be had: whoever maps it holds the list of mappings.
#[derive(Debug)]
struct SlowToMap {
    inner: Arc<SimMmu>,
    is_asked: AtomicBool,
    answers: AtomicBool,
}

impl PrimaryMmu for SlowToMap {
    fn base(&self) -> Vaddr {
        self.is_asked.store(true, Relaxed);
        while !self.answers.load(Relaxed) {
            sleep("test.slow", STEP);
        }
        self.inner.base()
    }

    fn nr_pages(&self) -> u32 {
        self.inner.nr_pages()
    }

    fn map_zero(&self, run: PageRun) -> Result<(), MmuError> {
        self.inner.map_zero(run)
    }

    fn map_filled(
        &self,
        page: PageIndex,
        contents: &PageBuf,
        access: Access,
    ) -> Result<(), MmuError> {
        self.inner.map_filled(page, contents, access)
    }

    fn detach(&self, run: PageRun, outcome: &mut [Detached]) -> Result<(), MmuError> {
        self.inner.detach(run, outcome)
    }

    fn detaches_over_holes(&self) -> bool {
        self.inner.detaches_over_holes()
    }

    fn reattach(&self, run: PageRun) -> Result<(), MmuError> {
        self.inner.reattach(run)
    }

    fn read_detached(&self, page: PageIndex, into: &mut PageBuf) {
        self.inner.read_detached(page, into);
    }

    fn free_detached(&self, run: PageRun) -> Result<(), MmuError> {
        self.inner.free_detached(run)
    }

    fn zap(&self, run: PageRun) -> Result<(), MmuError> {
        self.inner.zap(run)
    }

    fn protect(&self, run: PageRun, access: Access) -> Result<(), MmuError> {
        self.inner.protect(run, access)
    }

    fn poison(&self, run: PageRun) -> Result<(), MmuError> {
        self.inner.poison(run)
    }

    fn is_present(&self, page: PageIndex) -> bool {
        self.inner.is_present(page)
    }

    fn dma_read(&self, offset: u64, into: &mut [u8]) -> Result<(), DmaFault> {
        self.inner.dma_read(offset, into)
    }

    fn dma_write(&self, offset: u64, from: &[u8]) -> Result<(), DmaFault> {
        self.inner.dma_write(offset, from)
    }
}

fn memcg_with_reaper(sim: &Sim) -> Arc<Memcg> {
    let mut limits = Limits::new(16 * PAGE_SIZE as u64);
    limits.reap_interval = Duration::from_millis(2);
    let memcg = Memcg::new(limits, sim.clock()).expect("limits that leave a reserve");
    let reaper = Arc::clone(&memcg);
    sim.spawn_daemon("reaper", move || reaper.run_reaper());
    memcg
}

fn map_at(mm: &MmHandle, at: u64, frames: &Arc<Frames>) -> Arc<SimMmu> {
    let mmu = SimMmu::new(Vaddr(at), 4, frames);
    let vma = mm.map(Arc::clone(&mmu) as Arc<dyn PrimaryMmu>);
    let vma = vma.expect("a mapping");
    for page in 0..4 {
        let offset = page * PAGE_SIZE as u64;
        mmu.cpu_write(&*vma, offset, &[7]).expect("a frame");
    }
    mmu
}

/// Until it is let go of, each pass finds it held, tells so, and comes again; then all comes back.
#[test]
fn n69_a_lock_that_the_victim_holds_is_only_tried() {
    Sim::check(0..20, |sim| {
        let memcg = memcg_with_reaper(sim);
        let (mm, frames) = (memcg.new_mm("victim"), Frames::new(16));
        let _first = map_at(&mm, 0x5000_0000, &frames);
        let slow = Arc::new(SlowToMap {
            inner: SimMmu::new(Vaddr(0x6000_0000), 4, &frames),
            is_asked: AtomicBool::new(false),
            answers: AtomicBool::new(false),
        });
        let (shared, maps) = (mm.share(), Arc::clone(&slow));
        sim.spawn("maps", move || {
            let mapped = shared.map(maps as Arc<dyn PrimaryMmu>);
            assert!(mapped.is_ok(), "it began before the kill");
        });
        while !slow.is_asked.load(Relaxed) {
            sleep("test.waits", STEP);
        }
        assert!(memcg.kill(&mm));
        while memcg.oom_reports()[0].passes < 3 {
            sleep("test.waits", STEP);
        }
        let report = &memcg.oom_reports()[0];
        assert_eq!(report.skipped[0].how, Held::InUse, "{report}");
        assert_eq!((mm.nr_frames(), report.done_ns), (4, None));
        slow.answers.store(true, Relaxed);
        while memcg.oom_reports()[0].done_ns.is_none() {
            sleep("test.waits", STEP);
        }
        let report = &memcg.oom_reports()[0];
        assert_eq!((mm.nr_frames(), report.skipped.len()), (0, 0), "{report}");
        assert!(report.passes > 3, "{report}");
        sim.join_all();
    });
}
