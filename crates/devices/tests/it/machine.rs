//! A machine of a few frames, and a memory manager that does nothing but take them back.

use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use lockdep::sync::{Completion, Mutex, ShortLock, Waited};
use pinless_devices::{DmaDevice, Odp, Template};
use pinless_mm::addr::{PAGE_SIZE, PageRun, Vaddr};
use pinless_mm::bus::{Bus, BusAddr, Caught, StaleDma};
use pinless_mm::fault::FaultError;
use pinless_mm::mmu_notifier::{
    BracketError, Event, Invalidation, MmId, Notifiers, Refused, Subscription,
};
use pinless_mm::primary_mmu::Access;
use std::sync::Arc;
use std::thread;

pub(crate) const NR_PAGES: u32 = 16;

/// Bytes of a page that this machine keeps.
pub(crate) const NR_BYTES: usize = 8;

const BASE: Vaddr = Vaddr(0x7000_0000);

/// Long enough never to pass in a test that is right.
pub(crate) const EVER: Duration = Duration::from_secs(20);

/// Waits, and fails the test where a wrong device would hang it.
#[track_caller]
pub(crate) fn await_done(completion: &Completion) {
    assert_eq!(
        completion.wait_timeout(EVER),
        Waited::Done,
        "{completion:?}"
    );
}

/// Something to do once, in the middle of a fault.
type Hook = Box<dyn FnOnce() + Send>;

pub(crate) struct Frames {
    pages: Vec<Frame>,
    in_fault: Mutex<Vec<Hook>>,
}

/// The page's contents outlive its frame, as in a machine with a store.
struct Frame {
    /// Of the frame that is there, or that will be there next.
    generation: AtomicU32,
    contents: ShortLock<[u8; NR_BYTES]>,
}

impl Bus for Frames {
    fn base(&self) -> Vaddr {
        BASE
    }

    fn nr_pages(&self) -> u32 {
        self.pages.len() as u32
    }

    fn fault_range(
        &self,
        run: PageRun,
        access: Access,
        into: &mut [BusAddr],
    ) -> Result<(), FaultError> {
        for (page, at) in run.pages().zip(into) {
            let generation = self.generation(page);
            *at = BusAddr {
                page,
                generation,
                access,
            };
        }
        let hook = self.in_fault.lock().pop();
        if let Some(hook) = hook {
            hook();
        }
        Ok(())
    }

    fn read(&self, at: BusAddr, offset: usize, into: &mut [u8]) -> Result<(), StaleDma> {
        self.check(at, Access::Read, Caught::Before)?;
        thread::yield_now();
        into.copy_from_slice(&self.frame(at).contents.lock()[offset..][..into.len()]);
        self.check(at, Access::Read, Caught::During)
    }

    fn write(&self, at: BusAddr, offset: usize, from: &[u8]) -> Result<(), StaleDma> {
        self.check(at, Access::Write, Caught::Before)?;
        thread::yield_now();
        self.frame(at).contents.lock()[offset..][..from.len()].copy_from_slice(from);
        self.check(at, Access::Write, Caught::During)
    }
}

impl Frames {
    fn frame(&self, at: BusAddr) -> &Frame {
        &self.pages[at.page as usize]
    }

    fn generation(&self, page: u32) -> u32 {
        // Acquire pairs with the Release in `take`.
        self.pages[page as usize].generation.load(Ordering::Acquire)
    }

    fn check(&self, at: BusAddr, access: Access, caught: Caught) -> Result<(), StaleDma> {
        let found = self.generation(at.page);
        if found != at.generation {
            return Err(StaleDma {
                used: at,
                found,
                caught,
            });
        }
        if access == Access::Write && at.access == Access::Read {
            return Err(StaleDma {
                used: at,
                found,
                caught: Caught::ReadOnly,
            });
        }
        Ok(())
    }

    /// The frames of `run` leave their addresses.
    pub(crate) fn take(&self, run: PageRun) {
        for page in run.pages() {
            // Release pairs with the Acquire in `generation`.
            self.pages[page as usize]
                .generation
                .fetch_add(1, Ordering::Release);
        }
    }

    /// Does `hooks` in the middle of the faults that come next: the first in the first.
    pub(crate) fn in_fault(&self, mut hooks: Vec<Hook>) {
        hooks.reverse();
        *self.in_fault.lock() = hooks;
    }
}

