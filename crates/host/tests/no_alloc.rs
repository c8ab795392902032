//! G12: after start nothing allocates on the paths of faults, pins, reclaim, notifiers and kills.
//!
//! The test program has an allocator that counts. A thread is *watched* from where it says so (or,
//! a service thread, from its first fault; the reaper, from its first victim), and counts while a
//! section is open: so starting a thread, which allocates, counts for nobody, and all that a
//! watched thread does counts, in the SIGBUS handler too. One test, section after section, because
//! the count is the whole program's; the first section shows that an allocation in a watched
//! thread, in a fault handler of either kind, and in a notifier is seen.
#![expect(clippy::print_stdout, reason = "what cannot run here says so")]

use core::cell::Cell;
use core::hint::black_box;
use core::time::Duration;
use fastrand::Rng;
use lockdep::sync::{Completion, Fence};
use pinless_host::io_uring::{Kind, Ring};
use pinless_host::{AccessError, CreateError, FaultService, HostMapping, Resolver, attach_thread};
use pinless_mm::addr::{PAGE_SIZE, PageIndex, PageRun};
use pinless_mm::env::Clock;
use pinless_mm::fault::{FaultError, FaultHandler};
use pinless_mm::gfp::Gfp;
use pinless_mm::limits::Limits;
use pinless_mm::mm_struct::{Advice, Vma};
use pinless_mm::mmu_notifier::{Context, EndContext, Event, Notifier, Range, Ranges, Subscription};
use pinless_mm::primary_mmu::Access;
use pinless_mm::{Memcg, MmHandle};
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Instant;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Whether allocations of watched threads count now.
static IS_OPEN: AtomicBool = AtomicBool::new(false);
/// Allocations that counted since the section was opened, and the size of the first.
static NR_ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static FIRST_SIZE: AtomicUsize = AtomicUsize::new(0);

/// What is known of a thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Nobody has said: a thread of the test program's, or one of the library's that has not
    /// resolved a fault or read the clock yet.
    Unknown,
    /// Sets up and starts threads: may allocate.
    Exempt,
    Watched,
}

thread_local! {
    /// A constant without a destructor: using it allocates nothing.
    static ROLE: Cell<Role> = const { Cell::new(Role::Unknown) };
}

fn count(size: usize) {
    // Relaxed, here and below: sections are opened and closed while the watched threads that
    // belong to them do not run, or do nothing but wait; a lock or a join orders the rest.
    if ROLE.get() == Role::Watched
        && IS_OPEN.load(Ordering::Relaxed)
        && NR_ALLOCATIONS.fetch_add(1, Ordering::Relaxed) == 0
    {
        FIRST_SIZE.store(size, Ordering::Relaxed);
    }
}

// SAFETY: every call is handed on unchanged to the system's allocator, which fulfils the contract;
// counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of this very function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size);
        // SAFETY: as in `alloc`.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// Watches this thread until dropped; what comes after, such as the end of the thread, may
/// allocate.
struct Watch;

impl Watch {
    fn start() -> Self {
        ROLE.set(Role::Watched);
        Self
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        ROLE.set(Role::Exempt);
    }
}

/// A thread that nobody has spoken for is the library's and does its work: it is watched for good.
fn watch_if_unknown() {
    if ROLE.get() == Role::Unknown {
        ROLE.set(Role::Watched);
    }
}

/// How many allocations watched threads made while `act` ran.
fn nr_allocations(act: impl FnOnce()) -> u64 {
    NR_ALLOCATIONS.store(0, Ordering::Relaxed);
    IS_OPEN.store(true, Ordering::Relaxed);
    act();
    IS_OPEN.store(false, Ordering::Relaxed);
    NR_ALLOCATIONS.load(Ordering::Relaxed)
}

