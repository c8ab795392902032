//! No bracket allocates: not its start, nor its end, nor a refusal, over intervals and list, alone
//! or beside others; and neither does a device that looks pages up.

#![cfg(feature = "notifiers")]

mod counting;

use core::time::Duration;
use counting::nr_allocations;
use lockdep::sync::{Fence, Mutex, ShortLock};
use pinless_mm::addr::Vaddr;
use pinless_mm::mmu_notifier::{
    Context, EndContext, Event, IntervalNotifier, IntervalSubscription, MmId, Notifier, Notifiers,
    Range, Ranges, SETTLE_QUEUE, Subscription,
};
use std::sync::Arc;

/// A device with a lock and a count, which may refuse or settle.
struct Device {
    table: Mutex<u64>,
    open: ShortLock<u64>,
    refuses: bool,
    fences: Vec<Fence>,
}

impl Device {
    fn new() -> Self {
        Self {
            table: Mutex::new("test.table", 0),
            open: ShortLock::new("test.open", 0),
            refuses: false,
            fences: Vec::new(),
        }
    }
}

impl Notifier for Device {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        if self.refuses {
            cx.would_block()?;
        }
        *cx.lock(&self.table)? += 1;
        self.fences.iter().try_for_each(|fence| cx.settle(fence))?;
        *cx.short(&self.open) += 1;
        Ok(())
    }

    fn end(&self, _range: &Range, cx: &EndContext<'_>) {
        *cx.short(&self.open) -= 1;
    }
}

impl IntervalNotifier for Device {
    type Lock = Mutex<u64>;

    fn lock(&self) -> &Mutex<u64> {
        &self.table
    }
}

/// Who is subscribed.
struct World {
    notifiers: Notifiers,
    intervals: Vec<IntervalSubscription<Device>>,
    list: Vec<Subscription>,
}

fn page(nr: u64) -> Vaddr {
    Vaddr((nr + 1) * 4096)
}

/// `nr` overlapping intervals, and members of the list.
fn world(nr: u64, list: Vec<Device>) -> World {
    let notifiers = Notifiers::new(MmId(1));
    let interval = |at| {
        let device = Arc::new(Device::new());
        notifiers
            .subscribe_interval("interval", page(at), page(at + 3), device)
            .expect("not empty")
    };
    let intervals = (0..nr).map(interval).collect();
    let listed = |device| notifiers.subscribe("list", Ranges::WholeMm, Arc::new(device));
    let list = list.into_iter().map(listed).collect();
    World {
        notifiers,
        intervals,
        list,
    }
}

/// Brackets of both modes, in each other and beside each other, and lookups; how often this thread
/// allocated meanwhile, and how many brackets were refused.
fn work(world: &World) -> (u64, u64) {
    let before = nr_allocations();
    let mut nr_refused = 0;
    let deadline = Duration::from_secs(60);
    for round in 0..200 {
        let (start, end) = (page(round % 90), page(round % 90 + 1 + round % 17));
        let event = Event::ALL[round as usize % Event::ALL.len()];
        let outer = world.notifiers.start_nonblock(start, end, event);
        nr_refused += u64::from(outer.is_err());
        let wider = Vaddr(end.0 + 4096);
        let inner = world
            .notifiers
            .start_blockable(start, wider, event, deadline);
        drop(outer);
        drop(inner.expect("nobody hangs"));
        if let Some(subscription) = world.intervals.get(round as usize) {
            let seen = subscription.read_begin();
            let table = subscription.lock();
            let _others_may_run = subscription.read_retry(seen, &table);
        }
    }
    (nr_allocations() - before, nr_refused)
}

#[test]
fn n117_brackets_allocate_nothing() {
    let before = nr_allocations();
    let nobody = world(0, Vec::new());
    assert!(nr_allocations() > before, "the counter does not count");
    let settling = Device {
        fences: (0..SETTLE_QUEUE * 2)
            .map(|_| Fence::new("test.fence"))
            .collect(),
        ..Device::new()
    };
    settling
        .fences
        .iter()
        .for_each(|fence| assert!(fence.signal()));
    let refusing = || Device {
        refuses: true,
        ..Device::new()
    };
    let rows = [
        ("nobody", nobody, 0),
        ("the list", world(0, vec![Device::new(), Device::new()]), 0),
        ("one interval", world(1, Vec::new()), 0),
        ("intervals", world(100, Vec::new()), 0),
        ("both", world(100, vec![Device::new(), settling]), 0),
        (
            "a refusal",
            world(100, vec![refusing(), Device::new()]),
            200,
        ),
    ];
    for (what, world, nr_refused) in &rows {
        assert_eq!(work(world), (0, *nr_refused), "{what}");
        assert_eq!(
            world.list.len() + world.intervals.len() == 0,
            *what == "nobody"
        );
    }
    let (_, both, _) = &rows[4];
    std::thread::scope(|scope| {
        let threads = [(); 3].map(|()| scope.spawn(|| work(both).0));
        for thread in threads {
            assert_eq!(thread.join().expect("no thread fails"), 0);
        }
    });
}

/// Fences that are waited for wait in place.
#[test]
fn n118_settling_allocates_nothing() {
    // More fences than the queue holds are waited for in the callback, each for a while.
    let fences: Vec<Fence> = (0..SETTLE_QUEUE + 3)
        .map(|_| Fence::new("test.fence"))
        .collect();
    let device = Device {
        fences: fences.clone(),
        ..Device::new()
    };
    let world = world(3, vec![device]);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let before = nr_allocations();
            let opened = world.notifiers.start_blockable(
                page(0),
                page(9),
                Event::Clear,
                Duration::from_secs(60),
            );
            drop(opened.expect("they signal"));
            nr_allocations() - before
        });
        // A thread of its own: whoever makes a subscription before it signals draws a warning, and
        // that is built in either of the two, and allocates.
        scope.spawn(|| {
            lockdep::sync::spin_wait("test.starts", 0, || {
                world.notifiers.stats().starts_total() > 0
            });
            fences.iter().for_each(|fence| assert!(fence.signal()));
        });
        assert_eq!(waits.join().expect("no panic"), 0);
    });
}
