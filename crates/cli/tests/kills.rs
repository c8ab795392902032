//! Kills in a row in one process, with devices of every model: nothing is left behind, and those
//! who live on have what they wrote.
//!
//! `PINLESS_KILLS=1000` says how many; a test of everybody's makes fewer.

use fastrand::Rng;
use pinless::{Builder, MapOptions, Mapping, MmHandle, PAGE_SIZE, Pinless};
use pinless_devices::{Attached, models};
use pinless_mm::bus::DeviceMemory;
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// Kills that are measured, unless told otherwise.
const NR_KILLS: u64 = 100;

/// Kills before: every list that is kept has its length, and every model was there.
const NR_WARM_UP: u64 = 80;

/// One kill in so many is for want of memory; the others are asked for.
const LEAKS_ONE_IN: u64 = 20;

const VICTIM_PAGES: u32 = 128;
const SURVIVOR_PAGES: u32 = 48;
const LIMIT_PAGES: u64 = 512;

/// The system's allocator, and what it has lent.
struct Counting;

static LIVE_BYTES: AtomicI64 = AtomicI64::new(0);

// SAFETY: every call is handed on unchanged to the system's allocator, which fulfils the contract;
// counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size() as i64, Relaxed);
        // SAFETY: the caller keeps the contract of this very function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size() as i64, Relaxed);
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a process has that can be leaked.
#[derive(Debug)]
struct Footprint {
    heap_bytes: i64,
    nr_fds: usize,
    nr_threads: usize,
    nr_frames: u64,
}

impl Footprint {
    fn of(pinless: &Pinless) -> Self {
        let nr = |folder: &str| fs::read_dir(folder).expect("a system with /proc").count();
        let memcg = pinless.memcg();
        Self {
            heap_bytes: LIVE_BYTES.load(Relaxed),
            nr_fds: nr("/proc/self/fd"),
            nr_threads: nr("/proc/self/task"),
            nr_frames: memcg.frames().usage(),
        }
    }
}

/// A page that no codec makes smaller.
fn noise(rng: &mut Rng) -> Vec<u8> {
    let mut page = vec![0; PAGE_SIZE];
    rng.fill(&mut page);
    page
}

fn offset(page: u32) -> u64 {
    u64::from(page) * PAGE_SIZE as u64
}

fn map(pinless: &Pinless, mm: &MmHandle, nr_pages: u32) -> Mapping {
    let mapped = pinless.map(mm, MapOptions::new(offset(nr_pages)));
    mapped.expect("addresses for a few pages")
}

/// An address space that nobody kills, and the hashes of what is in it.
struct Survivor {
    mapping: Mapping,
    hashes: Vec<u64>,
    _mm: MmHandle,
}

impl Survivor {
    fn new(pinless: &Pinless, rng: &mut Rng) -> Self {
        let mm = pinless.new_mm("survivor");
        mm.set_oom_score_adj(-1000);
        let mapping = map(pinless, &mm, SURVIVOR_PAGES);
        let mut survivor = Self {
            mapping,
            hashes: vec![0; SURVIVOR_PAGES as usize],
            _mm: mm,
        };
        for page in 0..SURVIVOR_PAGES {
            survivor.write(page, rng);
        }
        survivor
    }

    fn write(&mut self, page: u32, rng: &mut Rng) {
        let contents = noise(rng);
        self.hashes[page as usize] = xxh3_64(&contents);
        let written = self.mapping.write_at(offset(page), &contents);
        written.expect("a frame");
    }

    fn check(&self, page: u32) {
        let mut found = vec![0; PAGE_SIZE];
        let read = self.mapping.read_at(offset(page), &mut found);
        read.expect("its own page");
        assert_eq!(xxh3_64(&found), self.hashes[page as usize], "page {page}");
    }
}

/// Uses the device on random pages, and perhaps has it hang with them.
fn use_device(attached: &Attached, rng: &mut Rng) {
    let device = &attached.device;
    for _ in 0..8 {
        let page = rng.u32(..VICTIM_PAGES);
        // What it cannot have it does not hold.
        let _ = device.register(pinless::PageRun::new(page, 1));
        let _ = device.write(page, 0, &[7]);
    }
    if rng.u8(..3) == 0 {
        device.hang(true);
    }
}