/// A section in which nothing may be allocated.
#[track_caller]
fn check_section(name: &str, act: impl FnOnce()) {
    let nr = nr_allocations(act);
    let first = FIRST_SIZE.load(Ordering::Relaxed);
    assert_eq!(
        nr, 0,
        "allocations in section {name:?}, the first of {first} bytes"
    );
}

fn allocate() {
    drop(black_box(Box::new(1_u64)));
}

struct TestClock(Instant);

impl Clock for TestClock {
    fn now_ns(&self) -> u64 {
        watch_if_unknown();
        self.0.elapsed().as_nanos() as u64
    }
}

/// A page that no codec makes smaller.
fn noise(rng: &mut Rng) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    rng.fill(&mut page);
    page
}

/// Resolves faults, has the thread that does so watched, and allocates when a test asks it to.
struct Spy {
    vma: Arc<Vma>,
    allocates: AtomicBool,
}

impl FaultHandler for Spy {
    fn fault(&self, page: PageIndex, access: Access) -> Result<(), FaultError> {
        watch_if_unknown();
        if self.allocates.swap(false, Ordering::Relaxed) {
            allocate();
        }
        self.vma.fault(page, access)
    }

    fn stale_dma(&self, page: PageIndex) {
        self.vma.stale_dma(page);
    }
}

/// A device that settles a fence, and may refuse, or allocate, when asked to.
struct Device {
    refuses: AtomicBool,
    allocates: AtomicBool,
    fence: Fence,
    starts: AtomicU64,
    ends: AtomicU64,
}

impl Device {
    fn new(fence: &Fence) -> Arc<Self> {
        Arc::new(Self {
            refuses: AtomicBool::new(false),
            allocates: AtomicBool::new(false),
            fence: fence.clone(),
            starts: AtomicU64::new(0),
            ends: AtomicU64::new(0),
        })
    }

    fn signalled() -> Arc<Self> {
        let fence = Fence::new("test.device");
        fence.signal();
        Self::new(&fence)
    }
}

impl Notifier for Device {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        if self.allocates.swap(false, Ordering::Relaxed) {
            allocate();
        }
        if self.refuses.load(Ordering::Relaxed) {
            cx.would_block()?;
        }
        cx.settle(&self.fence)?;
        self.starts.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn end(&self, _range: &Range, _cx: &EndContext<'_>) {
        self.ends.fetch_add(1, Ordering::Relaxed);
    }
}

/// A memory cgroup whose workers are watched.
struct World<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    memcg: Arc<Memcg>,
    side: Side,
}

/// A mapping in an address space of its own.
struct Tenant {
    host: HostMapping,
    vma: Arc<Vma>,
    spy: Arc<Spy>,
    mm: MmHandle,
}

impl Tenant {
    fn read(&self, page: PageIndex) -> Result<u64, AccessError> {
        self.host.load_u64(u64::from(page) * PAGE_SIZE as u64)
    }

    fn write(&self, page: PageIndex, value: u64) -> Result<(), AccessError> {
        self.host
            .store_u64(u64::from(page) * PAGE_SIZE as u64, value)
    }

    fn fill(&self, page: PageIndex, contents: &[u8]) -> Result<(), AccessError> {
        self.host
            .write_at(u64::from(page) * PAGE_SIZE as u64, contents)
    }

    fn subscribe(&self, name: &str, device: &Arc<Device>) -> Subscription {
        let notifiers = self.mm.notifiers();
        notifiers.subscribe(name, Ranges::WholeMm, Arc::clone(device))
    }

    /// Reads and writes at random, mostly reads: every kind of fault.
    fn wander(&self, seed: u64, steps: u32) {
        let mut rng = Rng::with_seed(seed);
        for _ in 0..steps {
            let page = rng.u32(..self.vma.nr_pages());
            let value = rng.u64(..);
            match value % 4 {
                0 => self.write(page, value).expect("room"),
                _ => drop(self.read(page).expect("contents")),
            }
        }
    }
}

