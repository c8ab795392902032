//! The lost-write meter: every writer there is against reclaim at full speed, and nothing lost.
//!
//! A *write* is one store to managed memory of which the writer remembers the value: a word through
//! [`HostMapping::store_u64`], a word through a raw atomic addition, a block through
//! [`HostMapping::write_at`], or bytes that the kernel wrote, by `read(2)` and by io_uring fixed
//! reads, with the registry's slots and without. Each writer has words of its own in *every* page,
//! so all of them meet in each page, and looks at what it wrote before under its own numbers: an
//! older number is a lost write, any other is somebody else's data. Half of the visits only look,
//! so that pages are filled clean and write-protected, and the next write has to trap.
//!
//! Meanwhile one thread moves random ranges out, one fills and gives up ranges, one pins pages,
//! and the workers reclaim. Counts decide when it is over, never a clock.
//!
//! `PINLESS_LOST_WRITES=10000000` sets how many stores the processor makes altogether; the others
//! add to that.
#![expect(clippy::print_stdout, reason = "it says what it measured")]

mod kernel;

use fastrand::Rng;
use kernel::{read_fixed_into, read_into, ring_into};
use lockdep::sync::Completion;
use pinless_host::{CreateError, FaultService, HostMapping, Resolver, attach_thread};
use pinless_mm::addr::{PAGE_SIZE, PageIndex, PageRun};
use pinless_mm::env::Clock;
use pinless_mm::gfp::Gfp;
use pinless_mm::limits::Limits;
use pinless_mm::memcg::StatSnapshot;
use pinless_mm::mm_struct::{Advice, Pin, Vma};
use pinless_mm::page::State;
use pinless_mm::primary_mmu::Access;
use pinless_mm::{Memcg, MmHandle};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// Stores of the processor in one run of the test program when nobody asks for more.
const WRITES_DEFAULT: u64 = 1_200_000;

/// Limits, in frames.
const LIMITS: [u64; 6] = [4, 5, 8, 16, 64, 1024];

/// Threads that store through the processor.
const WRITERS: usize = 4;

/// The plain words of a writer in each page, from the start of the page on.
const WORDS: usize = 8;

/// Where the raw atomic words start: one for each writer, then one that all of them count in.
const ATOMICS_AT: u64 = 512;
const SHARED_AT: u64 = ATOMICS_AT + 8 * WRITERS as u64;

/// Where the blocks start: one for each writer.
const BLOCKS_AT: u64 = 1024;
const BLOCK: usize = 128;

/// Where the kernel writes: a block by `read(2)`, one by fixed reads of the registry's, one by
/// fixed reads that nobody but the kernel knows of.
const PIPE_AT: u64 = 1536;
const RING_AT: u64 = 1792;
const FIXED_AT: u64 = 2048;
const IO_BLOCK: usize = 256;

/// Where the pinning thread writes: one word.
const PINNED_AT: u64 = 768;

/// From here on a page holds what nobody writes again.
const NOISE_AT: usize = 2304;

struct TestClock(Instant);

impl Clock for TestClock {
    fn now_ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// What a thread has written and found.
#[derive(Clone, Copy, Default, Debug)]
struct Tally {
    writes: u64,
    checks: u64,
    lost: u64,
}

impl Tally {
    /// Compares what is in memory with what was written last.
    fn check<T: PartialEq + core::fmt::Debug>(&mut self, what: &str, at: u64, found: T, wrote: T) {
        self.checks += 1;
        if found == wrote {
            return;
        }
        self.lost += 1;
        if self.lost <= 3 {
            let (page, at) = (at / PAGE_SIZE as u64, at % PAGE_SIZE as u64);
            let (found, wrote) = (format!("{found:x?}"), format!("{wrote:x?}"));
            println!("LOST: {what}, page {page}, byte {at}: {found:.80} and not {wrote:.80}");
        }
    }
}

impl core::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.writes += other.writes;
        self.checks += other.checks;
        self.lost += other.lost;
    }
}

/// The number `count` of a word: no other word ever holds it.
fn numbered(page: PageIndex, place: usize, count: u64) -> u64 {
    if count == 0 {
        return 0;
    }
    u64::from(page) << 48 | (place as u64) << 40 | count
}

/// What a block holds after `count` writes: zeros, then noise of its own each time.
fn block<const N: usize>(page: PageIndex, writer: usize, count: u64) -> [u8; N] {
    let mut bytes = [0; N];
    if count > 0 {
        Rng::with_seed(numbered(page, 0x80 + writer, count)).fill(&mut bytes);
    }
    bytes
}

