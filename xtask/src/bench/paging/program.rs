//! The program that every side runs: access to more pages than there are frames.

use super::super::report::BenchError;
use lockdep::sync::Completion;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;
use std::{fs, io};

pub(super) const PAGE_BYTES: usize = 4096;
/// The region: 256 MiB.
pub(super) const NR_PAGES: u32 = 65_536;
/// What may be resident of it: 64 MiB.
pub(super) const LIMIT_BYTES: u64 = 64 << 20;

/// The first half of a page does not compress, the rest is zeros.
const NOISE_BYTES: usize = PAGE_BYTES / 2;
/// Accesses of each thread before anything is measured.
const NR_WARMUP: u32 = 50_000;
/// Accesses of one measurement, of all threads together.
const NR_ACCESSES: u32 = 100_000;
/// Skew of the Zipf distribution: what YCSB calls its default.
const ZIPF_SKEW: f64 = 0.99;

/// The memory of one side. Each page begins with a word for each thread, which tells which page
/// it is, and how often that thread wrote it.
pub(super) trait Region: Sync {
    /// Writes a whole page.
    fn fill(&self, page: u32, contents: &[u8; PAGE_BYTES]) -> Result<(), BenchError>;
    /// A word of a page.
    fn read(&self, page: u32, word: usize) -> Result<u64, BenchError>;
    /// Changes a word of a page.
    fn write(&self, page: u32, word: usize, value: u64) -> Result<(), BenchError>;
    /// Runs `body` in the calling thread, prepared for touching the memory.
    fn attached(&self, body: &mut dyn FnMut() -> Result<(), BenchError>) -> Result<(), BenchError>;
    /// The most memory that it took, if it knows.
    fn peak_bytes(&self) -> Option<u64>;
    /// What else there is to tell, for who reads the output of a single run.
    fn about(&self) -> String {
        String::new()
    }
}

/// In which order pages are accessed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pattern {
    /// Each page as often as any other.
    Uniform,
    /// Few pages often, and many seldom.
    Zipf,
    /// One after the other, once; each thread a part of its own.
    Scan,
}

impl Pattern {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf => "zipf",
            Self::Scan => "scan",
        }
    }
}

/// What is measured in one run, in this order.
#[derive(Clone, Copy)]
pub(super) struct Workload {
    pub(super) pattern: Pattern,
    /// Of a hundred accesses.
    pub(super) writes_percent: u64,
}

impl Workload {
    pub(super) fn name(self) -> String {
        let mix = match self.writes_percent {
            0 => "read".to_owned(),
            percent => format!("write{percent}"),
        };
        format!("{}/{mix}", self.pattern.name())
    }
}

const fn workload(pattern: Pattern, writes_percent: u64) -> Workload {
    Workload {
        pattern,
        writes_percent,
    }
}

pub(super) const WORKLOADS: [Workload; 6] = [
    workload(Pattern::Uniform, 0),
    workload(Pattern::Uniform, 30),
    workload(Pattern::Zipf, 0),
    workload(Pattern::Zipf, 30),
    workload(Pattern::Scan, 0),
    workload(Pattern::Scan, 30),
];

/// One measurement.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct Measurement {
    /// Thousand accesses a second.
    pub(super) kops: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) max_us: f64,
    /// Processor time of the whole process for one access.
    pub(super) cpu_us: f64,
}

/// What one run of the program measured.
#[derive(Serialize, Deserialize)]
pub(super) struct Run {
    /// One for each of [`WORKLOADS`].
    pub(super) measured: Vec<Measurement>,
    pub(super) peak_bytes: Option<u64>,
    pub(super) about: String,
}

