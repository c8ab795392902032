//! Running out of memory.

use super::{Machine, Mapping, Rng, World, offset_of, read_page, write_page};
use crate::addr::PAGE_SIZE;
use crate::fault::FaultError;
use crate::limits::Limits;
use crate::oom::Reason;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::sync::Arc;

/// Writes pages that cannot be compressed until the address space is killed.
pub(super) fn leak(mapping: &dyn Mapping, nr_pages: u32, seed: u64) -> u32 {
    let mut rng = Rng(seed);
    for page in 0..nr_pages {
        match mapping.write(offset_of(page), &rng.incompressible()) {
            Ok(()) => {}
            Err(FaultError::Killed) => return page,
            Err(error) => panic!("page {page}: {error}"),
        }
    }
    panic!("nobody was killed after {nr_pages} pages");
}

pub(super) fn limits(frames: u64) -> Limits {
    let mut limits = Limits::new(frames * PAGE_SIZE as u64);
    limits.zswap_max_bytes = 2 * limits.max_bytes;
    limits.reap_interval = Duration::from_millis(2);
    limits
}

/// G7, G16.
pub(super) fn the_leaker_is_killed_and_the_others_live(machine: &dyn Machine) {
    let world = World::with_limits(machine, limits(32));
    let (good, bad) = (world.memcg.new_mm("good"), world.memcg.new_mm("bad"));
    let (kept, leaked) = (world.map(&good, 16), world.map(&bad, 512));
    let mut rng = Rng(21);
    let contents: Vec<_> = (0..16).map(|_| rng.half_compressible()).collect();
    for page in 0..16 {
        write_page(&*kept, page, &contents[page as usize]);
    }
    static CALLED: AtomicBool = AtomicBool::new(false);
    bad.set_on_kill(|| CALLED.store(true, Ordering::Relaxed));
    leak(&*leaked, 512, 22);
    assert!(CALLED.load(Ordering::Relaxed));
    assert!(bad.is_killed() && !good.is_killed());
    world.wait_until_reaped();
    let reports = world.memcg.oom_reports();
    assert_eq!(reports.len(), 1, "one victim is enough: {reports:?}");
    assert_eq!((&*reports[0].victim, reports[0].candidates), ("bad", 2));
    assert_eq!(reports[0].skipped, []);
    assert_eq!(
        (bad.nr_frames(), bad.nr_swapped()),
        (0, 0),
        "everything came back"
    );
    for page in [0, 100, 511] {
        assert_eq!(
            leaked.read(offset_of(page), &mut [0]),
            Err(FaultError::Killed)
        );
    }
    for page in 0..16 {
        assert!(
            read_page(&*kept, page) == contents[page as usize],
            "page {page} of the other"
        );
    }
}

/// Kernel counterpart: `memory.oom.group`; one report each, all reaped before anybody else goes.
pub(super) fn a_group_is_killed_together(machine: &dyn Machine) {
    let mut limits = limits(32);
    limits.oom_group = true;
    let world = World::with_limits(machine, limits);
    let names = ["worst", "member", "spared"];
    let [worst, member, spared] = names.map(|name| world.memcg.new_mm(name));
    spared.set_oom_score_adj(-1000);
    let maps = [(&worst, 512), (&member, 8), (&spared, 8)].map(|(mm, nr)| world.map(mm, nr));
    let nr_called = Arc::new(AtomicU64::new(0));
    for mm in [&worst, &member, &spared] {
        let nr_called = Arc::clone(&nr_called);
        mm.set_on_kill(move || {
            nr_called.fetch_add(1, Ordering::Relaxed);
        });
    }
    for mapping in &maps[1..] {
        write_page(&**mapping, 3, &[7]);
    }
    leak(&*maps[0], 512, 71);
    world.wait_until_reaped();
    assert!(worst.is_killed() && member.is_killed() && !spared.is_killed());
    let reports = world.memcg.oom_reports();
    let told: Vec<_> = reports
        .iter()
        .map(|report| (&*report.victim, report.reason))
        .collect();
    let group = Reason::Group { of: worst.id() };
    assert_eq!(told, [("worst", Reason::Badness), ("member", group)]);
    let considered: Vec<_> = reports[0].considered.iter().map(|of| &*of.name).collect();
    assert_eq!(considered, ["worst", "member"]);
    for mm in [&worst, &member] {
        assert_eq!((mm.nr_frames(), mm.nr_swapped()), (0, 0));
    }
    world.wait_until("both are told", || nr_called.load(Ordering::Relaxed) == 2);
    assert_eq!(read_page(&*maps[2], 3)[0], 7);
    assert_eq!(maps[1].read(0, &mut [0]), Err(FaultError::Killed));
}
