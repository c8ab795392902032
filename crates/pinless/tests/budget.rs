//! What bounds memory, through the front door alone: no other crate of the workspace is named.

#![expect(clippy::print_stdout, reason = "a test that cannot run here says so")]

use core::time::Duration;
use pinless::oom::Release;
use pinless::sync::Mutex;
use pinless::{Builder, Errno, Knob, MapOptions, PAGE_SIZE, PidFd, Pinless, Shrinker};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};

const FRAMES: u32 = 64;

fn build(with: impl FnOnce(Builder) -> Builder) -> Option<Pinless> {
    let builder = Builder::new(u64::from(FRAMES) * PAGE_SIZE as u64).fault_threads(1);
    let built = with(builder).build();
    built
        .inspect_err(|error| println!("skipped: no userfaultfd: {error}"))
        .ok()
}

fn write_all(pinless: &Pinless, nr_pages: u32) {
    let mm = pinless.new_mm("writer");
    let memory = pinless.map(&mm, MapOptions::of_pages(nr_pages));
    let memory = memory.expect("a mapping");
    for page in 0..u64::from(nr_pages) {
        let written = memory.store_u64(page * PAGE_SIZE as u64, page);
        written.expect("a frame");
    }
}

/// A bound that is lowered holds from then on.
#[test]
fn a_bound_changes_while_it_runs() {
    let Some(pinless) = build(|builder| builder) else {
        return;
    };
    let memcg = pinless.memcg();
    write_all(&pinless, 2 * FRAMES);
    assert!(memcg.frames().peak() > u64::from(FRAMES / 2), "it was used");
    let half = u64::from(FRAMES / 2) * PAGE_SIZE as u64;
    memcg.set_limit(Knob::Max, half).expect("room to shrink");
    let mm = pinless.new_mm("after");
    let memory = pinless.map(&mm, MapOptions::of_pages(FRAMES));
    let memory = memory.expect("a mapping");
    for page in 0..u64::from(FRAMES) {
        let written = memory.store_u64(page * PAGE_SIZE as u64, page);
        written.expect("a frame");
        assert!(memcg.frames().usage() <= u64::from(FRAMES / 2));
    }
    let error = memcg.set_limit(Knob::Max, 0).expect_err("no room");
    assert!(error.to_string().contains("too small"), "{error}");
}

/// Something that could be given back, and how often it was asked about.
struct Cache {
    nr_asked: AtomicU64,
}

impl Shrinker for Cache {
    fn count(&self) -> u64 {
        self.nr_asked.fetch_add(1, Relaxed);
        0
    }

    fn scan(&self, _: u64) -> Option<u64> {
        None
    }
}

/// A leak empties caches before it is killed.
#[test]
fn caches_are_asked_before_a_kill() {
    let Some(pinless) = build(|builder| builder.zswap_max(16 * PAGE_SIZE as u64)) else {
        return;
    };
    let nr_asked = AtomicU64::new(0);
    let cache = Arc::new(Cache { nr_asked });
    let handle = pinless
        .memcg()
        .register_shrinker("cache", Arc::clone(&cache) as _);
    let mm = pinless.new_mm("leak");
    let memory = pinless.map(&mm, MapOptions::of_pages(8 * FRAMES));
    let memory = memory.expect("a mapping");
    let mut rng = fastrand::Rng::with_seed(1);
    let mut noise = [0; PAGE_SIZE];
    let is_killed = (0..8 * u64::from(FRAMES)).any(|page| {
        rng.fill(&mut noise);
        memory.write_at(page * PAGE_SIZE as u64, &noise).is_err()
    });
    assert!(is_killed, "more than fits anywhere");
    assert!(cache.nr_asked.load(Relaxed) > 0, "nobody asked the cache");
    drop(handle);
}

#[test]
fn a_process_is_killed_for_its_memory() {
    // However busy the machine is, it waits for the end of the process.
    let built = build(|builder| builder.reap(u32::MAX, Duration::from_millis(100)));
    let Some(pinless) = built else { return };
    let child = Command::new("sleep").arg("600").spawn();
    let mut child = child.expect("a system with `sleep`");
    let process = PidFd::open(child.id()).expect("it lives");
    let report = pinless.kill_process(&process).expect("it is ours");
    child.wait().expect("it ended");
    match report.outcome {
        Release::Unsupported => println!("skipped: no process_mrelease: {report}"),
        _ => assert!(report.back_ns.is_some(), "{report}"),
    }
    let again = pinless.kill_process(&process);
    assert_eq!(again, Err(Errno(3)), "ESRCH: there is nobody to kill");
}

/// The last owner may go in the thread of the events, which cannot wait for its own end.
#[test]
fn a_sink_may_drop_the_whole() {
    let whole = Arc::new(Mutex::new("test.whole", None::<Pinless>));
    let (told, ended) = mpsc::channel();
    let within = Arc::clone(&whole);
    let built = build(|builder| {
        builder.on_event(move |_| {
            let pinless = within.lock().take();
            if pinless.is_some() {
                drop(pinless);
                told.send(()).expect("it is waited for");
            }
        })
    });
    let Some(pinless) = built else { return };
    let mm = pinless.new_mm("watched");
    let memory = pinless.map(&mm, MapOptions::of_pages(1));
    let memory = memory.expect("a mapping");
    *whole.lock() = Some(pinless);
    // An event that comes after it may be taken. Where an earlier one did, there may be no frame.
    let _ = memory.store_u64(0, 1);
    ended.recv().expect("the sink ends");
    drop(memory);
}

#[test]
fn a_memory_cgroup_of_another_tree_is_refused() {
    let (Some(pinless), Some(other)) = (build(|builder| builder), build(|builder| builder)) else {
        return;
    };
    let caught = catch_unwind(AssertUnwindSafe(|| {
        drop(pinless.new_mm_in(other.memcg(), "astray"));
    }));
    let panic = caught.expect_err("it is of another tree");
    let words = panic.downcast::<String>().expect("words");
    assert!(words.contains("make it with `new_child`"), "{words}");
}