fn limits(frames: u64, zswap_frames: u64) -> Limits {
    let mut limits = Limits::new(frames * PAGE_SIZE as u64);
    limits.zswap_max_bytes = zswap_frames * PAGE_SIZE as u64;
    limits.settle_deadline = Duration::from_secs(100);
    // All passes together are longer than a thread that has a page is kept from its processor.
    limits.reap_interval = Duration::from_millis(20);
    limits
}

impl<'scope, 'env> World<'scope, 'env> {
    fn new(scope: &'scope Scope<'scope, 'env>, side: &Side, limits: Limits) -> Self {
        let clock = Arc::new(TestClock(Instant::now()));
        let memcg = Memcg::new(limits, clock).expect("limits that leave a reserve");
        for run in [Memcg::run_reclaim, Memcg::run_settle] {
            let memcg = Arc::clone(&memcg);
            scope.spawn(move || {
                let _watch = Watch::start();
                run(&memcg);
            });
        }
        // The reaper prepares itself before it waits for work: its first victim shows that it has.
        let reaped = Arc::clone(&memcg);
        scope.spawn(move || reaped.run_reaper());
        Self {
            scope,
            memcg,
            side: side.clone(),
        }
    }

    fn tenant(&self, name: &str, nr_pages: u32) -> Arc<Tenant> {
        let mm = self.memcg.new_mm(name);
        let mut host =
            (self.side.create)(nr_pages, self.side.resolver.clone()).expect("probed before");
        let vma = mm.map(host.mmu()).expect("an address space that lives");
        let spy = Arc::new(Spy {
            vma: Arc::clone(&vma),
            allocates: AtomicBool::new(false),
        });
        host.attach(Arc::clone(&spy) as _).expect("registered");
        Arc::new(Tenant { host, vma, spy, mm })
    }

    /// Runs `body` in a new thread, watched from the moment on at which it could touch memory.
    fn spawn(&self, body: impl FnOnce() + Send + 'scope) -> ScopedJoinHandle<'scope, ()> {
        self.scope.spawn(|| {
            let _attached = attach_thread().expect("a signal stack");
            let _watch = Watch::start();
            body();
        })
    }

    /// Runs `body` like that, in `nr` threads at once, each told its number.
    fn spawn_all(&self, nr: u64, body: impl Fn(u64) + Send + Sync + 'scope) {
        let (body, start) = (Arc::new(body), Arc::new(Completion::new("test.start")));
        let threads: Vec<_> = (0..nr)
            .map(|me| {
                let (body, start) = (Arc::clone(&body), Arc::clone(&start));
                self.spawn(move || {
                    start.wait();
                    body(me);
                })
            })
            .collect();
        start.complete_all();
        for thread in threads {
            thread.join().expect("no thread fails");
        }
    }

    /// Waits until `condition` holds, bounded in rounds.
    #[track_caller]
    fn wait_until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        for _ in 0..20_000 {
            if condition() {
                return;
            }
            lockdep::sync::sleep("test.wait_until", Duration::from_micros(500));
        }
        panic!("{what} did not come true: {:?}", self.memcg.stat());
    }
}

impl Drop for World<'_, '_> {
    fn drop(&mut self) {
        self.memcg.stop();
    }
}

/// An allocation is seen, wherever it is made.
fn the_counter_counts(world: &World<'_, '_>) {
    let tenant = world.tenant("canary", 8);
    let device = Device::signalled();
    let _subscription = tenant.subscribe("canary", &device);
    let touch = |page| {
        let tenant = Arc::clone(&tenant);
        world.spawn_all(1, move |_| tenant.write(page, 1).expect("room"));
    };
    touch(0);
    assert_eq!(nr_allocations(allocate), 0, "this thread is not watched");
    assert_eq!(nr_allocations(|| world.spawn_all(1, |_| allocate())), 1);
    assert_eq!(nr_allocations(|| touch(1)), 0);
    tenant.spy.allocates.store(true, Ordering::Relaxed);
    assert_eq!(
        nr_allocations(|| touch(2)),
        1,
        "an allocation in a fault handler"
    );
    device.allocates.store(true, Ordering::Relaxed);
    let paged_out = Arc::clone(&tenant);
    let page_out = move |_| {
        let run = PageRun::new(0, 8);
        paged_out
            .vma
            .advise(run, Advice::PageOut)
            .expect("nobody refuses");
    };
    assert_eq!(
        nr_allocations(|| world.spawn_all(1, page_out)),
        1,
        "one in a notifier"
    );
}