/// One address space that is killed beside its device, and reaped.
fn kill_one(pinless: &Pinless, round: u64) {
    // Those of this round, however often others were thrown in the rounds before it.
    let rng = &mut Rng::with_seed(round);
    let memcg = pinless.memcg();
    let nr_kills = memcg.stat().oom_kill;
    let mm = pinless.new_mm("victim");
    let is_leak = round % LEAKS_ONE_IN == LEAKS_ONE_IN - 1;
    let nr_pages = if is_leak {
        8 * LIMIT_PAGES as u32
    } else {
        VICTIM_PAGES
    };
    let mapping = map(pinless, &mm, nr_pages);
    let memory = Arc::clone(mapping.vma()) as Arc<dyn DeviceMemory>;
    // One after the other first, and then any.
    let nr_models = models().len() as u64;
    let chosen = if round < NR_WARM_UP {
        round % nr_models
    } else {
        rng.u64(..nr_models)
    };
    let model = &models()[chosen as usize];
    let attached = model.attach(&memory, "device", pinless_devices::Bugs::NONE);
    std::thread::scope(|scope| {
        for _ in 0..attached.device.nr_servers() {
            scope.spawn(|| attached.device.serve());
        }
        for _ in 0..VICTIM_PAGES / 2 {
            let page = rng.u32(..VICTIM_PAGES);
            let _ = mapping.write_at(offset(page), &noise(rng));
        }
        use_device(&attached, rng);
        if is_leak {
            let mut pages = 0..nr_pages;
            while pages.next().is_some_and(|page| {
                let contents = noise(rng);
                mapping.write_at(offset(page), &contents).is_ok()
            }) {}
        } else {
            assert!(memcg.kill(&mm));
        }
        assert!(mm.is_killed(), "round {round}: {}", model.full_name());
        while memcg
            .oom_reports()
            .iter()
            .any(|report| report.done_ns.is_none())
        {
            std::thread::sleep(Duration::from_micros(200));
        }
        attached.device.hang(false);
        attached.device.stop();
    });
    attached.detach();
    assert_eq!(memcg.stat().oom_kill, nr_kills + 1, "one victim is enough");
    assert_eq!(memcg.stat().stale_dma, 0, "{}", model.full_name());
    drop((memory, mapping, mm));
}

/// As it was before, once the workers have put away what they were holding.
#[track_caller]
fn check_footprint(pinless: &Pinless, before: &Footprint, survivors: &[Survivor]) {
    let mut now = Footprint::of(pinless);
    for _ in 0..60_000 {
        let kept = survivors.len() as u64 * u64::from(SURVIVOR_PAGES);
        let is_quiet = now.nr_frames <= kept
            && now.nr_threads <= before.nr_threads
            && now.nr_fds <= before.nr_fds;
        if is_quiet && now.heap_bytes <= before.heap_bytes {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
        now = Footprint::of(pinless);
    }
    assert!(
        now.heap_bytes <= before.heap_bytes + 4096,
        "{now:?} after {before:?}"
    );
    // Fewer are no leak: something of the round before may have been on its way out at first.
    assert!(now.nr_fds <= before.nr_fds, "{now:?} after {before:?}");
    let nr_threads = (now.nr_threads, before.nr_threads);
    assert!(nr_threads.0 <= nr_threads.1, "{now:?} after {before:?}");
    let pages: u64 = survivors.len() as u64 * u64::from(SURVIVOR_PAGES);
    assert!(now.nr_frames <= pages, "{now:?} after {before:?}");
}

#[test]
fn kills_in_a_row_leave_nothing_behind() {
    lockdep::set_enabled(false);
    let limit_bytes = LIMIT_PAGES * PAGE_SIZE as u64;
    let builder = Builder::new(limit_bytes)
        .zswap_max(2 * limit_bytes)
        .settle_deadline(Duration::from_millis(20))
        .reap(3, Duration::from_millis(1));
    let pinless = match builder.build() {
        Ok(pinless) => pinless,
        Err(error) => {
            println!("skipped: no userfaultfd: {error}");
            return;
        }
    };
    let wanted = std::env::var("PINLESS_KILLS").ok();
    let nr_kills = wanted.map_or(NR_KILLS, |nr| nr.parse().expect("a number of kills"));
    println!("{nr_kills} kills (PINLESS_KILLS), {NR_WARM_UP} before");
    assert!(
        models().len() as u64 <= NR_WARM_UP,
        "a longer warm-up, for all models"
    );
    let mut rng = Rng::with_seed(2018);
    let mut survivors: Vec<_> = (0..2).map(|_| Survivor::new(&pinless, &mut rng)).collect();
    let mut before = None;
    for round in 0..NR_WARM_UP + nr_kills {
        if round == NR_WARM_UP {
            before = Some(Footprint::of(&pinless));
        }
        kill_one(&pinless, round);
        for survivor in &mut survivors {
            survivor.check(rng.u32(..SURVIVOR_PAGES));
            survivor.write(rng.u32(..SURVIVOR_PAGES), &mut rng);
        }
    }
    for survivor in &survivors {
        (0..SURVIVOR_PAGES).for_each(|page| survivor.check(page));
    }
    check_footprint(&pinless, &before.expect("after the warm-up"), &survivors);
}