fn offset_of(page: PageIndex) -> u64 {
    u64::from(page) * PAGE_SIZE as u64
}

/// A mapping under test, and those who work on it.
struct Field {
    host: HostMapping,
    vma: Arc<Vma>,
    memcg: Arc<Memcg>,
    mm: MmHandle,
    /// Pages in which the writers meet; the rest belongs to the one who gives pages up.
    nr_shared: u32,
    has_pin_check: bool,
    /// The additions to the shared word of each page.
    additions: Box<[AtomicU64]>,
    are_writers_done: AtomicBool,
}

/// What is behind the memory under test, and who resolves its faults.
struct Side {
    name: &'static str,
    create: fn(u32, Resolver) -> Result<HostMapping, CreateError>,
    resolver: Resolver,
    /// Whether the kernel keeps a page that a device has pinned and nobody knows of.
    has_pin_check: bool,
}

impl Side {
    fn create(&self, nr_pages: u32) -> Result<HostMapping, CreateError> {
        (self.create)(nr_pages, self.resolver.clone())
    }
}

impl Field {
    fn new(frames: u64, side: &Side) -> Self {
        let mut limits = Limits::new(frames * PAGE_SIZE as u64);
        // The store has room for two copies of every page: nobody may be killed here, and clean
        // pages keep their copies.
        limits.zswap_max_bytes = 64 * limits.max_bytes + (16 << 20);
        let clock = Arc::new(TestClock(Instant::now()));
        let memcg = Memcg::new(limits, clock).expect("limits that leave a reserve");
        let mm = memcg.new_mm("writers");
        let nr_shared = (frames as u32 * 4).clamp(32, 2048);
        let nr_pages = nr_shared + 16;
        let mut host = side.create(nr_pages).expect("probed before");
        let vma = mm.map(host.mmu()).expect("an address space that lives");
        host.attach(Arc::clone(&vma) as _).expect("registered");
        Self {
            host,
            vma,
            memcg,
            mm,
            nr_shared,
            has_pin_check: side.has_pin_check,
            additions: (0..nr_shared).map(|_| AtomicU64::new(0)).collect(),
            are_writers_done: AtomicBool::new(false),
        }
    }

    /// For a failure: what the books say.
    fn story(&self) -> String {
        let states = self
            .vma
            .all()
            .pages()
            .map(|page| (page, self.vma.page_state(page)));
        let present: Vec<_> = states
            .filter(|(_, state)| !matches!(state, State::Empty | State::Swapped))
            .collect();
        let (stat, reports) = (self.memcg.stat(), self.memcg.oom_reports());
        let nr_pins = self.mm.nr_pins();
        format!(
            "{:?} {nr_pins} pins {present:?} {stat:?} {reports:?}",
            self.memcg
        )
    }

    /// What an access or a call must give: nobody refuses, nobody is killed, frames come free.
    #[track_caller]
    fn good<T, E: core::fmt::Display>(&self, result: Result<T, E>) -> T {
        result.unwrap_or_else(|error| panic!("{error}: {}", self.story()))
    }

    fn pin(&self, page: PageIndex, access: Access) -> Pin {
        self.good(self.vma.pin(PageRun::single(page), access, Gfp::Kernel))
    }

    fn is_done(&self) -> bool {
        self.are_writers_done.load(Ordering::Relaxed)
    }

    fn any_page(&self, rng: &mut Rng) -> PageIndex {
        rng.u32(..self.nr_shared)
    }

    fn load(&self, at: u64) -> u64 {
        self.good(self.host.load_u64(at))
    }

    fn store(&self, at: u64, value: u64) {
        self.good(self.host.store_u64(at, value));
    }

    /// Adds one, by an instruction that both reads and writes; answers what was there before.
    fn add_one(&self, at: u64) -> u64 {
        assert!(at.is_multiple_of(8) && at < self.host.len_bytes() as u64);
        // SAFETY: the word lies in the mapping (assertion), which lives as long as `self`, and is
        // aligned. It is accessed by atomic operations only while the threads run.
        let word = unsafe { AtomicU64::from_ptr(self.host.as_ptr().add(at as usize).cast()) };
        word.fetch_add(1, Ordering::Relaxed)
    }