/// Fills the region, warms up and measures, in `nr_threads` threads.
pub(super) fn run(region: &dyn Region, nr_threads: usize) -> Result<Run, BenchError> {
    let mut noise = Random(0x9e37_79b9_7f4a_7c15);
    region.attached(&mut || {
        (0..NR_PAGES).try_for_each(|page| region.fill(page, &contents(page, &mut noise)))
    })?;
    let mut threads: Vec<Thread> = (0..nr_threads).map(Thread::new).collect();
    let zipf = Zipf::new();
    let mut measure = |workload: Workload, nr_accesses: u32| {
        for thread in &mut threads {
            thread.plan(workload, nr_accesses, nr_threads as u32, &zipf);
        }
        measure(region, &mut threads)
    };
    measure(WORKLOADS[0], NR_WARMUP * nr_threads as u32)?;
    let measured = WORKLOADS.map(|workload| measure(workload, NR_ACCESSES));
    Ok(Run {
        measured: measured.into_iter().collect::<Result<_, _>>()?,
        peak_bytes: region.peak_bytes(),
        about: region.about(),
    })
}

fn contents(page: u32, noise: &mut Random) -> [u8; PAGE_BYTES] {
    let mut contents = [0; PAGE_BYTES];
    for word in contents[..NOISE_BYTES].as_chunks_mut::<8>().0 {
        *word = noise.next().to_ne_bytes();
    }
    for word in contents.as_chunks_mut::<8>().0.iter_mut().take(NR_WORDS) {
        *word = u64::from(page).to_ne_bytes();
    }
    contents
}

/// Words at the start of a page that belong to threads.
const NR_WORDS: usize = 8;

/// An access that is to be made.
#[derive(Clone, Copy)]
struct Access {
    page: u32,
    is_write: bool,
}

/// One thread of the program.
struct Thread {
    me: usize,
    random: Random,
    /// How often each page was written by this thread: what must be read back.
    writes: Vec<u32>,
    plan: Vec<Access>,
    latencies_ns: Vec<u32>,
}

impl Thread {
    fn new(me: usize) -> Self {
        Self {
            me,
            random: Random(me as u64 + 1),
            writes: vec![0; NR_PAGES as usize],
            plan: Vec::new(),
            latencies_ns: Vec::new(),
        }
    }

    /// Decides on all accesses before the first, so that deciding costs nothing when it counts.
    fn plan(&mut self, workload: Workload, nr_accesses: u32, nr_threads: u32, zipf: &Zipf) {
        let part = NR_PAGES / nr_threads;
        let nr = match workload.pattern {
            Pattern::Scan => part,
            _ => nr_accesses / nr_threads,
        };
        let (random, me) = (&mut self.random, self.me as u32);
        let access = |nth| Access {
            page: match workload.pattern {
                Pattern::Uniform => random.below(u64::from(NR_PAGES)) as u32,
                Pattern::Zipf => zipf.draw(random),
                Pattern::Scan => me * part + nth,
            },
            is_write: random.below(100) < workload.writes_percent,
        };
        self.plan = (0..nr).map(access).collect();
        self.latencies_ns = vec![0; nr as usize];
    }

    /// Carries out the plan; answers the processor time of this thread.
    fn carry_out(&mut self, region: &dyn Region) -> Result<u64, BenchError> {
        let mut last = Instant::now();
        for (access, latency_ns) in self.plan.iter().zip(&mut self.latencies_ns) {
            let writes = &mut self.writes[access.page as usize];
            let value = |writes: u32| u64::from(writes) << 32 | u64::from(access.page);
            if access.is_write {
                *writes += 1;
                region.write(access.page, self.me, value(*writes))?;
            } else {
                let (found, expected) = (region.read(access.page, self.me)?, value(*writes));
                if found != expected {
                    let page = access.page;
                    return Err(BenchError(format!(
                        "page {page} holds {found:#x}, and {expected:#x} was written"
                    )));
                }
            }
            let now = Instant::now();
            let ns = now.duration_since(last).as_nanos();
            *latency_ns = u32::try_from(ns).unwrap_or(u32::MAX);
            last = now;
        }
        cpu_ns_of("/proc/thread-self/schedstat").map_err(unreadable)
    }
}

