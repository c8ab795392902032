//! The program that every side runs: uniform random access to more pages than there are frames.

use super::super::report::BenchError;
use serde::{Deserialize, Serialize};
use std::fs;
use std::time::Instant;

pub(super) const PAGE_BYTES: usize = 4096;
/// The region: 256 MiB.
pub(super) const NR_PAGES: u32 = 65_536;
/// What may be resident of it: 64 MiB.
pub(super) const LIMIT_BYTES: u64 = 64 << 20;

/// The first half of a page does not compress, the rest is zeros.
const NOISE_BYTES: usize = PAGE_BYTES / 2;
/// Accesses before anything is measured.
const NR_WARMUP: u32 = 50_000;
/// Accesses of one measurement.
const NR_ACCESSES: u32 = 150_000;
/// Of a hundred accesses of the second measurement.
const WRITES_PERCENT: u64 = 30;

/// The memory of one side. Each page begins with a word that tells which page it is, and how
/// often it was written.
pub(super) trait Region {
    /// Writes a whole page.
    fn fill(&mut self, page: u32, contents: &[u8; PAGE_BYTES]) -> Result<(), BenchError>;
    /// The first word of a page.
    fn read(&mut self, page: u32) -> Result<u64, BenchError>;
    /// Changes the first word of a page.
    fn write(&mut self, page: u32, word: u64) -> Result<(), BenchError>;
    /// The most memory that it took, if it knows.
    fn peak_bytes(&self) -> Option<u64>;
    /// What else there is to tell, for who reads the output of a single run.
    fn about(&self) -> String {
        String::new()
    }
}

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
    /// Reads alone.
    pub(super) reads: Measurement,
    /// Three writes in ten accesses.
    pub(super) mixed: Measurement,
    pub(super) peak_bytes: Option<u64>,
    pub(super) about: String,
}

/// Fills the region, warms up and measures.
pub(super) fn run(region: &mut dyn Region) -> Result<Run, BenchError> {
    let mut program = Program {
        random: Random(0x9e37_79b9_7f4a_7c15),
        writes: vec![0; NR_PAGES as usize],
        latencies_ns: vec![0; NR_ACCESSES as usize],
    };
    for page in 0..NR_PAGES {
        region.fill(page, &program.contents(page))?;
    }
    for _ in 0..NR_WARMUP {
        program.access(region, 0)?;
    }
    let reads = program.measure(region, 0)?;
    let mixed = program.measure(region, WRITES_PERCENT)?;
    Ok(Run {
        reads,
        mixed,
        peak_bytes: region.peak_bytes(),
        about: region.about(),
    })
}

struct Program {
    random: Random,
    /// How often each page was written: what must be read back.
    writes: Vec<u32>,
    latencies_ns: Vec<u32>,
}

impl Program {
    fn contents(&mut self, page: u32) -> [u8; PAGE_BYTES] {
        let mut contents = [0; PAGE_BYTES];
        for word in contents[..NOISE_BYTES].as_chunks_mut::<8>().0 {
            *word = self.random.next().to_ne_bytes();
        }
        contents[..8].copy_from_slice(&self.word(page).to_ne_bytes());
        contents
    }

    /// What the first word of a page must be.
    fn word(&self, page: u32) -> u64 {
        u64::from(self.writes[page as usize]) << 32 | u64::from(page)
    }

    fn access(&mut self, region: &mut dyn Region, writes_percent: u64) -> Result<(), BenchError> {
        let page = self.random.below(u64::from(NR_PAGES)) as u32;
        let is_write = writes_percent > 0 && self.random.below(100) < writes_percent;
        if is_write {
            self.writes[page as usize] += 1;
            return region.write(page, self.word(page));
        }
        let (found, expected) = (region.read(page)?, self.word(page));
        if found == expected {
            return Ok(());
        }
        Err(BenchError(format!(
            "page {page} holds {found:#x}, and {expected:#x} was written"
        )))
    }

    fn measure(
        &mut self,
        region: &mut dyn Region,
        writes_percent: u64,
    ) -> Result<Measurement, BenchError> {
        let cpu_before_ns = cpu_ns()?;
        let begun = Instant::now();
        let mut last = begun;
        for nth in 0..NR_ACCESSES as usize {
            self.access(region, writes_percent)?;
            let now = Instant::now();
            let ns = now.duration_since(last).as_nanos();
            self.latencies_ns[nth] = u32::try_from(ns).unwrap_or(u32::MAX);
            last = now;
        }
        let elapsed = last.duration_since(begun).as_secs_f64();
        let cpu_ns = cpu_ns()? - cpu_before_ns;
        let mut sorted = self.latencies_ns.clone();
        sorted.sort_unstable();
        let at = |permille: usize| f64::from(sorted[(sorted.len() - 1) * permille / 1000]) / 1e3;
        Ok(Measurement {
            kops: f64::from(NR_ACCESSES) / elapsed / 1e3,
            p50_us: at(500),
            p99_us: at(990),
            max_us: at(1000),
            cpu_us: cpu_ns as f64 / 1e3 / f64::from(NR_ACCESSES),
        })
    }
}

/// Processor time of all threads that live.
fn cpu_ns() -> Result<u64, BenchError> {
    let unreadable = |error| BenchError(format!("cannot read the processor time: {error}"));
    let mut sum = 0;
    for task in fs::read_dir("/proc/self/task").map_err(unreadable)? {
        let path = task.map_err(unreadable)?.path().join("schedstat");
        let text = fs::read_to_string(path).map_err(unreadable)?;
        let first = text.split_whitespace().next().unwrap_or_default();
        sum += first.parse::<u64>().unwrap_or(0);
    }
    Ok(sum)
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
