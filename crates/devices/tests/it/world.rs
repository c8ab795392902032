//! A machine of a few pages under the simulator's scheduler, with the frames and the pins of Linux:
//! a page that is discarded while it is pinned lives on for whoever has it pinned.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use lockdep::scheduler::scheduler_point;
use lockdep::sync::ShortLock;
use lockdep::{Severity, Validator};
use pinless_devices::{Attached, Bugs, DeviceMemory, DmaDevice, ModelInfo, Pinned};
use pinless_mm::addr::{PAGE_SIZE, PageRun, Vaddr};
use pinless_mm::bus::{Bus, BusAddr, Caught, PinError, StaleDma};
use pinless_mm::fault::FaultError;
use pinless_mm::gfp::{Gfp, might_alloc};
use pinless_mm::mmu_notifier::{Event, Invalidation, MmId, Notifiers};
use pinless_mm::primary_mmu::Access;
use pinless_sim::Sim;
use std::sync::Arc;

pub(crate) const NR_PAGES: u32 = 6;

/// Bytes of a page that this machine keeps: a few lines.
pub(crate) const NR_BYTES: usize = 160;

const BASE: u64 = 0x7000_0000;

/// Virtual time.
pub(crate) const EVER: Duration = Duration::from_secs(600);

type Bytes = [u8; NR_BYTES];

pub(crate) struct World {
    pub(crate) notifiers: Notifiers,
    pages: Vec<ShortLock<Page>>,
    pub(crate) nr_pins: AtomicU64,
}

/// The frame at an address, and those that left it and are pinned.
struct Page {
    frame: Frame,
    orphans: Vec<Frame>,
    /// What the store has of it.
    stored: Bytes,
}

#[derive(Clone, Copy)]
struct Frame {
    generation: u32,
    bytes: Bytes,
    nr_pins: u32,
    is_dirty: bool,
}

struct Pin {
    world: Arc<World>,
    frames: Vec<(u32, u32)>,
}

impl World {
    pub(crate) fn new() -> Arc<Self> {
        let page = |_| {
            let frame = Frame {
                generation: 1,
                bytes: [0; NR_BYTES],
                nr_pins: 0,
                is_dirty: false,
            };
            let page = Page {
                frame,
                orphans: Vec::new(),
                stored: [0; NR_BYTES],
            };
            ShortLock::new("test.page", page)
        };
        Arc::new(Self {
            notifiers: Notifiers::new(MmId(1)),
            pages: (0..NR_PAGES).map(page).collect(),
            nr_pins: AtomicU64::new(0),
        })
    }

    /// Opens a bracket that may block.
    pub(crate) fn blockable(&self, run: PageRun) -> Invalidation {
        let opened = self.try_blockable(run, EVER);
        opened.unwrap_or_else(|error| panic!("P2: a blockable start failed: {error}"))
    }

    pub(crate) fn try_blockable(
        &self,
        run: PageRun,
        deadline: Duration,
    ) -> Result<Invalidation, pinless_mm::mmu_notifier::BracketError> {
        let (start, end) = addresses(run);
        self.notifiers
            .start_blockable(start, end, Event::Clear, deadline)
    }

    /// Opens a bracket that may be refused.
    pub(crate) fn nonblock(&self, run: PageRun) -> Option<Invalidation> {
        let (start, end) = addresses(run);
        let opened = self.notifiers.start_nonblock(start, end, Event::Clear);
        opened.ok()
    }

    /// Reclaim: the frames that nobody has pinned leave, and their contents stay.
    pub(crate) fn reclaim(&self, run: PageRun) {
        for page in run.pages() {
            scheduler_point("test.reclaim", 0);
            let mut page = self.pages[page as usize].lock();
            if page.frame.nr_pins > 0 {
                continue;
            }
            if page.frame.is_dirty {
                page.stored = page.frame.bytes;
            }
            page.frame = Frame {
                generation: page.frame.generation + 1,
                bytes: page.stored,
                nr_pins: 0,
                is_dirty: false,
            };
        }
    }

    /// The program gives the pages up, and finds others there: their bytes are all `value`.
    pub(crate) fn discard(&self, run: PageRun, value: u8) {
        for page in run.pages() {
            scheduler_point("test.discard", 0);
            let mut page = self.pages[page as usize].lock();
            let old = page.frame;
            if old.nr_pins > 0 {
                page.orphans.push(old);
            }
            page.stored = [value; NR_BYTES];
            page.frame = Frame {
                generation: old.generation + 1,
                bytes: page.stored,
                nr_pins: 0,
                is_dirty: false,
            };
        }
    }

    /// Which frame is at a page, and what is in it.
    pub(crate) fn peek(&self, page: u32) -> (u32, Bytes) {
        let page = self.pages[page as usize].lock();
        (page.frame.generation, page.frame.bytes)
    }

    /// Does something with the frame of a translation.
    fn with_frame(
        &self,
        at: BusAddr,
        access: Access,
        caught: Caught,
        each: impl FnOnce(&mut Frame),
    ) -> Result<(), StaleDma> {
        let mut page = self.pages[at.page as usize].lock();
        let found = page.frame.generation;
        let stale = |caught| StaleDma {
            used: at,
            found,
            caught,
        };
        if access == Access::Write && at.access == Access::Read {
            return Err(stale(Caught::ReadOnly));
        }
        let Page { frame, orphans, .. } = &mut *page;
        let mut frames = core::iter::once(frame).chain(orphans);
        match frames.find(|frame| frame.generation == at.generation) {
            Some(frame) => each(frame),
            None => return Err(stale(caught)),
        }
        Ok(())
    }
}

