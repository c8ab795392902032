//! Latency figures that cost two atomic additions.

use core::sync::atomic::{AtomicU64, Ordering};

/// Buckets for each doubling: a quantile is off by at most one eighth.
const STEPS: usize = 8;
const BUCKETS: usize = 40 * STEPS;

/// A log-linear histogram of nanoseconds, from 1 ns to about 18 minutes.
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
}

impl core::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Histogram")
            .field("summary", &self.summary())
            .finish()
    }
}

/// What a [`Histogram`] says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// How many values.
    pub count: u64,
    /// The median in nanoseconds; 0 without values.
    pub p50_ns: u64,
    /// The 99th percentile in nanoseconds.
    pub p99_ns: u64,
    /// The upper end of the highest bucket used, in nanoseconds.
    pub max_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// An empty histogram.
    pub const fn new() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }

    /// Counts one value.
    pub fn record(&self, ns: u64) {
        self.buckets[bucket_of(ns)].fetch_add(1, Ordering::Relaxed);
    }

    /// Adds what another one recorded.
    pub(crate) fn absorb(&self, other: &Self) {
        for (mine, theirs) in self.buckets.iter().zip(&other.buckets) {
            match theirs.load(Ordering::Relaxed) {
                0 => {}
                nr => drop(mine.fetch_add(nr, Ordering::Relaxed)),
            }
        }
    }

    /// Count and quantiles of what was recorded so far.
    pub fn summary(&self) -> Summary {
        let counts: Vec<u64> = self
            .buckets
            .iter()
            .map(|b| b.load(Ordering::Relaxed))
            .collect();
        let count = counts.iter().sum();
        Summary {
            count,
            p50_ns: quantile(&counts, count, 50),
            p99_ns: quantile(&counts, count, 99),
            max_ns: counts.iter().rposition(|&n| n > 0).map_or(0, upper_end),
        }
    }
}

fn quantile(counts: &[u64], total: u64, percent: u64) -> u64 {
    if total == 0 {
        return 0;
    }
    let rank = (total * percent).div_ceil(100);
    let mut seen = 0;
    for (bucket, n) in counts.iter().enumerate() {
        seen += n;
        if seen >= rank {
            return upper_end(bucket);
        }
    }
    unreachable!("the ranks end with the total")
}

fn bucket_of(ns: u64) -> usize {
    let ns = ns.max(1);
    let doubling = ns.ilog2() as usize;
    let step = if doubling >= 3 {
        (ns >> (doubling - 3)) as usize - STEPS
    } else {
        0
    };
    (doubling * STEPS + step).min(BUCKETS - 1)
}

fn upper_end(bucket: usize) -> u64 {
    let (doubling, step) = (bucket / STEPS, (bucket % STEPS) as u64);
    if doubling < 3 {
        (2 << doubling) - 1
    } else {
        ((STEPS as u64 + step + 1) << (doubling - 3)) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_in_its_bucket() {
        let step = if cfg!(miri) { 997 } else { 1 };
        for ns in (0..100_000)
            .step_by(step)
            .chain((17..40).map(|s| (1 << s) + 3))
        {
            let end = upper_end(bucket_of(ns));
            assert!(end >= ns, "{ns} above its bucket's end {end}");
            assert!(
                end - ns <= ns / 8 + 3,
                "{ns} far below its bucket's end {end}"
            );
        }
    }

    #[test]
    fn quantiles_are_ranks() {
        let histogram = Histogram::new();
        assert_eq!(histogram.summary(), Summary::default());
        for ns in 1..=1000 {
            histogram.record(ns);
        }
        let summary = histogram.summary();
        assert_eq!(summary.count, 1000);
        assert!((500..=563).contains(&summary.p50_ns), "{summary:?}");
        assert!((990..=1114).contains(&summary.p99_ns), "{summary:?}");
    }
}
