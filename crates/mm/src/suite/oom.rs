//! Running out of memory.

use super::{Machine, Mapping, Rng, World, offset_of, read_page, write_page};
use crate::addr::PAGE_SIZE;
use crate::fault::FaultError;
use crate::limits::Limits;
use crate::memcg::Memcg;
use crate::mm_struct::Advice;
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
    // All passes together are longer than a thread that has a page is kept from its processor.
    limits.reap_interval = Duration::from_millis(20);
    limits
}

/// G7, G16.
pub(super) fn n72_n78_n82_the_leaker_is_killed_and_the_others_live(machine: &dyn Machine) {
    let world = World::with_limits(machine, limits(32));
    let (good, bad) = (world.memcg.new_mm("good"), world.memcg.new_mm("bad"));
    let (kept, leaked) = (world.map(&good, 16), world.map(&bad, 512));
    let mut rng = Rng(21);
    let contents: Vec<_> = (0..16).map(|_| rng.half_compressible()).collect();
    for page in 0..16 {
        write_page(&*kept, page, &contents[page as usize]);
    }
    let was_told = Arc::new(AtomicBool::new(false));
    let tells = Arc::clone(&was_told);
    bad.set_on_kill(move || tells.store(true, Ordering::Relaxed));
    leak(&*leaked, 512, 22);
    world.wait_until("it is told", || was_told.load(Ordering::Relaxed));
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
pub(super) fn n80_a_group_is_killed_together(machine: &dyn Machine) {
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

/// Kernel counterpart: `cgroup.kill`, for one address space.
pub(super) fn n64_n67_who_is_killed_by_request_gives_everything_back(machine: &dyn Machine) {
    let world = World::with_limits(machine, limits(32));
    let [asked, other] = ["asked", "other"].map(|name| world.memcg.new_mm(name));
    let (given, kept) = (world.map(&asked, 64), world.map(&other, 8));
    let mut rng = Rng(91);
    for page in 0..48 {
        write_page(&*given, page, &rng.half_compressible());
    }
    let contents = rng.incompressible();
    write_page(&*kept, 0, &contents);
    let nr_called = Arc::new(AtomicU64::new(0));
    let (calls, memcg) = (Arc::clone(&nr_called), Arc::clone(&world.memcg));
    asked.set_on_kill(move || {
        // Counted before anybody is told of it.
        assert_eq!(memcg.stat().oom_kill, 1);
        calls.fetch_add(1, Ordering::Relaxed);
    });
    let elsewhere = Memcg::new(limits(8), machine.clock()).expect("limits that leave a reserve");
    assert!(!elsewhere.kill(&asked), "it lives in another memory cgroup");
    assert!(!asked.is_killed());
    assert!(world.memcg.kill(&asked));
    assert!(!world.memcg.kill(&asked), "once is enough");
    let killed = Err(FaultError::Killed);
    assert_eq!(given.write(offset_of(63), &[1]), killed, "never touched");
    world.wait_until_reaped();
    for page in [0, 47, 63] {
        assert_eq!(given.read(offset_of(page), &mut [0]), killed);
        assert_eq!(given.write(offset_of(page), &[1]), killed);
    }
    let reports = world.memcg.oom_reports();
    let told: Vec<_> = reports.iter().map(|r| (&*r.victim, r.reason)).collect();
    assert_eq!(told, [("asked", Reason::Asked)]);
    let report = &reports[0];
    let freed = report.freed_frames + report.freed_swapped;
    assert_eq!((report.held.0 + report.held.1, freed), (48, 48), "{report}");
    assert_eq!(report.skipped, []);
    assert_eq!((asked.nr_frames(), asked.nr_swapped()), (0, 0));
    assert_eq!(world.memcg.frames().usage(), other.nr_frames());
    assert!(!other.is_killed() && read_page(&*kept, 0) == contents);
    assert_eq!(nr_called.load(Ordering::Relaxed), 1, "told in this thread");
}

/// G16: a page that was stored and read back is protected from writes, and that leaves nothing
/// behind which keeps an access from its error.
pub(super) fn n67_what_was_read_back_is_refused_like_the_rest(machine: &dyn Machine) {
    let world = World::with_limits(machine, limits(32));
    for (name, error) in [
        ("killed", FaultError::Killed),
        ("unmapped", FaultError::Unmapped),
    ] {
        let mm = world.memcg.new_mm(name);
        let mapping = world.map(&mm, 16);
        let vma = mapping.vma();
        for page in 0..16 {
            write_page(&*mapping, page, &[7]);
        }
        vma.advise(vma.all(), Advice::PageOut)
            .expect("nobody minds");
        for page in 0..8 {
            assert_eq!(read_page(&*mapping, page)[0], 7);
        }
        if error == FaultError::Killed {
            assert!(world.memcg.kill(&mm));
            world.wait_until_reaped();
        } else {
            mm.unmap(vma).expect("nothing is pinned");
        }
        for page in 0..16 {
            let at = offset_of(page);
            assert_eq!(mapping.read(at, &mut [0]), Err(error), "{name} {page}");
            assert_eq!(mapping.write(at, &[1]), Err(error), "{name} {page}");
        }
    }
}

/// Pages count, whether in frames or stored, and the adjustment; nobody is killed for the answer.
pub(super) fn n59_n60_n62_the_worst_comes_first_and_of_equals_the_later(machine: &dyn Machine) {
    let world = World::with_limits(machine, limits(32));
    // Name, pages, adjustment in thousandths of the limit of 32 frames.
    let rows = [
        ("empty", 0, 500),
        ("small", 3, 0),
        ("equal", 3, 0),
        ("large", 20, 0),
        ("spared", 22, -1000),
        ("favoured", 12, -250),
        ("blamed", 1, 500),
        ("killed", 24, 1000),
    ];
    let mms = rows.map(|(name, nr_pages, adj)| {
        let mm = world.memcg.new_mm(name);
        mm.set_oom_score_adj(adj);
        let mapping = world.map(&mm, 32);
        for page in 0..nr_pages {
            write_page(&*mapping, page, &[1]);
        }
        (mm, mapping)
    });
    assert!(world.memcg.kill(&mms[7].0));
    let worst = world.memcg.worst();
    let told: Vec<_> = worst.iter().map(|of| (&*of.name, of.badness)).collect();
    let expected = [
        ("large", 20),
        ("blamed", 1 + 16),
        ("favoured", 12 - 8),
        ("equal", 3),
        ("small", 3),
    ];
    assert_eq!(told, expected);
    let held = worst.iter().map(|of| of.frames + of.swapped);
    assert!(held.eq([20, 1, 12, 3, 3]));
    assert_eq!(world.memcg.stat().oom_kill, 1);
    world.wait_until_reaped();
}