/// Every kind of fault, waiting for frames, both hands, the store.
fn faults_and_reclaim(world: &World<'_, '_>) {
    let tenant = world.tenant("faults", 96);
    let mut rng = Rng::with_seed(1);
    for page in 0..96 {
        let noise = noise(&mut rng);
        let nr = if page % 3 == 0 { PAGE_SIZE } else { 300 };
        tenant.fill(page, &noise[..nr]).expect("room");
    }
    let before = world.memcg.stat();
    let wander = |what: &str| {
        check_section(what, || {
            let tenant = Arc::clone(&tenant);
            world.spawn_all(4, move |me| tenant.wander(me, 3000));
        });
    };
    wander("faults that reclaim for themselves");
    let device = Device::signalled();
    let subscription = tenant.subscribe("faults", &device);
    wander("faults that leave it to the worker");
    drop(subscription);
    let after = world.memcg.stat();
    assert!(after.pgfault_wp > before.pgfault_wp, "no write trapped");
    assert!(after.pgmajfault > before.pgmajfault, "nothing was filled");
    assert!(
        after.pgfault_waited > before.pgfault_waited,
        "nobody waited for a frame"
    );
    assert!(after.zswpout > before.zswpout && after.clean_drop > before.clean_drop);
}

/// Threads that have just been started, all in the same few pages and short of frames.
fn new_threads(world: &World<'_, '_>) {
    let tenant = world.tenant("crowd", 64);
    for name in ["64 new threads", "64 more"] {
        let tenant = Arc::clone(&tenant);
        check_section(name, || {
            world.spawn_all(64, move |me| {
                tenant.wander(7, 40);
                tenant.wander(me, 40);
            });
        });
    }
}

/// Pins, guards, and every advice.
fn pins_and_advice(world: &World<'_, '_>) {
    let tenant = world.tenant("pins", 64);
    let all = PageRun::new(0, 64);
    let before = world.memcg.stat().pgfault_soft;
    let holder = tenant.mm.pin_holder("nic0");
    check_section("pins, guards and advice", || {
        let (tenant, holder) = (Arc::clone(&tenant), holder.clone());
        world.spawn_all(3, move |me| {
            let mut rng = Rng::with_seed(me);
            for _ in 0..300 {
                let page = rng.u32(..62);
                let access = [Access::Read, Access::Write][rng.usize(..2)];
                let run = PageRun::new(page, 2);
                drop(tenant.vma.pin(run, access, Gfp::NoWait));
                drop(
                    tenant
                        .vma
                        .pin(run, access, Gfp::Kernel)
                        .expect("two frames"),
                );
                let named = tenant.vma.pin_for(&holder, run, access, Gfp::Kernel);
                drop(named.expect("two frames"));
                let guard = tenant.host.guard(&tenant.vma, run, Access::Write);
                let guard = guard.expect("two frames");
                guard.store_u64(8, u64::from(page)).expect("resident");
                drop(guard);
                tenant.wander(rng.u64(..), 4);
                let advice = [Advice::PageOut, Advice::WillNeed, Advice::Cold];
                let advice = advice[rng.usize(..3)];
                tenant.vma.advise(all, advice).expect("nobody refuses");
                // Refused while somebody has a pin.
                let _ = tenant.vma.advise(PageRun::new(page, 1), Advice::DontNeed);
            }
        });
    });
    assert!(
        world.memcg.stat().pgfault_soft > before,
        "no page came back softly"
    );
}

