//! Files that fail: what they did to a page is an error of that page, and of no other (G13).

use crate::machine::OnTasks;
use pinless_mm::Memcg;
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::env::Clock;
use pinless_mm::fault::{FaultError, FaultHandler, StoreError};
use pinless_mm::limits::Limits;
use pinless_mm::mm_struct::Advice;
use pinless_mm::suite::{Machine, Mapping};
use pinless_mm::swap::{BackingFile, FileStats};
use pinless_sim::{FileFaults, Rng, Sim, SimFile};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const NR_PAGES: u32 = 128;

/// What became of the pages.
#[derive(Default, Debug)]
struct Found {
    unreadable: u32,
    lost: u32,
    stats: FileStats,
}

/// Contents of which half can be compressed away.
fn contents_of(seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let words = (0..PAGE_SIZE / 16).flat_map(|_| rng.next().to_le_bytes());
    words
        .chain(core::iter::repeat_n(7, PAGE_SIZE / 2))
        .collect()
}

fn offset_of(page: u32) -> u64 {
    u64::from(page) * PAGE_SIZE as u64
}

/// 16 frames, and so much room for compressed pages.
fn limits_of(zswap_pages: u64) -> Limits {
    let mut limits = Limits::new(16 * PAGE_SIZE as u64);
    limits.zswap_max_bytes = zswap_pages * PAGE_SIZE as u64;
    limits
}

/// On the file, with the threads that it needs.
fn memcg_on(sim: &Sim, file: &Arc<SimFile>, limits: Limits) -> Arc<Memcg> {
    let backing = Arc::clone(file) as Arc<dyn BackingFile>;
    let memcg = Memcg::with_file(limits, sim.clock(), backing).expect("bounds with room");
    for (name, run) in [
        ("reclaim", Memcg::run_reclaim as fn(&Memcg)),
        ("settle", Memcg::run_settle),
        ("reaper", Memcg::run_reaper),
        ("write back", Memcg::run_write_back),
        ("compact", Memcg::run_compact),
    ] {
        let memcg = Arc::clone(&memcg);
        sim.spawn_daemon(name, move || run(&memcg));
    }
    memcg
}

/// Fills pages while the file does `writing` wrong, and reads them while it does `reading` wrong.
fn use_file(sim: &Sim, writing: FileFaults, reading: FileFaults) -> Found {
    let file = Arc::new(SimFile::new(32, 3, 5));
    file.set_faults(writing);
    // What the file does not take has room in the store.
    let memcg = memcg_on(sim, &file, limits_of(70));
    let mm = memcg.new_mm("file");
    let mapping = OnTasks::new(sim).map(&mm, NR_PAGES);
    let seeds: Vec<_> = (0..u64::from(NR_PAGES)).collect();
    for (page, &seed) in (0..).zip(&seeds) {
        let contents = contents_of(seed);
        mapping.write(offset_of(page), &contents).expect("room");
    }
    lockdep::sync::sleep("file_tier.settle", Duration::from_millis(500));
    file.set_faults(reading);
    let found = read_twice((&memcg, &*mapping), &file, &seeds);
    memcg.stop();
    found
}

/// Reads all pages, and again when the file does nothing wrong any more.
fn read_twice((memcg, mapping): (&Memcg, &dyn Mapping), file: &SimFile, seeds: &[u64]) -> Found {
    let mut found = read_all(mapping, seeds);
    file.set_faults(FileFaults::default());
    let again = read_all(mapping, seeds);
    assert_eq!(again.unreadable, 0, "what was unreadable is there again");
    assert!(again.lost >= found.lost, "what is lost stays lost");
    found.lost = again.lost;
    found.stats = memcg.file().expect("there is one").stats();
    found
}

/// Changes pages, all the time and without reading them first, in a file with hardly more room
/// than what is in it and in a part that does `faults` wrong.
fn churn(sim: &Sim, faults: FileFaults) -> Found {
    // A slot that is wrong keeps its cluster until its page is given up.
    let nr_kept = if faults.flip_one_in > 0 { 4 } else { 0 };
    let file = Arc::new(SimFile::new(8 + faults.unreadable + nr_kept, 3, 5));
    file.set_faults(faults);
    let memcg = memcg_on(sim, &file, limits_of(20));
    let mm = memcg.new_mm("churn");
    let mapping = OnTasks::new(sim).map(&mm, NR_PAGES);
    let mut seeds = vec![0; NR_PAGES as usize];
    let mut rng = Rng::new(73);
    for nth in 0..u64::from(NR_PAGES) * 8 {
        let page = match u32::try_from(nth) {
            Ok(page) if page < NR_PAGES => page,
            _ => rng.below(u64::from(NR_PAGES)) as u32,
        };
        seeds[page as usize] = nth;
        let forget = mapping
            .vma()
            .advise(PageRun::single(page), Advice::DontNeed);
        forget.expect("nobody has pinned it");
        let contents = contents_of(nth);
        if let Err(error) = mapping.write(offset_of(page), &contents) {
            let stats = memcg.file().expect("there is one").stats();
            panic!("write {nth}: {error}: {stats:?}, {:?}", memcg.stat());
        }
    }
    let found = read_twice((&memcg, &*mapping), &file, &seeds);
    let stat = memcg.stat();
    assert!(stat.file_compact > 0 && stat.oom_kill == 0, "{found:?}");
    memcg.stop();
    found
}

