//! What `memory.stat` tells, by numbers: nobody works beside the test but where it says so.

use crate::machine::OnTasks;
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::gfp::Gfp;
use pinless_mm::limits::Limits;
use pinless_mm::primary_mmu::Access;
use pinless_mm::suite::{Machine, Mapping};
use pinless_mm::swap::BackingFile;
use pinless_mm::{Advice, Memcg};
use pinless_sim::{Rng, Sim, SimFile};
use std::sync::Arc;
use std::time::Duration;

const PAGE_BYTES: u64 = PAGE_SIZE as u64;

/// Pages that no codec makes smaller; the next is all of one word, and the last stays in its frame.
const NR_RANDOM: u32 = 8;
const UNIFORM: u32 = NR_RANDOM;
const NR_PAGES: u32 = NR_RANDOM + 2;

/// What the store takes for one of them: a page and its header.
const SLOT_BYTES: u64 = 4120;

/// What is told when the pages were written; when all but the last were stored; when a random page
/// and the uniform one were read; when the first was stored again, and all that can go were in the
/// file; when one came back from there; and when nothing is mapped. In pages, slots, or times.
const TOLD: [(&str, [u64; 6]); 19] = [
    ("anon", [10, 1, 3, 2, 3, 0]),
    ("file", [0, 0, 0, 0, 0, 0]),
    ("shmem", [0, 0, 0, 0, 0, 0]),
    ("zswap", [0, 8, 7, 0, 0, 0]),
    // The uniform page keeps its copy, which takes no slot and so never goes to the file.
    ("zswapped", [0, 9, 8, 1, 1, 0]),
    ("file_mapped", [0, 0, 0, 0, 0, 0]),
    ("swapcached", [0, 0, 0, 0, 0, 0]),
    ("inactive_anon", [10, 1, 1, 1, 1, 0]),
    ("active_anon", [0, 0, 2, 1, 2, 0]),
    ("workingset_refault_anon", [0, 0, 2, 2, 3, 3]),
    ("workingset_activate_anon", [0, 0, 2, 2, 3, 3]),
    ("pgfault", [10, 10, 12, 12, 13, 13]),
    ("pgmajfault", [0, 0, 2, 2, 3, 3]),
    ("pgsteal", [0, 9, 9, 10, 10, 10]),
    ("pgdeactivate", [0, 9, 9, 10, 10, 10]),
    ("pswpin", [0, 0, 0, 0, 1, 1]),
    ("zswpin", [0, 0, 2, 2, 2, 2]),
    ("zswpout", [0, 9, 9, 10, 10, 10]),
    ("zswpwb", [0, 0, 0, 8, 8, 8]),
];

/// A memory cgroup and the one that it is in both tell what stands in a column of [`TOLD`].
#[track_caller]
fn check(memcg: &Memcg, column: usize) {
    let in_units = |(name, value)| match name {
        "anon" | "file" | "shmem" | "zswapped" | "file_mapped" | "swapcached" | "inactive_anon"
        | "active_anon" => (name, value / PAGE_BYTES),
        "zswap" => (name, value / SLOT_BYTES),
        _ => (name, value),
    };
    let wanted = TOLD.map(|(name, values)| (name, values[column]));
    for level in [Some(memcg), memcg.parent().map(|parent| &**parent)] {
        let level = level.expect("it is in another one");
        let told: Vec<_> = level.memory_stat().map(in_units).collect();
        assert_eq!(told, wanted, "in {:?}", level.name());
    }
}

fn read(mapping: &dyn Mapping, page: u32) {
    let at = u64::from(page) * PAGE_BYTES;
    mapping.read(at, &mut [0]).expect("contents");
}

fn page_out(mapping: &dyn Mapping, first: u32, nr: u32) {
    let run = PageRun::new(first, nr);
    let advised = mapping.vma().advise(run, Advice::PageOut);
    advised.expect("nobody refuses");
}

/// Ten pages in frames.
fn fill(mapping: &dyn Mapping) {
    let mut rng = Rng::new(7);
    for page in 0..NR_PAGES {
        let words = (0..PAGE_SIZE / 8).flat_map(|_| rng.next().to_le_bytes());
        let contents: Vec<u8> = match page {
            UNIFORM => vec![9; PAGE_SIZE],
            _ => words.collect(),
        };
        let at = u64::from(page) * PAGE_BYTES;
        mapping.write(at, &contents).expect("a frame");
    }
}

/// Lets the worker write what is stored to the file, once.
fn write_back(sim: &Sim, root: &Arc<Memcg>) {
    let worker = Arc::clone(root);
    sim.spawn_daemon("write back", move || worker.run_write_back());
    while root.stat().zswpwb == 0 {
        lockdep::sync::sleep("memory_stat.written", Duration::from_millis(1));
    }
}