impl Bus for World {
    fn base(&self) -> Vaddr {
        Vaddr(BASE)
    }

    fn nr_pages(&self) -> u32 {
        NR_PAGES
    }

    fn fault_range(
        &self,
        run: PageRun,
        access: Access,
        into: &mut [BusAddr],
    ) -> Result<(), FaultError> {
        might_alloc(Gfp::Kernel);
        for (page, at) in run.pages().zip(into) {
            scheduler_point("test.fault", 0);
            let mut frame = self.pages[page as usize].lock();
            frame.frame.is_dirty |= access == Access::Write;
            *at = BusAddr {
                page,
                generation: frame.frame.generation,
                access,
            };
        }
        Ok(())
    }

    fn read(&self, at: BusAddr, offset: usize, into: &mut [u8]) -> Result<(), StaleDma> {
        self.with_frame(at, Access::Read, Caught::Before, |_| ())?;
        scheduler_point("test.dma", 0);
        self.with_frame(at, Access::Read, Caught::During, |frame| {
            into.copy_from_slice(&frame.bytes[offset..offset + into.len()]);
        })
    }

    fn write(&self, at: BusAddr, offset: usize, from: &[u8]) -> Result<(), StaleDma> {
        self.with_frame(at, Access::Write, Caught::Before, |_| ())?;
        scheduler_point("test.dma", 0);
        self.with_frame(at, Access::Write, Caught::During, |frame| {
            frame.bytes[offset..offset + from.len()].copy_from_slice(from);
        })
    }
}

impl DeviceMemory for World {
    fn notifiers(&self) -> &Notifiers {
        &self.notifiers
    }

    fn pin(
        self: Arc<Self>,
        _holder: &str,
        run: PageRun,
        access: Access,
    ) -> Result<Pinned, PinError> {
        might_alloc(Gfp::Kernel);
        let mut frames = Vec::new();
        for page in run.pages() {
            scheduler_point("test.pin", 0);
            let mut locked = self.pages[page as usize].lock();
            locked.frame.nr_pins += 1;
            locked.frame.is_dirty |= access == Access::Write;
            frames.push((page, locked.frame.generation));
        }
        self.nr_pins.fetch_add(u64::from(run.nr), Relaxed);
        Ok(Box::new(Pin {
            world: self,
            frames,
        }))
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        for &(page, generation) in &self.frames {
            let mut page = self.world.pages[page as usize].lock();
            let Page { frame, orphans, .. } = &mut *page;
            if frame.generation == generation {
                frame.nr_pins -= 1;
                continue;
            }
            let at = orphans
                .iter()
                .position(|frame| frame.generation == generation)
                .expect("a pinned frame stays");
            orphans[at].nr_pins -= 1;
            if orphans[at].nr_pins == 0 {
                orphans.remove(at);
            }
        }
        let nr = self.frames.len() as u64;
        self.world.nr_pins.fetch_sub(nr, Relaxed);
    }
}

fn addresses(run: PageRun) -> (Vaddr, Vaddr) {
    let at = |page: u32| Vaddr(BASE + u64::from(page) * PAGE_SIZE as u64);
    (at(run.first), at(run.end()))
}

/// A model in a world, in one run of the simulator.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) sim: Sim,
    pub(crate) world: Arc<World>,
    pub(crate) device: Arc<dyn DmaDevice>,
    pub(crate) info: &'static ModelInfo,
    validator: Arc<Validator>,
}

impl Stage {
    /// Attaches the model, has its engines run, plays the story, and checks what is left: nothing.
    pub(crate) fn play(sim: &Sim, info: &'static ModelInfo, bugs: Bugs, story: impl FnOnce(&Self)) {
        let validator = Arc::new(Validator::new());
        let entered = validator.enter();
        let world = World::new();
        let memory = Arc::clone(&world) as Arc<dyn DeviceMemory>;
        let attached: Attached = info.attach(&memory, "device", bugs);
        let stage = Self {
            sim: sim.clone(),
            world: Arc::clone(&world),
            device: Arc::clone(&attached.device),
            info,
            validator: Arc::clone(&validator),
        };
        for _ in 0..stage.device.nr_servers() {
            stage.spawn_daemon("engine", |stage| stage.device.serve());
        }
        if info.must_register {
            let registered = stage.device.register(PageRun::new(0, NR_PAGES));
            registered.expect("there is room for one registration");
        }
        story(&stage);
        sim.join_all();
        stage.device.wait_idle();
        attached.detach();
        let stats = stage.device.stats();
        assert_eq!(stats.stale, 0, "R4: stale accesses");
        assert_eq!(
            stage.device.holds(),
            0,
            "P10: it holds pages after its stop"
        );
        assert_eq!(world.nr_pins.load(Relaxed), 0, "R8: pins are left");
        assert_eq!(world.notifiers.stats().panics, 0, "a callback failed");
        assert_eq!(world.notifiers.stats().misuses, 0, "a callback misbehaved");
        drop(entered);
        let reports = validator.reports();
        let bad = reports
            .iter()
            .find(|report| report.severity > Severity::Unlikely);
        if let Some(report) = bad {
            panic!("lockdep: {report}");
        }
    }

    pub(crate) fn spawn(&self, name: &str, task: impl FnOnce(&Self) + Send + 'static) {
        let stage = self.clone();
        self.sim.spawn(name, move || {
            let _entered = stage.validator.enter();
            task(&stage);
        });
    }

    fn spawn_daemon(&self, name: &str, task: impl FnOnce(&Self) + Send + 'static) {
        let stage = self.clone();
        self.sim.spawn_daemon(name, move || {
            let _entered = stage.validator.enter();
            task(&stage);
        });
    }
}