/// Reads each page: its contents are right, or there are none.
fn read_all(mapping: &dyn Mapping, seeds: &[u64]) -> Found {
    let mut found = Found::default();
    for (page, &seed) in (0..).zip(seeds) {
        let mut contents = vec![0; PAGE_SIZE];
        match mapping.read(offset_of(page), &mut contents) {
            Ok(()) => assert!(contents == contents_of(seed), "wrong data in page {page}"),
            Err(FaultError::Lost { page: named, cause }) => {
                assert_eq!(named, page);
                match cause {
                    StoreError::Unreadable => {
                        let denied = mapping.vma().denied(page);
                        assert_eq!(denied, FaultError::Lost { page, cause });
                        found.unreadable += 1;
                    }
                    StoreError::Corrupt | StoreError::Misplaced => found.lost += 1,
                }
            }
            Err(error) => panic!("page {page}: {error}"),
        }
    }
    found
}

/// Runs a file under three schedules, and hands what was found to `judge`.
#[track_caller]
fn check(writing: FileFaults, reading: FileFaults, judge: fn(&Found) -> bool) {
    check_use((writing, reading), judge, move |sim| {
        use_file(sim, writing, reading)
    });
}

/// The same with what `use_file` does with it, which is told of as `faults`.
#[track_caller]
fn check_use(
    faults: impl core::fmt::Debug,
    judge: fn(&Found) -> bool,
    use_file: impl Fn(&Sim) -> Found + Copy + Send + 'static,
) {
    for seed in 0..3 {
        let run = Sim::run(seed, move |sim| {
            let found = use_file(sim);
            assert!(judge(&found), "{found:?}");
        });
        assert!(run.has_passed(), "{faults:?}: {run}");
    }
}

#[test]
fn what_a_file_does_wrong_is_an_error_of_its_pages() {
    let none = FileFaults::default();
    let with = |change: fn(&mut FileFaults)| {
        let mut faults = none;
        change(&mut faults);
        faults
    };
    let is_whole = |found: &Found| found.unreadable + found.lost == 0;
    check(none, none, |found| {
        found.unreadable + found.lost == 0 && found.stats.reads > 0
    });
    // Slow: nothing but slow.
    let slow = with(|faults| faults.latency = Duration::from_millis(20));
    check(slow, slow, is_whole);
    // Full: what does not fit stays in the compressed store.
    check(with(|faults| faults.clusters_max = Some(1)), none, is_whole);
    check(
        with(|faults| faults.write_error_one_in = 1),
        none,
        |found| found.lost == 0 && found.stats.retired > 0,
    );
    check(with(|faults| faults.write_error_one_in = 2), none, is_whole);
    check(none, with(|faults| faults.read_error_one_in = 2), |found| {
        found.unreadable > 0 && found.lost == 0
    });
    // A bit in each cluster hits one page of it, or what lies behind the last.
    check(with(|faults| faults.flip_one_in = 1), none, |found| {
        found.lost > 0 && u64::from(found.lost) <= found.stats.writes
    });
    check(with(|faults| faults.torn_one_in = 1), none, |found| {
        found.lost > 0 && u64::from(found.lost) < u64::from(NR_PAGES)
    });
}

/// Clusters are won back though some cannot be read, or hold what is wrong: nobody else's page is
/// in error for that.
#[test]
fn what_is_wrong_in_a_cluster_keeps_no_other_from_being_won_back() {
    let check = |faults, judge| check_use(faults, judge, move |sim| churn(sim, faults));
    let none = FileFaults::default();
    check(none, |found| found.unreadable + found.lost == 0);
    for unreadable in [1, 10] {
        check(FileFaults { unreadable, ..none }, |found| found.lost == 0);
    }
    // What a bit hit is in one slot, wherever that was copied to.
    let flips = FileFaults {
        flip_one_in: 4,
        ..none
    };
    check(flips, |found| u64::from(found.lost) <= found.stats.writes);
}

/// A file whose device takes its time.
fn slow_file(nr_clusters: u32, nr_buffers: u32, latency: Duration) -> Arc<SimFile> {
    let file = Arc::new(SimFile::new(nr_clusters, nr_buffers, 5));
    file.set_faults(FileFaults {
        latency,
        ..FileFaults::default()
    });
    file
}

