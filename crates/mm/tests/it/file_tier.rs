//! Files that fail: what they did to a page is an error of that page, and of no other (G13).

use crate::machine::OnTasks;
use pinless_mm::Memcg;
use pinless_mm::addr::PAGE_SIZE;
use pinless_mm::fault::{FaultError, FaultHandler, StoreError};
use pinless_mm::limits::Limits;
use pinless_mm::suite::{Machine, Mapping};
use pinless_mm::swap::{BackingFile, FileStats};
use pinless_sim::{FileFaults, Rng, Sim, SimFile};
use std::sync::Arc;
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
fn contents_of(page: u32) -> Vec<u8> {
    let mut rng = Rng::new(u64::from(page));
    let words = (0..PAGE_SIZE / 16).flat_map(|_| rng.next().to_le_bytes());
    words
        .chain(core::iter::repeat_n(7, PAGE_SIZE / 2))
        .collect()
}

fn offset_of(page: u32) -> u64 {
    u64::from(page) * PAGE_SIZE as u64
}

/// Fills pages while the file does `writing` wrong, and reads them while it does `reading` wrong.
fn use_file(sim: &Sim, writing: FileFaults, reading: FileFaults) -> Found {
    let file = Arc::new(SimFile::new(32, 3, 5));
    file.set_faults(writing);
    let mut limits = Limits::new(16 * PAGE_SIZE as u64);
    // What the file does not take has room here.
    limits.zswap_max_bytes = 70 * PAGE_SIZE as u64;
    let backing = Arc::clone(&file) as Arc<dyn BackingFile>;
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
    let mm = memcg.new_mm("file");
    let mapping = OnTasks::new(sim).map(&mm, NR_PAGES);
    for page in 0..NR_PAGES {
        let contents = contents_of(page);
        mapping.write(offset_of(page), &contents).expect("room");
    }
    lockdep::sync::sleep("file_tier.settle", Duration::from_millis(500));
    file.set_faults(reading);
    let mut found = read_all(&*mapping);
    file.set_faults(FileFaults::default());
    let again = read_all(&*mapping);
    assert_eq!(again.unreadable, 0, "what was unreadable is there again");
    assert!(again.lost >= found.lost, "what is lost stays lost");
    found.lost = again.lost;
    found.stats = memcg.file().expect("there is one").stats();
    memcg.stop();
    found
}

/// Reads each page: its contents are right, or there are none.
fn read_all(mapping: &dyn Mapping) -> Found {
    let mut found = Found::default();
    for page in 0..NR_PAGES {
        let mut contents = vec![0; PAGE_SIZE];
        match mapping.read(offset_of(page), &mut contents) {
            Ok(()) => assert!(contents == contents_of(page), "wrong data in page {page}"),
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
    for seed in 0..3 {
        let run = Sim::run(seed, move |sim| {
            let found = use_file(sim, writing, reading);
            assert!(judge(&found), "{found:?}");
        });
        assert!(run.has_passed(), "{writing:?}, {reading:?}: {run}");
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