/// Has all threads carry out their plans at once.
fn measure(region: &dyn Region, threads: &mut [Thread]) -> Result<Measurement, BenchError> {
    let go = &Completion::new("bench.go");
    let cpu_before_ns = cpu_ns()?;
    let (elapsed, cpu_ns_of_threads) = std::thread::scope(|scope| {
        let run = |thread: &mut Thread| {
            let mut cpu_ns = Ok(0);
            region.attached(&mut || {
                go.wait();
                cpu_ns = thread.carry_out(region);
                Ok(())
            })?;
            cpu_ns
        };
        let running: Vec<_> = threads
            .iter_mut()
            .map(|thread| scope.spawn(move || run(thread)))
            .collect();
        let begun = Instant::now();
        go.complete_all();
        let ended = running.into_iter().map(|thread| {
            let ended = thread.join();
            ended.unwrap_or_else(|_| Err(BenchError("a thread of a run panicked".into())))
        });
        let cpu_ns = ended.sum::<Result<u64, BenchError>>()?;
        Ok::<_, BenchError>((begun.elapsed().as_secs_f64(), cpu_ns))
    })?;
    let cpu_ns = cpu_ns()? - cpu_before_ns + cpu_ns_of_threads;
    let mut sorted: Vec<u32> = threads
        .iter()
        .flat_map(|thread| thread.latencies_ns.iter().copied())
        .collect();
    sorted.sort_unstable();
    let nr = sorted.len() as f64;
    let at = |permille: usize| f64::from(sorted[(sorted.len() - 1) * permille / 1000]) / 1e3;
    Ok(Measurement {
        kops: nr / elapsed / 1e3,
        p50_us: at(500),
        p99_us: at(990),
        max_us: at(1000),
        cpu_us: cpu_ns as f64 / 1e3 / nr,
    })
}

/// What reading of a task says that is just ending.
const ESRCH: i32 = 3;

fn unreadable(error: io::Error) -> BenchError {
    BenchError(format!("cannot read the processor time: {error}"))
}

/// Processor time of all threads that live.
fn cpu_ns() -> Result<u64, BenchError> {
    let mut sum = 0;
    for task in fs::read_dir("/proc/self/task").map_err(unreadable)? {
        let path = task.map_err(unreadable)?.path().join("schedstat");
        match cpu_ns_of(&path) {
            Ok(cpu_ns) => sum += cpu_ns,
            // It has ended since, and has been joined: it says itself what it took.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(ESRCH) => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    Ok(sum)
}

fn cpu_ns_of(path: impl AsRef<Path>) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    let first = text.split_whitespace().next().unwrap_or_default();
    Ok(first.parse().unwrap_or(0))
}

/// Pages by how often they are accessed, the n-th in proportion to 1 / n^skew; which page is the
/// n-th is drawn, so that neighbours have nothing in common.
struct Zipf {
    /// The share of the first n pages.
    shares: Vec<f64>,
    pages: Vec<u32>,
}

impl Zipf {
    fn new() -> Self {
        let mut sum = 0.0;
        let mut shares: Vec<f64> = (1..=NR_PAGES)
            .map(|rank| {
                sum += f64::from(rank).powf(-ZIPF_SKEW);
                sum
            })
            .collect();
        shares.iter_mut().for_each(|share| *share /= sum);
        let mut pages: Vec<u32> = (0..NR_PAGES).collect();
        let mut random = Random(7);
        for last in (1..pages.len()).rev() {
            pages.swap(last, random.below(last as u64 + 1) as usize);
        }
        Self { shares, pages }
    }

    fn draw(&self, random: &mut Random) -> u32 {
        let at = random.next() as f64 / u64::MAX as f64;
        let rank = self.shares.partition_point(|share| *share < at);
        self.pages[rank.min(self.pages.len() - 1)]
    }
}

/// Sebastiano Vigna's splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, as good as uniform for one far below 2^64.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}