/// Changes pages while others read some, in a file with hardly more room than what is in it.
fn churn_and_read(sim: &Sim) {
    const NR: u32 = 192;
    const NR_READERS: u64 = 4;
    let file = slow_file(10, 8, Duration::from_millis(3));
    let memcg = memcg_on(sim, &file, limits_of(40));
    let mm = memcg.new_mm("churn");
    let mapping: Arc<dyn Mapping> = OnTasks::new(sim).map(&mm, NR);
    let is_over = Arc::new(AtomicBool::new(false));
    for seed in 0..NR_READERS {
        let (mapping, is_over) = (Arc::clone(&mapping), Arc::clone(&is_over));
        sim.spawn("reader", move || {
            let mut rng = Rng::new(seed);
            while !is_over.load(Ordering::Relaxed) {
                let page = rng.below(NR.into()) as u32;
                let read = mapping.read(offset_of(page), &mut [0]);
                read.expect("it is there");
            }
        });
    }
    let mut rng = Rng::new(83);
    for nth in 0..6 * u64::from(NR) {
        let page = match u32::try_from(nth) {
            Ok(page) if page < NR => page,
            _ => rng.below(NR.into()) as u32,
        };
        let written = mapping.write(offset_of(page), &contents_of(nth));
        written.unwrap_or_else(|error| panic!("write {nth}: {error}: {:?}", memcg.stat()));
    }
    is_over.store(true, Ordering::Relaxed);
    sim.join_all();
    assert!(memcg.stat().file_compact > 0, "{:?}", memcg.stat());
    memcg.stop();
}

/// Pages that are only read come and go as they are, also while the cluster is written that they
/// are moved to: they are in it then, and keep no place in the one that they came from, which
/// nobody could win back once there are many of those.
#[test]
fn what_is_read_meanwhile_is_won_back() {
    for seed in 0..10 {
        let run = Sim::run(seed, churn_and_read);
        assert!(run.has_passed(), "{run}");
    }
}

/// Has each page written beside a file that takes long, in `limits` and, if there are any, in those
/// of a child. Nobody is killed: there is room in the file.
#[track_caller]
fn check_fill(limits: Limits, of_child: Option<Limits>, nr_pages: u32) {
    let run = Sim::run(1, move |sim| {
        let file = slow_file(32, 3, Duration::from_millis(300));
        let root = memcg_on(sim, &file, limits);
        let child = of_child.map(|limits| root.new_child("child", limits).expect("room"));
        let mm = child.as_ref().unwrap_or(&root).new_mm("user");
        let mapping = OnTasks::new(sim).map(&mm, nr_pages);
        for page in 0..nr_pages {
            let written = mapping.write(offset_of(page), &contents_of(page.into()));
            written.unwrap_or_else(|error| panic!("page {page}: {error}: {:?}", root.stat()));
        }
        assert!(root.stat().zswpwb > 0, "it was the file that made room");
        root.stop();
    });
    assert!(run.has_passed(), "{run}");
}

/// Frames are short at the root, because the store of a child is full.
#[test]
fn a_full_store_below_is_waited_for() {
    let mut child = Limits::new(500 * PAGE_SIZE as u64);
    child.zswap_max_bytes = 20 * PAGE_SIZE as u64;
    check_fill(limits_of(400), Some(child), NR_PAGES);
}

/// What is stored takes what is needed for a frame, and goes to the file: then who waits gets one,
/// though none came back.
#[test]
fn a_short_total_is_waited_for() {
    let mut limits = Limits::new(48 * PAGE_SIZE as u64);
    limits.total_max_bytes = 40 * PAGE_SIZE as u64;
    limits.swap_max_bytes = 32 * PAGE_SIZE as u64;
    check_fill(limits, None, 64);
}

/// Nothing more may be stored, so the worker that writes to the file has nothing to do: it says so,
/// and nobody waits for it.
#[test]
fn a_file_that_cannot_help_is_not_waited_for() {
    let run = Sim::run(1, |sim| {
        let mut limits = limits_of(400);
        limits.swap_max_bytes = 8 * PAGE_SIZE as u64;
        let memcg = memcg_on(sim, &Arc::new(SimFile::new(32, 3, 5)), limits);
        let mm = memcg.new_mm("glutton");
        let mapping = OnTasks::new(sim).map(&mm, NR_PAGES);
        let begun_ns = sim.clock().now_ns();
        let write = |page| mapping.write(offset_of(page), &contents_of(page.into()));
        let killed = (0..NR_PAGES).find_map(|page| write(page).err());
        assert_eq!(killed, Some(FaultError::Killed));
        let waited = Duration::from_nanos(sim.clock().now_ns() - begun_ns);
        assert!(waited < Duration::from_secs(1), "{waited:?}");
        memcg.stop();
    });
    assert!(run.has_passed(), "{run}");
}