    fn noise(page: PageIndex) -> [u8; PAGE_SIZE - NOISE_AT] {
        let mut noise = [0; PAGE_SIZE - NOISE_AT];
        // Some pages are hard to compress, most are easy.
        let nr = if page.is_multiple_of(4) {
            noise.len()
        } else {
            256
        };
        Rng::with_seed(u64::from(page)).fill(&mut noise[..nr]);
        noise
    }

    fn write_noise(&self) {
        for page in 0..self.nr_shared {
            let at = offset_of(page) + NOISE_AT as u64;
            self.good(self.host.write_at(at, &Self::noise(page)));
        }
    }

    /// What is left to be looked at when all threads have ended.
    fn check_rest(&self) -> Tally {
        let mut tally = Tally::default();
        let mut found = [0; PAGE_SIZE - NOISE_AT];
        for page in 0..self.nr_shared {
            let at = offset_of(page) + NOISE_AT as u64;
            self.good(self.host.read_at(at, &mut found));
            tally.check("noise", at, found, Self::noise(page));
            let at = offset_of(page) + SHARED_AT;
            let wrote = self.additions[page as usize].load(Ordering::Relaxed);
            tally.check("shared count", at, self.load(at), wrote);
        }
        tally
    }
}

/// A thread that stores through the processor, and its memory of what it stored.
struct Writer<'a> {
    field: &'a Field,
    me: usize,
    rng: Rng,
    plain: Vec<[u64; WORDS]>,
    atomic: Vec<u64>,
    blocks: Vec<u64>,
    tally: Tally,
}

impl<'a> Writer<'a> {
    fn new(field: &'a Field, me: usize) -> Self {
        let nr = field.nr_shared as usize;
        Self {
            field,
            me,
            rng: Rng::with_seed(me as u64 + 1),
            plain: vec![[0; WORDS]; nr],
            atomic: vec![0; nr],
            blocks: vec![0; nr],
            tally: Tally::default(),
        }
    }

    fn run(mut self, writes: u64) -> Tally {
        while self.tally.writes < writes {
            let page = self.field.any_page(&mut self.rng);
            match self.rng.u64(..12) {
                0..=2 => self.look_and_store(page),
                3 => self.store_blindly(page),
                4 => self.add(page),
                5 => self.write_block(page),
                _ => self.look(page),
            }
        }
        for page in 0..self.field.nr_shared {
            self.look(page);
        }
        self.tally
    }

    fn place(&self, page: PageIndex, word: usize) -> (u64, usize) {
        let place = self.me * WORDS + word;
        (offset_of(page) + place as u64 * 8, place)
    }

    fn check_word(&mut self, page: PageIndex, word: usize) {
        let (at, place) = self.place(page, word);
        let wrote = numbered(page, place, self.plain[page as usize][word]);
        let found = self.field.load(at);
        self.tally.check("word", at, found, wrote);
    }

    fn store_word(&mut self, page: PageIndex, word: usize) {
        let (at, place) = self.place(page, word);
        let count = &mut self.plain[page as usize][word];
        *count += 1;
        self.field.store(at, numbered(page, place, *count));
        self.tally.writes += 1;
    }

    /// The usual case: the page is filled for reading, and the first store traps.
    fn look_and_store(&mut self, page: PageIndex) {
        for word in 0..WORDS {
            self.check_word(page, word);
            self.store_word(page, word);
        }
    }

    fn store_blindly(&mut self, page: PageIndex) {
        for _ in 0..2 {
            (0..WORDS).for_each(|word| self.store_word(page, word));
        }
    }

    fn add(&mut self, page: PageIndex) {
        let own_at = offset_of(page) + ATOMICS_AT + 8 * self.me as u64;
        for _ in 0..6 {
            let count = &mut self.atomic[page as usize];
            let found = self.field.add_one(own_at);
            self.tally.check("own count", own_at, found, *count);
            *count += 1;
            self.field.add_one(offset_of(page) + SHARED_AT);
            self.field.additions[page as usize].fetch_add(1, Ordering::Relaxed);
            self.tally.writes += 2;
        }
    }

    fn write_block(&mut self, page: PageIndex) {
        self.check_block(page);
        let at = offset_of(page) + BLOCKS_AT + (self.me * BLOCK) as u64;
        let count = &mut self.blocks[page as usize];
        *count += 1;
        let bytes: [u8; BLOCK] = block(page, self.me, *count);
        self.field.good(self.field.host.write_at(at, &bytes));
        self.tally.writes += 1;
    }

