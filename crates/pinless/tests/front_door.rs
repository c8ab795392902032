//! The front door on the real machine: what a user does first.

#![expect(clippy::print_stdout, reason = "a test that cannot run here says so")]

use core::time::Duration;
use pinless::{
    Access, AccessError, Advice, Builder, Bus, BusAddr, Client, FaultMode, Gfp, GuardError,
    MapOptions, PAGE_SIZE, PageRun, PinError, Pinless, UnmapError,
};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

const FRAMES: u64 = 64;

/// A system of a few frames; `None` where there is no userfaultfd.
fn build() -> Option<Pinless> {
    let built = Builder::new(FRAMES * PAGE_SIZE as u64)
        .zswap_max(4 << 20)
        .fault_deadline(Duration::from_secs(30))
        .fault_threads(1)
        .build();
    built
        .inspect_err(|error| println!("skipped: no userfaultfd: {error}"))
        .ok()
}

fn offset_of(page: u32) -> u64 {
    u64::from(page) * PAGE_SIZE as u64
}

/// G6, G10: more memory than frames, through every way to reach it, and nothing left at the end.
#[test]
fn memory_comes_back_however_it_is_reached() {
    let Some(pinless) = build() else { return };
    let attached = pinless::attach_thread().expect("a thread can be attached");
    let nr_pages = 4 * FRAMES as u32;
    let all = [FaultMode::Service, FaultMode::InThread].map(|mode| {
        let options = MapOptions::of_pages(nr_pages).fault_mode(mode);
        [options, options.shared()]
    });
    for options in all.concat() {
        let mm = pinless.new_mm("front door");
        let memory = pinless.map(&mm, options).expect("a mapping");
        assert_eq!(memory.len(), nr_pages as usize * PAGE_SIZE);
        for page in 0..nr_pages {
            memory
                .store_u64(offset_of(page) + 8, u64::from(page) + 1)
                .expect("a frame");
        }
        for page in 0..nr_pages {
            let through_guard = memory.guard(PageRun::single(page), Access::Read);
            let through_guard = through_guard.expect("a frame").load_u64(8);
            let through_address = memory.load_u64(offset_of(page) + 8);
            assert_eq!(through_guard, Ok(u64::from(page) + 1), "{options:?}");
            assert_eq!(through_address, through_guard, "{options:?}");
        }
        memory.unmap().expect("nobody holds it");
    }
    drop(attached);
    let memcg = pinless.memcg();
    assert!(memcg.stat().pgsteal > 0, "pages were taken back");
    assert!(!memcg.frames().is_exceeded());
    // What a worker was putting away when its page went, it gives back a moment later.
    let is_empty = || memcg.frames().usage() == 0 && memcg.zswap().stats().stored_pages == 0;
    let mut looks = core::iter::repeat_with(|| std::thread::sleep(Duration::from_millis(1)));
    assert!(is_empty() || looks.by_ref().take(60_000).any(|()| is_empty()));
}

/// G11: what is under a guard stays, and a guard gives no way out of its range.
#[test]
fn a_guard_keeps_its_pages_and_its_bounds() {
    let Some(pinless) = build() else { return };
    let mm = pinless.new_mm("guarded");
    let memory = pinless
        .map(&mm, MapOptions::of_pages(16))
        .expect("a mapping");
    let run = PageRun::new(3, 2);
    let guard = memory.guard(run, Access::Write).expect("two frames");
    let last = guard.len_bytes() as u64 - 4;
    guard.write(last, b"data").expect("inside");
    memory
        .advise(memory.vma().all(), Advice::PageOut)
        .expect("what is pinned is left out");
    let mut found = [0; 4];
    guard.read(last, &mut found).expect("inside");
    assert_eq!(&found, b"data");
    assert_eq!(guard.as_ptr().addr() as u64, memory.vma().address(3).0);
    let out = guard.read(last + 1, &mut found);
    assert!(
        matches!(out, Err(AccessError::OutOfRange { .. })),
        "{out:?}"
    );
    let odd = guard.load_u64(4);
    assert!(
        matches!(odd, Err(AccessError::Misaligned { .. })),
        "{odd:?}"
    );
    let pinned = mm.unmap(memory.vma());
    assert!(
        matches!(pinned, Err(UnmapError::Pinned { page: 3 })),
        "{pinned:?}"
    );
    drop(guard);
    let beyond = memory.guard(PageRun::new(15, 2), Access::Read).err();
    assert!(
        matches!(beyond, Some(GuardError::Pin(PinError::OutOfRange { .. }))),
        "{beyond:?}"
    );
    memory
        .read_at(offset_of(5) - 4, &mut found)
        .expect("a frame");
    assert_eq!(&found, b"data");
}

