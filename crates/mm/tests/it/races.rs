//! Interleavings that need a hook at one point, and bounds that need a count.

use crate::machine::OnThreads;
use lockdep::scheduler::{Point, Scheduler, Wake, install};
use lockdep::sync::{Completion, Mutex, Waited};
use pinless_mm::addr::{PAGE_SIZE, PageRun, Vaddr};
use pinless_mm::fault::FaultHandler;
use pinless_mm::gfp::Gfp;
use pinless_mm::limits::{Limits, PINS_PER_PAGE_MAX};
use pinless_mm::mm_struct::{MmHandle, PinError};
use pinless_mm::page::State;
use pinless_mm::primary_mmu::{Access, PrimaryMmu};
use pinless_mm::suite::{Machine, Mapping};
use pinless_mm::{Advice, Memcg};
use pinless_sim::{Frames, SimMmu};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

struct At<F>(F);

impl<F: Fn(Point) + Send + Sync> Scheduler for At<F> {
    fn point(&self, point: Point) {
        (self.0)(point);
    }

    fn block(&self, _point: Point, _timeout: Option<Duration>) -> Waited {
        std::thread::yield_now();
        Waited::Done
    }

    fn wake(&self, _addr: usize, _wake: Wake) {}
}

fn incompressible(seed: u64) -> Vec<u8> {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..PAGE_SIZE)
        .map(|_| {
            z ^= z << 13;
            z ^= z >> 7;
            z ^= z << 17;
            (z >> 32) as u8
        })
        .collect()
}

/// A machine whose store has room for two pages that cannot be compressed, and has them; a third
/// stands by.
fn with_a_full_store() -> (Arc<Memcg>, MmHandle, Arc<dyn Mapping>) {
    let machine = OnThreads::new();
    let mut limits = Limits::new(64 * PAGE_SIZE as u64);
    limits.zswap_max_bytes = 3 * PAGE_SIZE as u64;
    let memcg = Memcg::new(limits, machine.clock()).expect("limits");
    let mm = memcg.new_mm("one");
    let mapping = machine.map(&mm, 32);
    for page in 10..13 {
        let contents = incompressible(u64::from(page));
        mapping.write(offset(page), &contents).expect("a frame");
        page_out(&*mapping, page);
    }
    assert_eq!(mapping.vma().page_state(12), State::Standby);
    (memcg, mm, mapping)
}

fn offset(page: u32) -> u64 {
    u64::from(page) * PAGE_SIZE as u64
}

fn page_out(mapping: &dyn Mapping, page: u32) {
    let run = PageRun::single(page);
    let advised = mapping.vma().advise(run, Advice::PageOut);
    advised.expect("nobody refuses");
}

/// Pages page 0 out in a thread that stops once the page is stored and before its frame is freed.
fn page_out_and_stop(
    mapping: &Arc<dyn Mapping>,
    is_stored: &Arc<Completion>,
    go_on: &Arc<Completion>,
) -> JoinHandle<()> {
    let (mapping, is_stored, go_on) = (mapping.clone(), is_stored.clone(), go_on.clone());
    std::thread::spawn(move || {
        let seen = Arc::clone(mapping.vma());
        let hook = At(move |point: Point| {
            if point.class == "mm.page" && seen.page_state(0) == State::Storing {
                is_stored.complete_all();
                go_on.wait();
            }
        });
        let _hook = install(Arc::new(hook));
        page_out(&*mapping, 0);
    })
}

/// While a store fails, its page is used, changed, detached again, and stored by somebody else: the
/// state word looks the same.
#[test]
fn no_room_is_of_the_contents_that_were_stored() {
    let (memcg, _mm, mapping) = with_a_full_store();
    mapping.write(0, &incompressible(99)).expect("a frame");
    let (is_stored, go_on) = (
        Arc::new(Completion::new("test.is_stored")),
        Arc::new(Completion::new("test.go_on")),
    );
    let second = Arc::new(Mutex::new("test.second", None));
    let hook = At({
        let (mapping, is_stored, go_on) = (mapping.clone(), is_stored.clone(), go_on.clone());
        let second = Arc::clone(&second);
        move |point: Point| {
            // The first store has failed, and the page is about to stand by again.
            let is_storing = || mapping.vma().page_state(0) == State::Storing;
            if point.class != "mm.page" || !is_storing() || second.lock().is_some() {
                return;
            }
            mapping.write(0, &[0; PAGE_SIZE]).expect("rescued");
            *second.lock() = Some(page_out_and_stop(&mapping, &is_stored, &go_on));
            is_stored.wait();
        }
    });
    let hook = install(Arc::new(hook));
    page_out(&*mapping, 0);
    drop(hook);
    go_on.complete_all();
    let second = second.lock().take().expect("the first store failed");
    second.join().expect("no thread fails");
    page_out(&*mapping, 0);
    memcg.stop();
    // Zeros need no room.
    assert_eq!(mapping.vma().page_state(0), State::Swapped);
}

