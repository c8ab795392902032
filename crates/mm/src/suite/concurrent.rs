//! Many threads at once.

use super::{Machine, Mapping, Rng, World, offset_of, write_page};
use crate::addr::{PAGE_SIZE, PageRun};
use crate::gfp::Gfp;
use crate::mm_struct::{Advice, PinError};
use crate::primary_mmu::Access;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

const WRITERS: u32 = 3;
const PAGES_EACH: u32 = 24;
const STEPS: u32 = 1500;

/// Each writer owns every third page: neighbours are under different writers, and each counts up
/// in its pages. What is read is what was last written.
fn write_and_verify(mapping: &dyn Mapping, writer: u32, steps: u32) {
    let mut rng = Rng(u64::from(writer));
    let mut model = vec![0u64; PAGES_EACH as usize];
    for _ in 0..steps {
        let mine = rng.below(u64::from(PAGES_EACH));
        let page = mine as u32 * WRITERS + writer;
        let at = offset_of(page) + u64::from(writer) * 8;
        let mut word = [0; 8];
        mapping.read(at, &mut word).expect("contents");
        let (found, expected) = (u64::from_le_bytes(word), model[mine as usize]);
        assert_eq!(found, expected, "page {page} of writer {writer}");
        if rng.below(2) == 0 {
            let next = rng.next();
            mapping.write(at, &next.to_le_bytes()).expect("room");
            model[mine as usize] = next;
        }
    }
}

/// G10.
pub(super) fn writers_lose_nothing_under_reclaim(machine: &dyn Machine) {
    for frames in [4, 6, 16, 40] {
        let world = World::new(machine, frames);
        let mm = world.memcg.new_mm("writers");
        let mapping = world.map(&mm, WRITERS * PAGES_EACH);
        let tasks: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let mapping = Arc::clone(&mapping);
                world.spawn("writer", move || write_and_verify(&*mapping, writer, STEPS))
            })
            .collect();
        let vma = Arc::clone(mapping.vma());
        for round in 0..40 {
            let first = round * 7 % (WRITERS * PAGES_EACH - 8);
            vma.advise(PageRun::new(first, 8), Advice::PageOut)
                .expect("nobody refuses");
        }
        for join in tasks {
            join();
        }
        world.check_bounds();
    }
}

/// G11.
pub(super) fn pins_and_reclaim_respect_each_other(machine: &dyn Machine) {
    let world = World::new(machine, 12);
    let mm = world.memcg.new_mm("pinners");
    let mapping = world.map(&mm, 48);
    let tasks: Vec<_> = (0..2u32)
        .map(|pinner| {
            let mapping = Arc::clone(&mapping);
            world.spawn("pinner", move || pin_and_verify(&*mapping, pinner))
        })
        .collect();
    for join in tasks {
        join();
    }
    assert_eq!(mm.nr_pins(), 0);
}

fn pin_and_verify(mapping: &dyn Mapping, pinner: u32) {
    let mut rng = Rng(u64::from(pinner) + 100);
    let mut model = [0u64; 24];
    for _ in 0..400 {
        let mine = rng.below(24);
        let page = mine as u32 * 2 + pinner;
        let run = PageRun::single(page);
        let _pin = match mapping.vma().pin(run, Access::Write, Gfp::Kernel) {
            Ok(pin) => pin,
            Err(PinError::Fault { error, .. }) => panic!("page {page}: {error}"),
            Err(error) => panic!("{error}"),
        };
        let at = offset_of(page) + PAGE_SIZE as u64 - 8;
        let mut word = [0; 8];
        mapping.read(at, &mut word).expect("pinned");
        assert_eq!(
            u64::from_le_bytes(word),
            model[mine as usize],
            "page {page}"
        );
        model[mine as usize] = rng.next();
        mapping
            .write(at, &model[mine as usize].to_le_bytes())
            .expect("pinned");
    }
}