/// The names under which the threads are found, and that they end with their owner.
#[test]
fn threads_have_names_and_end_with_their_owner() {
    let Some(pinless) = build() else { return };
    let mm = pinless.new_mm("named");
    let memcg = std::sync::Arc::clone(pinless.memcg());
    let names = || -> Vec<String> {
        let tasks = std::fs::read_dir("/proc/self/task").expect("proc");
        tasks
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .map(|name| name.trim().to_owned())
            .collect()
    };
    // The kernel shows the first fifteen letters, as soon as the thread has named itself.
    let wanted = [
        "pinless-reclaim",
        "pinless-settle",
        "pinless-reaper",
        "pinless-fault",
    ];
    while !wanted.iter().all(|name| names().iter().any(|n| n == name)) {
        std::thread::yield_now();
    }
    drop(mm);
    drop(pinless);
    assert_eq!(
        std::sync::Arc::strong_count(&memcg),
        1,
        "no worker holds it"
    );
}

#[test]
fn a_limit_below_the_reserve_is_refused() {
    let error = Builder::new(100).build().expect_err("no room");
    assert!(error.to_string().contains("too small"), "{error}");
}

/// G11, G16: what a device still uses is parked, not freed, whatever its owner drops.
#[test]
fn an_operation_outlives_guard_mapping_and_address_space() {
    let Some(pinless) = build() else { return };
    let mm = pinless.new_mm("parked");
    let memory = pinless
        .map(&mm, MapOptions::of_pages(8))
        .expect("a mapping");
    memory.store_u64(offset_of(2), 0xD1CE).expect("a frame");
    let guard = memory.guard(PageRun::new(2, 1), Access::Write);
    let guard = guard.expect("a frame");
    let io = guard.begin_io().expect("one more pin");
    assert_eq!((io.as_ptr(), io.run()), (guard.as_ptr(), guard.run()));
    assert_eq!(pinless.io_counts(), (1, 0));
    drop(guard);
    drop(memory);
    drop(mm);
    assert_eq!(pinless.memcg().frames().usage(), 1, "the page is parked");
    io.complete();
    assert_eq!(
        pinless.memcg().frames().usage(),
        0,
        "and goes with its user"
    );
    assert_eq!(pinless.io_counts(), (0, 0));
}

/// Whoever forgets to say that a device is done loses memory, and never data.
#[test]
fn an_operation_whose_end_nobody_tells_keeps_its_pages() {
    let Some(pinless) = build() else { return };
    let mm = pinless.new_mm("abandoned");
    let memory = pinless
        .map(&mm, MapOptions::of_pages(8))
        .expect("a mapping");
    let guard = memory.guard(PageRun::new(2, 3), Access::Write);
    drop(guard.expect("three frames").begin_io().expect("more pins"));
    drop(memory);
    drop(mm);
    assert_eq!(pinless.memcg().frames().usage(), 3, "parked for good");
    assert_eq!(pinless.io_counts(), (0, 1));
}

#[test]
fn memory_that_is_shared_comes_back_in_another_mapping() {
    let Some(pinless) = build() else { return };
    let nr_pages = 4 * FRAMES as u32;
    let mm = pinless.new_mm("owner");
    let options = MapOptions::of_pages(nr_pages).shared();
    let memory = pinless.map(&mm, options).expect("a mapping");
    let (ours, theirs) = UnixStream::pair().expect("a socket");
    // What another process does as well: its mapping is one of its own.
    let joining = std::thread::spawn(|| Client::join(theirs));
    let share = pinless.share(&memory, ours).expect("shared");
    let client = joining.join().expect("no panic").expect("joined");
    for page in 0..nr_pages {
        let word = u64::from(page) + 1;
        client.store_u64(offset_of(page), word).expect("a frame");
        memory
            .store_u64(offset_of(page) + 8, word)
            .expect("a frame");
    }
    for page in (0..nr_pages).rev() {
        let word = u64::from(page) + 1;
        assert_eq!(memory.load_u64(offset_of(page)), Ok(word));
        assert_eq!(client.load_u64(offset_of(page) + 8), Ok(word));
    }
    assert!(pinless.memcg().stat().pgsteal > 0, "pages were taken back");
    drop(share);
    while client.load_u64(offset_of(0)).is_ok() {
        std::thread::yield_now();
    }
}