/// A bus on which a read stands still until it is let go.
pub(crate) struct SlowBus {
    frames: Arc<Frames>,
    pub(crate) is_reading: Completion,
    pub(crate) may_go_on: Completion,
}

impl SlowBus {
    pub(crate) fn new(frames: Arc<Frames>) -> Self {
        Self {
            frames,
            is_reading: Completion::new("test.is_reading"),
            may_go_on: Completion::new("test.may_go_on"),
        }
    }
}

impl Bus for SlowBus {
    fn base(&self) -> Vaddr {
        self.frames.base()
    }

    fn nr_pages(&self) -> u32 {
        self.frames.nr_pages()
    }

    fn fault_range(
        &self,
        run: PageRun,
        access: Access,
        into: &mut [BusAddr],
    ) -> Result<(), FaultError> {
        self.frames.fault_range(run, access, into)
    }

    fn read(&self, at: BusAddr, offset: usize, into: &mut [u8]) -> Result<(), StaleDma> {
        self.is_reading.complete_all();
        await_done(&self.may_go_on);
        self.frames.read(at, offset, into)
    }

    fn write(&self, at: BusAddr, offset: usize, from: &[u8]) -> Result<(), StaleDma> {
        self.frames.write(at, offset, from)
    }
}

/// Which driver a test is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Driver {
    Template,
    Odp,
}

impl Driver {
    pub(crate) const ALL: [Self; 2] = [Self::Template, Self::Odp];
}

/// One mapping with one device.
pub(crate) struct Machine {
    pub(crate) frames: Arc<Frames>,
    pub(crate) notifiers: Notifiers,
    pub(crate) device: Arc<dyn DmaDevice>,
    subscription: Subscription,
}

impl Machine {
    /// Runs `story` with the device's engine beside it.
    pub(crate) fn run(driver: Driver, story: impl FnOnce(&Self)) {
        let new_frame = |_| Frame {
            generation: AtomicU32::new(1),
            contents: ShortLock::new("test.contents", [0; NR_BYTES]),
        };
        let frames = Arc::new(Frames {
            pages: (0..NR_PAGES).map(new_frame).collect(),
            in_fault: Mutex::new("test.hooks", Vec::new()),
        });
        let notifiers = Notifiers::new(MmId(1));
        let bus = Arc::clone(&frames) as Arc<dyn Bus>;
        let (device, subscription): (Arc<dyn DmaDevice>, _) = match driver {
            Driver::Template => {
                let (device, subscription) = Template::attach(&notifiers, bus, "device");
                (device, subscription)
            }
            Driver::Odp => {
                let (device, subscription) = Odp::attach(&notifiers, bus, "device");
                (device, subscription)
            }
        };
        let machine = Self {
            frames,
            notifiers,
            device,
            subscription,
        };
        thread::scope(|scope| {
            let _stop = StopOnDrop(&*machine.device);
            scope.spawn(|| machine.device.serve());
            story(&machine);
        });
        assert_eq!(
            machine.device.holds(),
            0,
            "a device that was stopped holds nothing"
        );
        machine.subscription.synchronize();
        assert!(machine.notifiers.is_empty());
    }

    pub(crate) fn nonblock(&self, run: PageRun) -> Result<Invalidation, Refused> {
        let (start, end) = addresses(run);
        self.notifiers.start_nonblock(start, end, Event::Clear)
    }

    pub(crate) fn blockable(
        &self,
        run: PageRun,
        deadline: Duration,
    ) -> Result<Invalidation, BracketError> {
        let (start, end) = addresses(run);
        self.notifiers
            .start_blockable(start, end, Event::Clear, deadline)
    }

    /// Reads the first byte of a page, as the device.
    pub(crate) fn touch(&self, page: u32) -> Result<u8, pinless_devices::DmaError> {
        let mut byte = [0];
        self.device.read(page, 0, &mut byte).map(|()| byte[0])
    }
}

/// Lets the engine's thread end also when the story panics.
struct StopOnDrop<'a>(&'a dyn DmaDevice);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

pub(crate) fn addresses(run: PageRun) -> (Vaddr, Vaddr) {
    let at = |page: u32| Vaddr(BASE.0 + u64::from(page) * PAGE_SIZE as u64);
    (at(run.first), at(run.end()))
}