/// The worker sleeps when enough frames are free, and those who took them must wake it: nobody
/// else comes by here.
pub(super) fn everybody_who_waits_gets_a_frame(machine: &dyn Machine) {
    const WAITERS: u32 = 6;
    let world = World::new(machine, 4);
    let mm = world.memcg.new_mm("waiters");
    mm.set_oom_score_adj(-1000);
    let mapping = world.map(&mm, 4 + WAITERS);
    for _ in 0..10 {
        let before = world.memcg.stat().pgfault_waited;
        let pinned = mapping
            .vma()
            .pin(PageRun::new(0, 4), Access::Write, Gfp::Kernel);
        let pinned = pinned.expect("four frames");
        let tasks: Vec<_> = (4..4 + WAITERS)
            .map(|page| {
                let mapping = Arc::clone(&mapping);
                world.spawn("waiter", move || {
                    mapping.read(offset_of(page), &mut [0]).expect("a frame");
                })
            })
            .collect();
        world.wait_until("a thread waits", || {
            world.memcg.stat().pgfault_waited > before
        });
        drop(pinned);
        for join in tasks {
            join();
        }
    }
}

/// A page may come back before its neighbours are stored; it is counted as stored by then.
pub(super) fn counts_stay_in_range(machine: &dyn Machine) {
    const NR_PAGES: u32 = 64;
    let world = World::new(machine, 256);
    let mm = world.memcg.new_mm("counts");
    let mapping = world.map(&mm, NR_PAGES);
    for page in 0..NR_PAGES {
        mapping.write(offset_of(page), &[9]).expect("a frame");
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let (vma, ends) = (Arc::clone(mapping.vma()), Arc::clone(&is_over));
    let adviser = world.spawn("adviser", move || {
        for _ in 0..100 {
            for advice in [Advice::PageOut, Advice::WillNeed] {
                vma.advise(vma.all(), advice).expect("nobody refuses");
            }
        }
        ends.store(true, Ordering::Relaxed);
    });
    while !is_over.load(Ordering::Relaxed) {
        mapping.write(0, &[9]).expect("a frame");
        let nr_swapped = mm.nr_swapped();
        assert!(
            nr_swapped <= u64::from(NR_PAGES),
            "{nr_swapped} are swapped"
        );
    }
    adviser();
}

/// Who is in a fault, 0 for nobody, and what was destroyed there.
#[derive(Default)]
struct InFault {
    who: AtomicU32,
    nr_destroyed: AtomicU64,
}

/// Something of the program's that goes with its address space.
struct Canary(Arc<InFault>);

impl Drop for Canary {
    fn drop(&mut self) {
        if self.0.who.load(Ordering::Relaxed) == lockdep::thread::number() {
            self.0.nr_destroyed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A fault that reclaims uses mappings of others, and may be their last user.
pub(super) fn no_address_space_is_destroyed_in_a_fault(machine: &dyn Machine) {
    let world = World::new(machine, 16);
    let in_fault = Arc::new(InFault::default());
    let mm = world.memcg.new_mm("faults");
    let mapping = world.map(&mm, 64);
    let stop = Arc::new(AtomicBool::new(false));
    let faulter = {
        let (mapping, stop) = (Arc::clone(&mapping), Arc::clone(&stop));
        let in_fault = Arc::clone(&in_fault);
        world.spawn("faulter", move || {
            let mut rng = Rng(92);
            let me = lockdep::thread::number();
            while !stop.load(Ordering::Relaxed) {
                let page = rng.below(64) as u32;
                in_fault.who.store(me, Ordering::Relaxed);
                let written = mapping.write(offset_of(page), &[1]);
                in_fault.who.store(0, Ordering::Relaxed);
                written.expect("a frame");
            }
        })
    };
    for _ in 0..400 {
        let other = world.memcg.new_mm("other");
        let canary = Canary(Arc::clone(&in_fault));
        other.set_on_kill(move || {
            let _ = &canary;
        });
        let gone = world.map(&other, 8);
        for page in 0..8 {
            write_page(&*gone, page, &[2]);
        }
        drop(other);
        drop(gone);
        if in_fault.nr_destroyed.load(Ordering::Relaxed) > 0 {
            break;
        }
    }
    stop.store(true, Ordering::Relaxed);
    faulter();
    let nr = in_fault.nr_destroyed.load(Ordering::Relaxed);
    assert_eq!(nr, 0, "a foreign destructor ran in a fault");
}