/// Whoever is about to store page 0, and looked at it, finds it the same though it was used and
/// detached again in between. Not one point at which that happens keeps it from being stored.
#[test]
fn a_page_that_was_used_and_detached_again_is_stored() {
    let mut nr_done = 0;
    for nth in 1.. {
        let machine = OnThreads::new();
        let memcg = Memcg::new(Limits::new(64 * PAGE_SIZE as u64), machine.clock());
        let memcg = memcg.expect("limits");
        let mm = memcg.new_mm("one");
        let mapping = machine.map(&mm, 32);
        mapping.write(0, &[7; PAGE_SIZE]).expect("a frame");
        let cold = |mapping: &dyn Mapping| {
            let advised = mapping.vma().advise(PageRun::single(0), Advice::Cold);
            advised.expect("nobody refuses");
        };
        cold(&*mapping);
        assert_eq!(mapping.vma().page_state(0), State::Standby);
        let nr_points = Arc::new(AtomicU64::new(0));
        let hook = At({
            let (mapping, nr_points) = (Arc::clone(&mapping), Arc::clone(&nr_points));
            move |point: Point| {
                let stands_by = || mapping.vma().page_state(0) == State::Standby;
                if point.class == "mm.page"
                    && stands_by()
                    && nr_points.fetch_add(1, Relaxed) + 1 == nth
                {
                    mapping.read(0, &mut [0]).expect("it comes back");
                    cold(&*mapping);
                }
            }
        });
        let hook = install(Arc::new(hook));
        page_out(&*mapping, 0);
        drop(hook);
        page_out(&*mapping, 0);
        memcg.stop();
        assert_eq!(mapping.vma().page_state(0), State::Swapped, "point {nth}");
        if nr_points.load(Relaxed) < nth {
            break;
        }
        nr_done += 1;
    }
    assert!(nr_done > 0, "no point was found at which it can happen");
}

#[test]
fn a_fault_looks_at_a_bounded_number_of_windows() {
    for nr_windows in [64_u32, 256, 1024] {
        let machine = OnThreads::new();
        let mut limits =
            Limits::new(u64::from(nr_windows + nr_windows / 64 + 2) * PAGE_SIZE as u64);
        limits.zswap_max_bytes = 3 * PAGE_SIZE as u64;
        limits.fault_deadline = Duration::from_millis(50);
        let memcg = Memcg::new(limits, machine.clock()).expect("limits");
        let mm = memcg.new_mm("one");
        let small = machine.map(&mm, 2);
        let mapping = machine.map(&mm, nr_windows * 64);
        small.write(0, &[0x55; PAGE_SIZE]).expect("w");
        let out = PageRun::single(0);
        small.vma().advise(out, Advice::PageOut).expect("out");
        for window in 0..nr_windows {
            let contents = incompressible(u64::from(window) + 7);
            if mapping.write(offset(window * 64), &contents).is_err() {
                break;
            }
        }
        // A copy that is kept.
        let _ = small.read(0, &mut [0]);
        let nr = Arc::new(AtomicU64::new(0));
        let counts = Arc::clone(&nr);
        let hook = install(Arc::new(At(move |point: Point| {
            if point.class == "mm.reclaim.hands"
                && point.kind == lockdep::scheduler::PointKind::Lock
            {
                counts.fetch_add(1, Relaxed);
            }
        })));
        let mut most = 0;
        for page in 1..12 {
            let before = nr.load(Relaxed);
            let _ = mapping.write(offset(page), &incompressible(3));
            most = most.max(nr.load(Relaxed) - before);
        }
        drop(hook);
        memcg.stop();
        // 16 windows in each of two rounds, in pieces of four pages.
        assert!(most <= 96, "{most} pieces in one fault");
    }
}