/// Brackets of both kinds, a device that refuses, one that is waited for.
fn notifiers(world: &World<'_, '_>) {
    let tenant = world.tenant("devices", 64);
    let (quick, slow) = (Device::signalled(), Device::signalled());
    let _quick = tenant.subscribe("quick", &quick);
    let _slow = tenant.subscribe("slow", &slow);
    slow.refuses.store(true, Ordering::Relaxed);
    let before = world.memcg.stat().reclaim_refused;
    check_section("refusals that a worker settles", || {
        let tenant = Arc::clone(&tenant);
        world.spawn_all(4, move |me| tenant.wander(me, 500));
    });
    assert!(
        world.memcg.stat().reclaim_refused > before,
        "nobody refused"
    );
    slow.refuses.store(false, Ordering::Relaxed);
    check_section("brackets", || {
        let tenant = Arc::clone(&tenant);
        world.spawn_all(3, move |_| {
            let (start, end) = (tenant.vma.base(), tenant.vma.address(64));
            for _ in 0..200 {
                let notifiers = tenant.mm.notifiers();
                let outer = notifiers.start_nonblock(start, end, Event::Clear);
                let deadline = Duration::from_secs(100);
                let inner = notifiers.start_blockable(start, end, Event::Protection, deadline);
                drop((
                    outer.expect("nobody refuses"),
                    inner.expect("it has settled"),
                ));
            }
        });
    });
    for device in [&quick, &slow] {
        let starts = device.starts.load(Ordering::Relaxed);
        assert!(starts > 0 && starts == device.ends.load(Ordering::Relaxed));
    }
}

/// Slots of a ring, made by a thread that may allocate, and taken back by those that may not.
fn slots(world: &World<'_, '_>) {
    let ring = match Ring::new(8, 8, Kind::Shared) {
        Ok(ring) => ring,
        Err(error) => {
            println!("skipped: slots of a ring: {error}");
            return;
        }
    };
    let tenant = world.tenant("slots", 64);
    let area = ring.attach(&tenant.host, &tenant.vma).expect("its pages");
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    check_section("slots that are taken back", || {
        for round in 0..40 {
            let at = (round * 7 % 64) * PAGE_SIZE as u64;
            writer.write_all(&[1; 64]).expect("room in the pipe");
            let read = ring.read_fixed(&area, reader.as_fd(), 0, at..at + 64);
            read.expect("a whole read");
            let tenant = Arc::clone(&tenant);
            world.spawn_all(1, move |_| tenant.wander(round, 40));
        }
    });
    assert!(ring.stats().revocations > 0, "{:?}", ring.stats());
}

/// A device that does not answer in time, and then does.
fn a_stuck_device(side: &Side) {
    let mut limits = limits(8, 400);
    limits.settle_deadline = Duration::from_millis(5);
    std::thread::scope(|scope| {
        let world = World::new(scope, side, limits);
        let tenant = world.tenant("stuck", 32);
        let fence = Fence::new("test.stuck");
        let device = Device::new(&fence);
        let before = tenant.vma.address(0)..tenant.vma.address(2);
        let notifiers = tenant.mm.notifiers();
        let _subscription = notifiers.subscribe("stuck", Ranges::Only(vec![before]), device);
        check_section("a stuck device", || {
            let wandering = Arc::clone(&tenant);
            world.spawn_all(2, move |me| wandering.wander(me, 500));
            let advised = Arc::clone(&tenant);
            world.spawn_all(1, move |_| {
                for _ in 0..3 {
                    advised.write(0, 1).expect("room");
                    // Fails, or passes over what is known to be stuck.
                    let _ = advised.vma.advise(PageRun::new(0, 8), Advice::PageOut);
                }
            });
            fence.signal();
            world.spawn_all(1, move |_| tenant.wander(9, 500));
        });
        assert!(world.memcg.stat().reclaim_stuck > 0, "it was waited for");
    });
}

