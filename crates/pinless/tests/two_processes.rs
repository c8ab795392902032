//! Memory under a hard limit that a second process uses too: what is taken away there and here
//! comes back there and here.
//!
//! The second process is this program again, with the one test that asks for it.

#![expect(clippy::print_stdout, reason = "a test that cannot run here says so")]

use core::time::Duration;
use pinless::{
    Access, AccessError, Advice, Builder, Client, FaultMode, MapOptions, Mapping, PAGE_SIZE,
    PageRun, Pinless, State,
};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};

const FRAMES: u64 = 48;
const NR_PAGES: u32 = 8 * FRAMES as u32;
/// Words of a page that somebody counts in. Neighbours, and of two sides in turn.
const NR_WORDS: u64 = 16;
/// Accesses of each side: each page is taken away and comes back many times.
const NR_STEPS: u32 = 6000;
/// How far a side gets while the other stands still.
const STEPS_AHEAD_MAX: u32 = 500;
/// Behind the counted words of the first page: where each side says how far it is.
const PROGRESS: [u64; 2] = [8 * NR_WORDS, 8 * NR_WORDS + 8];

/// Says to a process for which scenario it was started.
const VARIABLE: &str = "PINLESS_TWO_PROCESSES";

/// A system of a few frames; `None` where there is no userfaultfd.
fn build() -> Option<Pinless> {
    let built = Builder::new(FRAMES * PAGE_SIZE as u64)
        .zswap_max(8 << 20)
        .fault_deadline(Duration::from_secs(30))
        .fault_threads(1)
        .build();
    built
        .inspect_err(|error| println!("skipped: no userfaultfd: {error}"))
        .ok()
}

/// In the process that was started for it, this is where `scenario` runs, with the standard input
/// that it was given. First in a test: what it says after that is the first process's alone.
fn play(name: &str, scenario: impl FnOnce(OwnedFd)) {
    if std::env::var(VARIABLE).is_ok_and(|wanted| wanted == name) {
        let inherited = std::io::stdin().as_fd().try_clone_to_owned();
        scenario(inherited.expect("one more descriptor"));
        std::process::exit(0);
    }
}