#[test]
fn memory_that_is_shared_is_told_as_such() {
    let Some(pinless) = build() else { return };
    let mm = pinless.new_mm("both");
    // A service thread would let the program go on before it has counted.
    let attached = pinless::attach_thread().expect("a thread can be attached");
    let in_thread = |options: MapOptions| options.fault_mode(FaultMode::InThread);
    let map = |options| pinless.map(&mm, in_thread(options)).expect("a mapping");
    let private = map(MapOptions::of_pages(4));
    let shared = map(MapOptions::of_pages(3).shared());
    for (memory, nr_pages) in [(&private, 4), (&shared, 3)] {
        for page in 0..nr_pages {
            memory.store_u64(offset_of(page), 1).expect("a frame");
        }
        let advised = memory.advise(PageRun::single(0), Advice::Cold);
        advised.expect("nobody refuses");
    }
    // So few that no worker has anything to do.
    for (name, nr_pages) in [
        ("anon", 3),
        ("swapcached", 1),
        ("shmem", 3),
        ("file", 3),
        ("file_mapped", 2),
    ] {
        let mut told = pinless.memcg().memory_stat();
        let found = told.find(|(known, _)| *known == name);
        assert_eq!(found, Some((name, nr_pages * PAGE_SIZE as u64)));
    }
    drop((private, shared, attached));
}

/// G10, with most of the memory in a file.
#[test]
fn memory_comes_back_from_a_file() {
    let program = std::env::current_exe().expect("this program is a file");
    let folder = program.parent().expect("in a folder");
    let built = Builder::new(FRAMES * PAGE_SIZE as u64)
        .zswap_max(FRAMES * PAGE_SIZE as u64)
        .swap_file(folder, 8 << 20)
        .build();
    let pinless = match built {
        Ok(pinless) => pinless,
        Err(error) => {
            println!("skipped: no system with a file: {error}");
            return;
        }
    };
    let mm = pinless.new_mm("on a file");
    let nr_pages = 8 * FRAMES as u32;
    let memory = pinless
        .map(&mm, MapOptions::of_pages(nr_pages))
        .expect("a mapping");
    // Pages that no codec makes smaller: they do not fit into the store.
    let mut word = 1_u64;
    let mut contents = vec![[0; PAGE_SIZE]; nr_pages as usize];
    for (page, contents) in (0..).zip(&mut contents) {
        for bytes in contents.as_chunks_mut::<8>().0 {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *bytes = (word ^ word >> 29).to_ne_bytes();
        }
        memory.write_at(offset_of(page), contents).expect("room");
    }
    let mut found = [0; PAGE_SIZE];
    for (page, contents) in (0..).zip(&contents) {
        memory
            .read_at(offset_of(page), &mut found)
            .expect("contents");
        assert!(found == *contents, "page {page}");
    }
    assert!(pinless.memcg().stat().zswpwb > 0, "the file was used");
}

/// G11: a device that uses pinned pages goes on after its mapping was dropped, whoever pinned them.
#[test]
fn a_mapping_is_there_for_its_pins() {
    let Some(pinless) = build() else { return };
    let _attached = pinless::attach_thread().expect("a thread can be attached");
    let run = PageRun::new(2, 1);
    for memory in [MapOptions::of_pages(8), MapOptions::of_pages(8).shared()] {
        for is_by_mapping in [true, false] {
            let mm = pinless.new_mm("pinned");
            let mapping = pinless.map(&mm, memory).expect("addresses");
            let vma = Arc::clone(mapping.vma());
            let by_mapping = is_by_mapping.then(|| mapping.pin(run, Access::Write));
            let by_vma = (!is_by_mapping).then(|| vma.pin(run, Access::Write, Gfp::Kernel));
            let mut at = [BusAddr {
                page: 0,
                generation: 0,
                access: Access::Read,
            }];
            vma.fault_range(run, Access::Write, &mut at)
                .expect("pinned");
            drop(mapping);
            vma.write(at[0], 0, &[7]).expect("it is pinned");
            let mut byte = [0];
            vma.read(at[0], 0, &mut byte).expect("it is pinned");
            assert_eq!(byte, [7], "{memory:?} {is_by_mapping}");
            drop((by_mapping, by_vma));
            drop(mm);
            assert_eq!(pinless.memcg().frames().usage(), 0);
        }
    }
}
