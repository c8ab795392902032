//! Figures of a system at one moment, for monitoring.
//!
//! The names are the kernel's: those of the files of a memory cgroup (`memory.current`), and of the
//! counters in its `memory.stat`.

use crate::Pinless;
use core::fmt;
use pinless_mm::addr::PAGE_SIZE;
use pinless_mm::histogram::Summary;
use pinless_mm::mm_struct::PinnedBy;

/// Whether a figure goes up and down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetricKind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// A figure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Whether it goes up and down.
    pub kind: MetricKind,
    /// Bytes where the name says `memory.`, otherwise pages, or times that something happened.
    pub value: u64,
}

/// Every figure of a [`Pinless`], from [`Pinless::metrics`]. Each is exact by itself; together they
/// are not of one instant.
///
/// Written out (`to_string`) it is the text that Prometheus reads.
#[derive(Clone, Debug)]
pub struct Metrics {
    metrics: Vec<Metric>,
    pin_holders: Vec<PinnedBy>,
    latencies: [(&'static str, Summary); 2],
}

impl Pinless {
    /// Its figures now. Allocates.
    pub fn metrics(&self) -> Metrics {
        let memcg = self.memcg();
        let (frames, zswap, stat) = (memcg.frames(), memcg.zswap(), memcg.stat());
        let gauge = |name, value| Metric {
            name,
            kind: MetricKind::Gauge,
            value,
        };
        let counter = |(name, value)| Metric {
            name,
            kind: MetricKind::Counter,
            value,
        };
        let bytes = |frames: u64| frames * PAGE_SIZE as u64;
        let (io_in_flight, io_abandoned) = self.io_counts();
        let mut metrics = vec![
            gauge("memory.current", bytes(frames.usage())),
            gauge("memory.max", bytes(frames.max())),
            gauge("memory.peak", bytes(frames.peak())),
            gauge("memory.zswap.current", zswap.bytes()),
            gauge("memory.zswap.max", zswap.max_bytes()),
            gauge("pins", memcg.nr_pins()),
            gauge("io_in_flight", io_in_flight),
            counter(("io_abandoned", io_abandoned)),
            counter(("events_lost", self.events_lost())),
        ];
        metrics.extend(stat.counters().map(counter));
        Metrics {
            metrics,
            pin_holders: memcg.pin_holders(),
            latencies: [("soft", stat.soft_fault), ("hard", stat.hard_fault)],
        }
    }
}

impl Metrics {
    /// The figures.
    pub fn iter(&self) -> impl Iterator<Item = &Metric> {
        self.metrics.iter()
    }

    /// Who has pins by name, most pages first; see
    /// [`Memcg::pin_holders`](crate::Memcg::pin_holders).
    pub fn pin_holders(&self) -> &[PinnedBy] {
        &self.pin_holders
    }

    /// The figure of this name.
    pub fn get(&self, name: &str) -> Option<u64> {
        let mut found = self.iter().filter(|metric| metric.name == name);
        found.next().map(|metric| metric.value)
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Metric { name, kind, value } in self.iter() {
            let unit = if name.starts_with("memory.") {
                "_bytes"
            } else {
                ""
            };
            let (kind, total) = match kind {
                MetricKind::Counter => ("counter", "_total"),
                MetricKind::Gauge => ("gauge", ""),
            };
            let name = format!("pinless_{}{unit}{total}", name.replace('.', "_"));
            writeln!(f, "# TYPE {name} {kind}\n{name} {value}")?;
        }
        writeln!(f, "# TYPE pinless_pins_by gauge")?;
        for PinnedBy { holder, pages } in &self.pin_holders {
            let escaped = holder
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            writeln!(f, "pinless_pins_by{{holder=\"{escaped}\"}} {pages}")?;
        }
        writeln!(f, "# TYPE pinless_fault_seconds summary")?;
        for (from, summary) in &self.latencies {
            for (quantile, ns) in [("0.5", summary.p50_ns), ("0.99", summary.p99_ns)] {
                let seconds = ns as f64 / 1e9;
                writeln!(
                    f,
                    "pinless_fault_seconds{{kind=\"{from}\",quantile=\"{quantile}\"}} {seconds:e}"
                )?;
            }
            writeln!(
                f,
                "pinless_fault_seconds_count{{kind=\"{from}\"}} {}",
                summary.count
            )?;
        }
        Ok(())
    }
}
