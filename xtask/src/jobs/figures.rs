//! Figures of the process and of a run.

use pinless::{Memcg, PAGE_SIZE, Summary};
use std::fs;

/// What the process takes of the machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    /// Resident bytes that are neither frames nor in the compressed store.
    pub(super) other_bytes: u64,
    pub(super) nr_files: usize,
    pub(super) nr_threads: usize,
    pub(super) nr_vmas: usize,
}

/// Looks at what the process takes.
#[derive(Debug, Default)]
pub(super) struct Scales {
    /// The most that the blocks of the compressed store took: it keeps their memory.
    pool_bytes_max: u64,
}

impl Scales {
    /// Notes what the compressed store takes now. To be called often.
    pub(super) fn watch(&mut self, memcg: &Memcg) {
        self.pool_bytes_max = self.pool_bytes_max.max(memcg.zswap().stats().block_bytes);
    }

    pub(super) fn weigh(&mut self, memcg: &Memcg) -> Taken {
        self.watch(memcg);
        let managed = memcg.frames().usage() * PAGE_SIZE as u64 + self.pool_bytes_max;
        let entries = |path| fs::read_dir(path).map_or(0, Iterator::count);
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        Taken {
            other_bytes: resident_bytes().saturating_sub(managed),
            nr_files: entries("/proc/self/fd"),
            nr_threads: entries("/proc/self/task"),
            nr_vmas: maps.lines().count(),
        }
    }
}

/// Resident bytes of the process; 0 where the kernel does not say.
pub(super) fn resident_bytes() -> u64 {
    // The second number is that of the resident pages.
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1);
    let pages: u64 = pages.and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * PAGE_SIZE as u64
}

/// Times in microseconds.
pub(super) fn times(summary: &Summary) -> String {
    let us = |ns: u64| ns as f64 / 1000.0;
    format!(
        "p50 {:.1} us, p99 {:.1} us, max {:.1} ms, of {}",
        us(summary.p50_ns),
        us(summary.p99_ns),
        us(summary.max_ns) / 1000.0,
        summary.count
    )
}

/// Prints what is above zero of the counters of a memory cgroup, and what its stores hold.
pub(super) fn print_stores(memcg: &Memcg) {
    let stat = memcg.stat();
    let counted = stat.counters().filter(|&(_, value)| value > 0);
    let counted: Vec<_> = counted
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    println!("  counted: {}", counted.join(", "));
    let pool = memcg.zswap().stats();
    println!(
        "  compressed store: {} pages, {} of them of one word, {} as they are; {} MiB of {} MiB in \
         use, {} permille lost",
        pool.stored_pages,
        pool.same_filled,
        pool.incompressible,
        pool.compressed_bytes >> 20,
        pool.block_bytes >> 20,
        pool.fragmentation_permille()
    );
    if let Some(file) = memcg.file() {
        println!("  file: {:?}", file.stats());
    }
    println!("  soft faults: {}", times(&stat.soft_fault));
    println!("  hard faults: {}", times(&stat.hard_fault));
}