/// Starts the scenario of this name in `test` in a process of its own.
fn start(test: &str, name: &str, input: OwnedFd) -> Child {
    Command::new(std::env::current_exe().expect("this program is a file"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(VARIABLE, name)
        .stdin(input)
        .spawn()
        .expect("a process")
}

/// Who of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Owner,
    Client,
}

const SIDES: [Side; 2] = [Side::Owner, Side::Client];

impl Side {
    fn other(self) -> Self {
        SIDES[1 - self as usize]
    }
}

/// What one side does, step by step: at which offset it stores what, and what was there before.
///
/// The other side can tell, too, since nothing in it depends on what is read.
struct Steps {
    side: Side,
    random: fastrand::Rng,
    /// The words of this side, of page after page.
    words: Vec<u64>,
}

const NR_OWN_WORDS: u64 = NR_WORDS / 2;

impl Steps {
    fn new(side: Side) -> Self {
        Self {
            side,
            random: fastrand::Rng::with_seed(0x5EED + side as u64),
            words: vec![0; NR_PAGES as usize * NR_OWN_WORDS as usize],
        }
    }

    fn offset(&self, nth: usize) -> u64 {
        let (page, word) = (nth as u64 / NR_OWN_WORDS, nth as u64 % NR_OWN_WORDS);
        page * PAGE_SIZE as u64 + 8 * (2 * word + self.side as u64)
    }

    fn step(&mut self) -> (u64, u64, u64) {
        let nth = self.random.usize(..self.words.len());
        let new = self.random.u64(1..);
        let old = std::mem::replace(&mut self.words[nth], new);
        (self.offset(nth), old, new)
    }

    /// Every word of this side after all its steps.
    fn last(side: Side) -> impl Iterator<Item = (u64, u64)> {
        let mut steps = Self::new(side);
        for _ in 0..NR_STEPS {
            steps.step();
        }
        (0..steps.words.len()).map(move |nth| (steps.offset(nth), steps.words[nth]))
    }
}

/// Takes the steps of one side while the other takes its own, and looks at every word of both.
fn take_steps(
    side: Side,
    load: impl Fn(u64) -> Result<u64, AccessError>,
    store: impl Fn(u64, u64) -> Result<(), AccessError>,
    mut waits: impl FnMut(),
) {
    let mut meet = |nr: u32| {
        let [mine, other] = [side, side.other()].map(|side| PROGRESS[side as usize]);
        store(mine, nr.into()).expect("a frame");
        while load(other).expect("a frame") < nr.into() {
            waits();
            std::thread::yield_now();
        }
    };
    let mut steps = Steps::new(side);
    for nr in 0..NR_STEPS {
        // Nobody is done before the other has begun.
        if nr % STEPS_AHEAD_MAX == 0 {
            meet(1 + nr);
        }
        let (at, old, new) = steps.step();
        assert_eq!(load(at), Ok(old), "{side:?} at {at:#x}, step {nr}");
        store(at, new).expect("a frame");
    }
    meet(NR_STEPS + 1);
    for whose in SIDES {
        for (at, word) in Steps::last(whose) {
            assert_eq!(load(at), Ok(word), "{side:?} of {whose:?} at {at:#x}");
        }
    }
    // Nobody lets go before both have seen everything.
    meet(NR_STEPS + 2);
}

/// G6, G10 across processes: both write to every page, by turns of nobody's choice.
fn check_two_processes(mode: FaultMode, test: &str) {
    let name = format!("{mode:?}");
    play(&name, |inherited| {
        let client = Client::join(UnixStream::from(inherited)).expect("joined");
        let store = |at, word| client.store_u64(at, word);
        take_steps(Side::Client, |at| client.load_u64(at), store, || {});
    });
    let Some(pinless) = build() else { return };
    let (ours, theirs) = UnixStream::pair().expect("a socket");
    let mut child = start(test, &name, theirs.into());
    let mm = pinless.new_mm("owner");
    let options = MapOptions::of_pages(NR_PAGES).shared().fault_mode(mode);
    let memory = pinless.map(&mm, options).expect("a mapping");
    let share = pinless.share(&memory, ours).expect("shared");
    let attached = pinless::attach_thread().expect("a thread can be attached");
    let store = |at, word| memory.store_u64(at, word);
    take_steps(
        Side::Owner,
        |at| memory.load_u64(at),
        store,
        || {
            let ended = child.try_wait().expect("a child");
            assert!(ended.is_none_or(|status| status.success()), "{ended:?}");
        },
    );
    let status = child.wait().expect("a child");
    assert!(status.success(), "{status}");
    drop((share, attached));
    let memcg = pinless.memcg();
    assert!(!memcg.frames().is_exceeded());
    // Most steps of either side miss; those of the client alone are half.
    let stat = memcg.stat();
    let nr_steps = u64::from(NR_STEPS);
    assert!(stat.zswpout > nr_steps, "pages were stored: {stat:?}");
    assert!(stat.pgmajfault > nr_steps, "and came back: {stat:?}");
}

#[test]
fn two_processes_lose_nothing_under_a_hard_limit_with_service_threads() {
    let test = "two_processes_lose_nothing_under_a_hard_limit_with_service_threads";
    check_two_processes(FaultMode::Service, test);
}

#[test]
fn two_processes_lose_nothing_under_a_hard_limit_in_the_faulting_thread() {
    let test = "two_processes_lose_nothing_under_a_hard_limit_in_the_faulting_thread";
    check_two_processes(FaultMode::InThread, test);
}

/// The file behind the shared mapping of so many pages, as a debugger could get at it.
fn stolen_file(nr_pages: u32) -> File {
    let files = std::fs::read_dir("/proc/self/fd").expect("proc").flatten();
    let mut ours = files.filter(|entry| {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        let is_ours = target.to_string_lossy().starts_with("/memfd:pinless");
        let len = std::fs::metadata(entry.path()).map_or(0, |data| data.len());
        is_ours && len == u64::from(nr_pages) * PAGE_SIZE as u64
    });
    let path = ours.next().expect("the file of the mapping").path();
    let options = File::options().read(true).write(true).open(path);
    options.expect("it is open already")
}

/// Uses pages until page 0 is stored.
fn push_out_the_first(memory: &Mapping, nr_pages: u32) {
    const NR_ROUNDS_MAX: u32 = 1000;
    for _ in 0..NR_ROUNDS_MAX {
        if memory.vma().page_state(0) == State::Swapped {
            return;
        }
        let first = PageRun::single(0);
        memory.advise(first, Advice::PageOut).expect("no device");
        for page in 1..nr_pages {
            let at = u64::from(page) * PAGE_SIZE as u64;
            memory.store_u64(at, u64::from(page)).expect("a frame");
        }
    }
    panic!("page 0 is {:?}", memory.vma().page_state(0));
}

/// Why the file is handed to nobody but a client: the kernel has nothing for a page that is stored.
#[test]
fn without_a_client_a_process_reads_zeros_for_a_page_that_was_reclaimed() {
    let test = "without_a_client_a_process_reads_zeros_for_a_page_that_was_reclaimed";
    // As many as no other mapping of these tests has.
    const NR_OWN: u32 = NR_PAGES + 1;
    const WORD: u64 = 0xD1CE;
    for (name, expected) in [("early", WORD), ("late", 0)] {
        play(name, |stolen| {
            let mut found = [0; 8];
            let read = File::from(stolen).read_exact_at(&mut found, 8);
            read.expect("a file");
            assert_eq!(u64::from_ne_bytes(found), expected);
        });
    }
    let Some(pinless) = build() else { return };
    let mm = pinless.new_mm("robbed");
    let options = MapOptions::of_pages(NR_OWN).shared();
    let memory = pinless.map(&mm, options).expect("a mapping");
    memory.store_u64(8, WORD).expect("a frame");
    let stolen = stolen_file(NR_OWN);
    // While the page is there it can be seen: it is the right file, and the right place.
    let guard = memory.guard(PageRun::single(0), Access::Read);
    let guard = guard.expect("a frame");
    let input = stolen.try_clone().expect("one more descriptor").into();
    let mut early = start(test, "early", input);
    assert!(early.wait().expect("a child").success());
    drop(guard);
    push_out_the_first(&memory, NR_OWN);
    let mut late = start(test, "late", stolen.into());
    assert!(late.wait().expect("a child").success());
    // Who looked has changed nothing.
    assert_eq!(memory.load_u64(8), Ok(WORD));
    assert!(!pinless.memcg().frames().is_exceeded());
}
