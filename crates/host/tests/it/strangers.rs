//! Callbacks that use managed memory whose faults a service thread resolves.

use crate::world::{World, offset_of};
use lockdep::sync::ShortLock;
use pinless_host::FaultMode;
use pinless_mm::addr::Vaddr;
use pinless_mm::limits::Limits;
use pinless_mm::mmu_notifier::{
    Blockable, Context, EndContext, Event, Misuse, MmId, Notifier, Notifiers, Range, Ranges,
};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Reads a page that is not there whenever it is called, each time the next one.
struct Toucher {
    world: Weak<World>,
    next: AtomicU32,
}

impl Toucher {
    fn new(world: &Arc<World>, first: u32) -> Arc<Self> {
        Arc::new(Self {
            world: Arc::downgrade(world),
            next: AtomicU32::new(first),
        })
    }

    fn touch(&self) {
        let Some(world) = self.world.upgrade() else {
            return;
        };
        let offset = offset_of(self.next.fetch_add(1, Ordering::Relaxed));
        let page = world.mapping.as_ptr().wrapping_add(offset as usize);
        // Not through the mapping: there the validator of locks would see it, too.
        // SAFETY: the page is one of the mapping, which lives as long as the world.
        assert_eq!(unsafe { page.read_volatile() }, 0);
    }
}

impl Notifier for Toucher {
    fn start<C: Context>(&self, _: &Range, _: &C) -> Result<(), C::Refusal> {
        self.touch();
        Ok(())
    }

    fn end(&self, _: &Range, _: &EndContext<'_>) {
        self.touch();
    }

    fn release(&self, _: &Blockable<'_>) {
        self.touch();
    }
}

/// The thread that resolves the fault knows who waits for it, in whatever callback, whosever.
#[test]
fn n105_a_callback_is_named_whose_fault_a_service_thread_resolves() {
    let Some(world) = World::new(16, Limits::new(1 << 20), FaultMode::Service, None) else {
        return;
    };
    let world = Arc::new(world);
    let reports = Arc::new(ShortLock::new("test.reports", Vec::new()));
    let sink = Arc::clone(&reports);
    world.mm.notifiers().on_misuse(move |report| {
        assert_eq!(report.misuse, Misuse::TouchInCallback);
        let name = report.subscriber.to_string();
        sink.lock().push(name);
    });
    let check = |expected: &[&str]| {
        let names = core::mem::take(&mut *reports.lock());
        assert_eq!(names, expected);
    };
    let (start, end) = (Vaddr(0x1000), Vaddr(0x2000));
    let deadline = Duration::from_secs(10);
    let bracket_of = |notifiers: &Notifiers| {
        let blocks = notifiers.start_blockable(start, end, Event::Clear, deadline);
        drop(blocks.expect("nobody is late"));
        let tries = notifiers.start_nonblock(start, end, Event::Clear);
        drop(tries.expect("nobody refuses"));
    };
    let notifiers = world.mm.notifiers();
    let own = notifiers.subscribe("own", Ranges::WholeMm, Toucher::new(&world, 0));
    bracket_of(notifiers);
    check(&["own"; 4]);
    drop(own);
    let elsewhere = Notifiers::new(MmId(77));
    let toucher = Toucher::new(&world, 4);
    let stranger = elsewhere.subscribe("stranger", Ranges::WholeMm, toucher);
    bracket_of(&elsewhere);
    elsewhere.release(deadline).expect("nobody is late");
    check(&["stranger"; 5]);
    drop(stranger);
    // No callback runs, and none is spoken of.
    world
        .mapping
        .read_at(offset_of(12), &mut [0; 8])
        .expect("a frame");
    check(&[]);
    assert_eq!(notifiers.stats().misuses, 9);
}