/// A page that is brought in for a pin cannot be taken before it has it: one fault is enough,
/// though somebody puts the page away at every moment at which it is at its address.
#[test]
fn a_page_that_comes_for_a_pin_comes_pinned() {
    #[track_caller]
    fn check(put_away: Option<Advice>, access: Access, counter: &str) {
        let machine = OnThreads::new();
        let limits = Limits::new(64 * PAGE_SIZE as u64);
        let memcg = Memcg::new(limits, machine.clock()).expect("limits");
        let mm = memcg.new_mm("pinning");
        let mapping = machine.map(&mm, 4);
        let page = PageRun::single(0);
        if let Some(put_away) = put_away {
            mapping.write(0, &incompressible(1)).expect("a frame");
            let advised = mapping.vma().advise(page, put_away);
            advised.expect("nobody refuses");
        }
        let nr_taken = Arc::new(AtomicU64::new(0));
        let hook = At({
            let (mapping, nr_taken) = (mapping.clone(), nr_taken.clone());
            move |point: Point| {
                let is_there = || mapping.vma().page_state(0) == State::Resident;
                // Not without end, so that a test that fails ends.
                if point.class == "mm.page" && is_there() && nr_taken.load(Relaxed) < 3 {
                    nr_taken.fetch_add(1, Relaxed);
                    page_out(&*mapping, 0);
                }
            }
        });
        let before = count_of(&memcg, counter);
        let hook = install(Arc::new(hook));
        let pin = mapping.vma().pin(page, access, Gfp::Kernel);
        let pin = pin.expect("a frame");
        drop(hook);
        let case = format!("{put_away:?}, {access:?}");
        assert_eq!(count_of(&memcg, counter) - before, 1, "{case}: {counter}");
        assert_eq!(nr_taken.load(Relaxed), 0, "{case}: taken before its use");
        page_out(&*mapping, 0);
        assert_eq!(mapping.vma().page_state(0), State::Resident, "{case}");
        drop(pin);
        page_out(&*mapping, 0);
        assert_eq!(mapping.vma().page_state(0), State::Swapped, "{case}");
    }
    for access in [Access::Read, Access::Write] {
        check(None, access, "pgfault_zero");
        check(Some(Advice::Cold), access, "pgfault_soft");
        check(Some(Advice::PageOut), access, "pgmajfault");
    }
}

/// Something takes a page away that is pinned as often as a page can be. It comes back for whoever
/// uses it, and one more pin is refused as it would be without that.
#[test]
fn a_page_that_is_gone_under_all_its_pins_takes_no_more() {
    let limits = Limits::new(64 * PAGE_SIZE as u64);
    let memcg = Memcg::new(limits, OnThreads::new().clock()).expect("limits");
    let mm = memcg.new_mm("pinning");
    let mmu = SimMmu::new(Vaddr(0x5000_0000), 4, &Frames::new(64));
    let vma = mm.map(Arc::clone(&mmu) as Arc<dyn PrimaryMmu>);
    let (vma, page) = (vma.expect("a mapping"), PageRun::single(0));
    mmu.cpu_write(&*vma, 0, &incompressible(1))
        .expect("a frame");
    vma.advise(page, Advice::PageOut).expect("nobody refuses");
    let pin = || vma.pin(page, Access::Read, Gfp::Kernel);
    let pins: Vec<_> = (0..PINS_PER_PAGE_MAX)
        .map(|_| pin().expect("one more"))
        .collect();
    let refused = PinError::TooManyPins { page: 0 };
    assert_eq!(pin().err(), Some(refused));
    mmu.foreign_discard(page);
    // The books find out, and have it in the store; whoever comes next brings it in.
    vma.fault(0, Access::Read).expect("found gone");
    assert_eq!(vma.page_state(0), State::Swapped);
    assert_eq!(pin().err(), Some(refused));
    vma.fault(0, Access::Read).expect("a frame");
    assert_eq!(vma.page_state(0), State::Resident);
    assert_eq!(pin().err(), Some(refused));
    drop(pins);
    drop(pin().expect("all are gone"));
    assert_eq!(memcg.stat().pages_lost, 0);
}

fn count_of(memcg: &Memcg, counter: &str) -> u64 {
    let stat = memcg.stat();
    let found = stat.counters().find(|(name, _)| *name == counter);
    found.expect("a counter of that name").1
}
