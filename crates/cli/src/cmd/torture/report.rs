//! What was done, and how it is told.

use crate::args::Bytes;
use crate::cmd::run::judge::Failure;
use crate::cmd::run::tenant::Tenant;
use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};
use lockdep::sync::Mutex;
use serde::Serialize;
use std::collections::BTreeMap;

/// What can be done, as it is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Did {
    Use,
    Advise,
    GiveUp,
    Pin,
    Mlock,
    Map,
    Dma,
    IoUring,
    Bound,
    BoundRefused,
    Kill,
    Fork,
    ForkRefused,
    Live,
    DieEarly,
    Stuck,
}

/// The names of what is counted, in the order of [`Did`].
const NAMES: [&str; 16] = [
    "uses",
    "advice",
    "contents_given_up",
    "pins",
    "mlocks",
    "maps",
    "dma_transfers",
    "io_uring_transfers",
    "bounds_changed",
    "bounds_refused",
    "kills",
    "forks",
    "forks_refused",
    "lives",
    "lives_cut_short",
    "devices_too_slow",
];

/// What was done so far.
#[derive(Debug)]
pub(super) struct Done {
    nr: [AtomicU64; NAMES.len()],
    verified_bytes: AtomicU64,
    /// Lives that each model was in.
    devices: Mutex<BTreeMap<&'static str, u64>>,
}

impl Done {
    pub(super) fn new() -> Self {
        Self {
            nr: core::array::from_fn(|_| AtomicU64::new(0)),
            verified_bytes: AtomicU64::new(0),
            devices: Mutex::new("cli.torture", BTreeMap::new()),
        }
    }

    pub(super) fn note(&self, did: Did) {
        self.add(did, 1);
    }

    pub(super) fn add(&self, did: Did, nr: u64) {
        self.nr[did as usize].fetch_add(nr, Ordering::Relaxed);
    }

    /// A life is over: what those in it did.
    pub(super) fn end_of(&self, tenant: &Tenant) {
        self.verified_bytes
            .fetch_add(tenant.verified_bytes(), Ordering::Relaxed);
        let mut devices = self.devices.lock();
        for dma in &tenant.dma {
            *devices.entry(dma.kind).or_default() += 1;
        }
    }

    pub(super) fn verified_bytes(&self) -> u64 {
        self.verified_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        let nr = self.nr.iter().map(|nr| nr.load(Ordering::Relaxed));
        NAMES.into_iter().zip(nr).collect()
    }

    pub(super) fn devices(&self) -> BTreeMap<&'static str, u64> {
        self.devices.lock().clone()
    }
}

/// What is told at the end.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(super) ok: bool,
    pub(super) interrupted: bool,
    pub(super) seed: u64,
    /// The command that does the same again.
    pub(super) replay: String,
    pub(super) seconds: f64,
    pub(super) limit_bytes: u64,
    pub(super) slots: u32,
    pub(super) bytes_verified: u64,
    pub(super) did: BTreeMap<&'static str, u64>,
    /// Lives that each driver was in.
    pub(super) devices: BTreeMap<&'static str, u64>,
    pub(super) evictions: u64,
    pub(super) faults: u64,
    /// Callbacks that took longer than they may: on a busy machine also good ones do.
    pub(super) convictions: usize,
    pub(super) failures: Vec<Failure>,
    pub(super) notes: Vec<String>,
}

/// The report as text that ends in a line feed.
pub(super) fn table(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // A string takes all that is written.
        let _ = writeln!(text, "{name:<20} {value}");
    };
    line("seed", &report.seed.to_string());
    line("seconds", &format!("{:.1}", report.seconds));
    line("limit", &Bytes(report.limit_bytes).to_string());
    line("address spaces", &format!("{} at a time", report.slots));
    line("verified", &Bytes(report.bytes_verified).to_string());
    line("faults", &report.faults.to_string());
    line("evictions", &report.evictions.to_string());
    for (name, nr) in &report.did {
        line(&name.replace('_', " "), &nr.to_string());
    }
    let devices = report.devices.iter();
    let devices: Vec<_> = devices.map(|(name, nr)| format!("{name} {nr}")).collect();
    for (at, some) in devices.chunks(4).enumerate() {
        line(if at == 0 { "lives with" } else { "" }, &some.join(", "));
    }
    for note in &report.notes {
        line("note", note);
    }
    let verdict = match (report.ok, report.interrupted) {
        (true, false) => "everything held",
        (true, true) => "ended early by Ctrl-C; what was seen so far held",
        (false, _) => "something did not hold: see below",
    };
    text + verdict + "\n"
}