    fn check_block(&mut self, page: PageIndex) {
        let at = offset_of(page) + BLOCKS_AT + (self.me * BLOCK) as u64;
        let mut found = [0; BLOCK];
        self.field.good(self.field.host.read_at(at, &mut found));
        let wrote = block(page, self.me, self.blocks[page as usize]);
        self.tally.check("block", at, found, wrote);
    }

    /// Looks at everything of its own in a page.
    fn look(&mut self, page: PageIndex) {
        (0..WORDS).for_each(|word| self.check_word(page, word));
        self.check_block(page);
        let at = offset_of(page) + ATOMICS_AT + 8 * self.me as u64;
        let (found, wrote) = (self.field.load(at), self.atomic[page as usize]);
        self.tally.check("own count", at, found, wrote);
    }
}

/// Moves random ranges out, as fast as it goes.
fn hammer(field: &Field) -> Tally {
    let mut rng = Rng::with_seed(100);
    let nr_pages = u64::from(field.vma.nr_pages());
    while !field.is_done() {
        let first = rng.u64(..nr_pages);
        let nr = 1 + rng.u64(..((nr_pages - first).min(64)));
        let run = PageRun::new(first as u32, nr as u32);
        let advice = match rng.u64(..8) {
            0 => Advice::WillNeed,
            _ => Advice::PageOut,
        };
        field.good(field.vma.advise(run, advice));
    }
    Tally::default()
}

/// Writes pages of its own and gives them up: they read as zeros then.
fn discard(field: &Field) -> Tally {
    let mut rng = Rng::with_seed(101);
    let mut tally = Tally::default();
    let mut counts = [0_u64; 16];
    while !field.is_done() {
        let mine = rng.usize(..16);
        let page = field.nr_shared + mine as u32;
        let at = offset_of(page) + 8 * rng.u64(..512);
        let expected = |count| numbered(page, 0xff, count);
        tally.check(
            "given up",
            offset_of(page),
            field.load(offset_of(page)),
            expected(counts[mine]),
        );
        if rng.u64(..3) == 0 {
            let advised = field.vma.advise(PageRun::single(page), Advice::DontNeed);
            field.good(advised);
            counts[mine] = 0;
            tally.check("zeros", at, field.load(at), 0);
        } else {
            counts[mine] += 1;
            field.store(offset_of(page), expected(counts[mine]));
            tally.writes += 1;
        }
    }
    tally
}

/// Pins pages, and writes to them while they cannot move.
fn pin_and_write(field: &Field) -> Tally {
    let mut rng = Rng::with_seed(102);
    let mut tally = Tally::default();
    let mut counts = vec![0_u64; field.nr_shared as usize];
    while !field.is_done() {
        let page = field.any_page(&mut rng);
        let access = if rng.bool() {
            Access::Read
        } else {
            Access::Write
        };
        let pin = field.pin(page, access);
        let at = offset_of(page) + PINNED_AT;
        let count = &mut counts[page as usize];
        tally.check(
            "pinned word",
            at,
            field.load(at),
            numbered(page, 0xfe, *count),
        );
        *count += 1;
        field.store(at, numbered(page, 0xfe, *count));
        tally.writes += 1;
        drop(pin);
    }
    tally
}

/// Runs `body` in a thread that may touch memory whose faults it resolves itself.
fn spawn<'scope, R: Send + 'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    body: impl FnOnce() -> R + Send + 'scope,
) -> std::thread::ScopedJoinHandle<'scope, R> {
    scope.spawn(|| {
        let _attached = attach_thread().expect("a signal stack");
        body()
    })
}

/// Ends the workers, and the threads that work until the writers are done, also when one of the
/// writers fails.
struct StopOnDrop<'a>(&'a Field);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.are_writers_done.store(true, Ordering::Relaxed);
    }
}

/// One limit, `writes` writes by the processor and as many as come by the others.
fn campaign(side: &Side, frames: u64, writes: u64) -> (Tally, StatSnapshot) {
    let field = &Field::new(frames, side);
    let memcg = &field.memcg;
    let started = &Completion::new("test.started");
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        for run in [Memcg::run_reclaim, Memcg::run_settle, Memcg::run_reaper] {
            scope.spawn(move || run(memcg));
        }
        let stop = StopMemcg(memcg);
        let others: [fn(&Field) -> Tally; 6] = [
            hammer,
            discard,
            pin_and_write,
            read_into,
            ring_into,
            read_fixed_into,
        ];
        let others = others.map(|other| {
            spawn(scope, move || {
                started.wait();
                other(field)
            })
        });
        let done = StopOnDrop(field);
        field.write_noise();
        started.complete_all();
        let writers: Vec<_> = (0..WRITERS)
            .map(|me| {
                let writer = move || Writer::new(field, me).run(writes / WRITERS as u64);
                spawn(scope, writer)
            })
            .collect();
        let writers = writers.into_iter().map(std::thread::ScopedJoinHandle::join);
        let writers: Vec<_> = writers.collect();
        drop(done);
        for ended in others.into_iter().map(|other| other.join()).chain(writers) {
            tally += ended.expect("no thread fails");
        }
        tally += field.check_rest();
        drop(stop);
    });
    let frames = memcg.frames();
    assert!(!frames.is_exceeded(), "{frames:?}");
    (tally, memcg.stat())
}