/// Writes what cannot be compressed until it is killed.
fn leak(tenant: &Tenant, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    for page in 0..tenant.vma.nr_pages() {
        match tenant.fill(page, &noise(&mut rng)) {
            Ok(()) => {}
            Err(AccessError::Fault {
                error: FaultError::Killed,
                ..
            }) => return,
            Err(error) => panic!("page {page}: {error}"),
        }
    }
    panic!("nobody was killed");
}

/// The decision, the kill, the reaper with a device that holds something back, and those who come
/// to the memory of the victim afterwards. More than once: reports are kept.
fn kills(side: &Side) {
    std::thread::scope(|scope| {
        let world = World::new(scope, side, limits(32, 64));
        let good = world.tenant("good", 8);
        // The first one has the reaper watched.
        for round in 0..5 {
            let bad = world.tenant("bad", 400);
            let device = Device::signalled();
            let held = bad.vma.address(2)..bad.vma.address(5);
            let notifiers = bad.mm.notifiers();
            let subscription =
                notifiers.subscribe("holder", Ranges::Only(vec![held]), Arc::clone(&device));
            device.refuses.store(round % 2 == 1, Ordering::Relaxed);
            let holder = bad.mm.pin_holder("nic0");
            let run = PageRun::new(8, 2);
            let pinned = bad.vma.pin_for(&holder, run, Access::Write, Gfp::Kernel);
            let pinned = pinned.expect("two frames");
            check_section("out of memory", || {
                let (leaking, other) = (Arc::clone(&bad), Arc::clone(&good));
                world.spawn_all(2, move |me| match me {
                    0 => leak(&leaking, round),
                    _ => other.wander(round, 200),
                });
                world.wait_until("the reaper is done", || {
                    let reports = world.memcg.oom_reports();
                    reports.len() as u64 > round && reports.iter().all(|r| r.done_ns.is_some())
                });
                let late = Arc::clone(&bad);
                world.spawn_all(2, move |me| {
                    assert!(late.read(100).is_err() && late.write(me as u32, 1).is_err());
                });
            });
            let reports = world.memcg.oom_reports();
            let nr_skipped = reports.last().expect("a kill").skipped.len();
            let nr_refused = usize::from(round % 2 == 1);
            assert_eq!(nr_skipped, 1 + nr_refused, "{reports:?}");
            drop(pinned);
            device.refuses.store(false, Ordering::Relaxed);
            drop(subscription);
        }
        assert!(!good.mm.is_killed());
    });
}

/// What is behind the memory, and who resolves its faults.
#[derive(Clone)]
struct Side {
    create: fn(u32, Resolver) -> Result<HostMapping, CreateError>,
    resolver: Resolver,
}

fn check(side: &Side) {
    std::thread::scope(|scope| {
        let world = World::new(scope, side, limits(8, 400));
        the_counter_counts(&world);
        faults_and_reclaim(&world);
        new_threads(&world);
        pins_and_advice(&world);
        notifiers(&world);
        slots(&world);
    });
    a_stuck_device(side);
    kills(side);
}

#[test]
fn nothing_allocates_after_start() {
    ROLE.set(Role::Exempt);
    match HostMapping::create(1, Resolver::InThread) {
        Ok(_) => {}
        Err(why @ (CreateError::Unavailable(_) | CreateError::Features(_))) => {
            println!("skipped: no userfaultfd: {why}");
            return;
        }
        Err(error) => panic!("{error}"),
    }
    let _attached = attach_thread().expect("a signal stack");
    for create in [HostMapping::create, HostMapping::create_shared] {
        let service = FaultService::start(2).expect("threads");
        for resolver in [Resolver::Service(service), Resolver::InThread] {
            check(&Side { create, resolver });
        }
    }
}