fn show_each_value(sim: &Sim) {
    let mut limits = Limits::new(64 * PAGE_BYTES);
    // Full enough to be written back, and to keep no copy of what is read.
    limits.zswap_max_bytes = 10 * PAGE_BYTES;
    let file = Arc::new(SimFile::new(8, 3, 1)) as Arc<dyn BackingFile>;
    let root = Memcg::with_file(limits.clone(), sim.clock(), file).expect("bounds with room");
    let memcg = root.new_child("told", limits).expect("bounds with room");
    let mm = memcg.new_mm("told");
    let mapping = OnTasks::new(sim).map(&mm, NR_PAGES);
    fill(&*mapping);
    check(&memcg, 0);
    page_out(&*mapping, 0, NR_RANDOM + 1);
    check(&memcg, 1);
    read(&*mapping, 0);
    read(&*mapping, UNIFORM);
    check(&memcg, 2);
    page_out(&*mapping, 0, 1);
    write_back(sim, &root);
    check(&memcg, 3);
    read(&*mapping, 1);
    check(&memcg, 4);
    mm.unmap(mapping.vma()).expect("nobody refuses");
    check(&memcg, 5);
    root.stop();
}

#[test]
fn memory_stat_tells_each_tier_by_itself() {
    let run = Sim::run(0, show_each_value);
    assert!(run.has_passed(), "{run}");
}

/// What frames are told as.
const FRAMES: [&str; 5] = ["anon", "file", "shmem", "file_mapped", "swapcached"];

/// A memory cgroup tells so many pages of each of [`FRAMES`], and the one that it is in the same.
#[track_caller]
fn check_frames(memcg: &Memcg, wanted: [u64; 5]) {
    for level in [Some(memcg), memcg.parent().map(|parent| &**parent)] {
        let level = level.expect("it is in another one");
        let told: Vec<_> = level.memory_stat().collect();
        let found = FRAMES.map(|name| {
            let value = told.iter().find(|(known, _)| *known == name);
            value.expect("it is told").1 / PAGE_BYTES
        });
        assert_eq!(found, wanted, "{FRAMES:?} in {:?}", level.name());
    }
}

fn show_shared_frames(sim: &Sim) {
    let limits = Limits::new(64 * PAGE_BYTES);
    let root = Memcg::new(limits.clone(), sim.clock()).expect("bounds with room");
    let memcg = root.new_child("told", limits).expect("bounds with room");
    let (mm, machine) = (memcg.new_mm("told"), OnTasks::new(sim));
    let private = machine.map(&mm, NR_PAGES);
    fill(&*private);
    let shared = machine.map_shared(&mm, NR_PAGES);
    check_frames(&memcg, [10, 0, 0, 0, 0]);
    fill(&*shared);
    check_frames(&memcg, [10, 10, 10, 10, 0]);
    // Some stand by, of each.
    for (mapping, nr) in [(&private, 3), (&shared, 4)] {
        let advised = mapping.vma().advise(PageRun::new(0, nr), Advice::Cold);
        advised.expect("nobody refuses");
    }
    check_frames(&memcg, [7, 10, 10, 6, 3]);
    read(&*shared, 0);
    check_frames(&memcg, [7, 10, 10, 7, 3]);
    // Some are stored, from where they stand by and from their addresses.
    page_out(&*shared, 1, 4);
    check_frames(&memcg, [7, 6, 6, 6, 3]);
    read(&*shared, 1);
    check_frames(&memcg, [7, 7, 7, 7, 3]);
    let locked = shared.vma().mlock(PageRun::new(0, 3)).expect("a frame");
    check_frames(&memcg, [7, 8, 8, 8, 3]);
    drop(locked);
    let given_up = shared.vma().advise(PageRun::new(9, 1), Advice::DontNeed);
    given_up.expect("nobody refuses");
    check_frames(&memcg, [7, 7, 7, 7, 3]);
    // What is pinned stays charged when its mapping and its address space are gone.
    let one = PageRun::single(0);
    let pin = shared.vma().pin(one, Access::Read, Gfp::Kernel);
    mm.unmap(private.vma()).expect("nobody refuses");
    drop(mm);
    check_frames(&memcg, [0, 1, 1, 1, 0]);
    drop(pin.expect("a frame"));
    check_frames(&memcg, [0; 5]);
    root.stop();
}

#[test]
fn memory_stat_tells_shared_memory_from_private() {
    let run = Sim::run(0, show_shared_frames);
    assert!(run.has_passed(), "{run}");
}