/// Ends the workers, also when the test fails.
struct StopMemcg<'a>(&'a Memcg);

impl Drop for StopMemcg<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What the paths were taken how often.
const PATHS: [&str; 12] = [
    "pgfault_zero",
    "pgfault_soft",
    "pgmajfault",
    "pgfault_wp",
    "pgfault_waited",
    "pgdeactivate",
    "pgsteal",
    "zswpout",
    "clean_drop",
    "pgbusy",
    "pgrescued",
    "stalls",
];

fn check(side: &Side) {
    match side.create(1) {
        Ok(_) => {}
        Err(why @ (CreateError::Unavailable(_) | CreateError::Features(_))) => {
            println!("skipped: no userfaultfd: {why}");
            return;
        }
        Err(error) => panic!("{error}"),
    }
    let _attached = attach_thread().expect("a signal stack");
    let asked = std::env::var("PINLESS_LOST_WRITES").ok();
    let writes = asked.map_or(WRITES_DEFAULT, |text| {
        text.parse().expect("a number of writes")
    });
    // The tests share the number.
    let writes = (writes / NR_SIDES).div_ceil(LIMITS.len() as u64);
    let name = side.name;
    let mut total = Tally::default();
    let mut paths = [0; PATHS.len()];
    for frames in LIMITS {
        let (tally, stat) = campaign(side, frames, writes);
        let counters: Vec<_> = stat.counters().collect();
        let of = |path| counters.iter().find(|(name, _)| *name == path);
        let now = PATHS.map(|path| of(path).expect("a counter of that name").1);
        println!("{name}, {frames} frames: {tally:?}, {}", listed(&now));
        for (sum, now) in paths.iter_mut().zip(now) {
            *sum += now;
        }
        for bad in [
            "pages_lost",
            "foreign_changes",
            "pgfault_noframe",
            "oom_kill",
        ] {
            assert_eq!(of(bad), Some(&(bad, 0)), "{frames} frames");
        }
        total += tally;
    }
    println!("{name}, altogether: {total:?}, {}", listed(&paths));
    assert_eq!(total.lost, 0, "of {} writes", total.writes);
    assert!(total.writes >= writes * LIMITS.len() as u64);
    for (path, nr) in PATHS.into_iter().zip(paths) {
        let is_wanted = !["pgbusy", "pgrescued", "stalls"].contains(&path);
        assert!(nr > 0 || !is_wanted, "the path {path} was never taken");
    }
}

fn listed(counts: &[u64; PATHS.len()]) -> String {
    let pairs = PATHS.iter().zip(counts);
    let words: Vec<_> = pairs.map(|(path, nr)| format!("{path} {nr}")).collect();
    words.join(", ")
}

const NR_SIDES: u64 = 4;

fn service() -> Resolver {
    Resolver::Service(FaultService::start(1).expect("threads"))
}

#[test]
fn no_write_is_lost_with_service_threads() {
    check(&Side {
        name: "service",
        create: HostMapping::create,
        resolver: service(),
        has_pin_check: true,
    });
}

#[test]
fn no_write_is_lost_in_the_faulting_thread() {
    check(&Side {
        name: "in_thread",
        create: HostMapping::create,
        resolver: Resolver::InThread,
        has_pin_check: true,
    });
}

#[test]
fn no_write_to_shared_memory_is_lost_with_service_threads() {
    check(&Side {
        name: "shared, service",
        create: HostMapping::create_shared,
        resolver: service(),
        has_pin_check: false,
    });
}

#[test]
fn no_write_to_shared_memory_is_lost_in_the_faulting_thread() {
    check(&Side {
        name: "shared, in_thread",
        create: HostMapping::create_shared,
        resolver: Resolver::InThread,
        has_pin_check: false,
    });
}
