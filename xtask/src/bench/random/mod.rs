//! Random access to four times the limit: managed memory beside the kernel's own limit and
//! compressed swap.
//!
//! 256 MiB, half of it compressible, under a limit of 64 MiB; one thread reads pages at random,
//! then reads and writes them, and checks each. Every run of the program is a process of its own,
//! so no side inherits the memory or the page tables of another. The kernel kills runs of the
//! peer although it has room: those are counted and repeated, never averaged.

mod kernel;
mod ours;
mod program;

use super::report::{BenchError, Budget, Contender, Measured, Outcome, Row, Samples, interleave};
use kernel::{Ordinary, Peer};
use ours::Managed;
use program::Run;
use std::cell::Cell;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

/// The hidden subcommand, and the part that sets up the peer.
const PART: &str = "bench-part";
const KEEPER: &str = "random/keeper";

/// What tells a run to begin.
const GO: &str = "go\n";
const SIGKILL: i32 = 9;
/// Killed runs in a row after which there is nothing to compare with.
const NR_KILLED_MAX: u32 = 20;

/// Whose memory, and how it is accessed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Guard,
    InThread,
    Service,
    Kernel,
}

const OURS: [Side; 3] = [Side::Guard, Side::InThread, Side::Service];

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Guard => "random/guard",
            Self::InThread => "random/in_thread",
            Self::Service => "random/service",
            Self::Kernel => "memcg + zram",
        }
    }

    fn part(self) -> &'static str {
        match self {
            Self::Kernel => "random/kernel",
            ours => ours.name(),
        }
    }
}

/// What a run gives for each round, in this order.
struct Metric {
    name: &'static str,
    unit: &'static str,
    of: fn(&Run, peak_bytes: u64) -> f64,
    budget: fn(Side) -> Option<Budget>,
}

const fn metric(
    name: &'static str,
    unit: &'static str,
    of: fn(&Run, u64) -> f64,
    budget: fn(Side) -> Option<Budget>,
) -> Metric {
    Metric {
        name,
        unit,
        of,
        budget,
    }
}

const METRICS: &[Metric] = &[
    metric(
        "throughput",
        "kop/s",
        |run, _| run.reads.kops,
        throughput_budget,
    ),
    metric("p50", "us", |run, _| run.reads.p50_us, no_budget),
    metric("p99", "us", |run, _| run.reads.p99_us, p99_budget),
    metric("max", "us", |run, _| run.reads.max_us, no_budget),
    metric("cpu", "us/op", |run, _| run.reads.cpu_us, cpu_budget),
    metric(
        "writes30/throughput",
        "kop/s",
        |run, _| run.mixed.kops,
        no_budget,
    ),
    metric("writes30/p99", "us", |run, _| run.mixed.p99_us, no_budget),
    metric(
        "ram",
        "MiB",
        |_, peak_bytes| peak_bytes as f64 / f64::from(1 << 20),
        no_budget,
    ),
];

fn no_budget(_: Side) -> Option<Budget> {
    None
}

fn throughput_budget(side: Side) -> Option<Budget> {
    match side {
        Side::Guard => Some(Budget::TimesPeerMin(1.2)),
        Side::InThread => Some(Budget::TimesPeerMin(0.9)),
        Side::Service | Side::Kernel => None,
    }
}

fn p99_budget(side: Side) -> Option<Budget> {
    match side {
        Side::Guard | Side::InThread => Some(Budget::TimesPeerMax(0.1)),
        Side::Service | Side::Kernel => None,
    }
}

fn cpu_budget(_: Side) -> Option<Budget> {
    Some(Budget::TimesPeerMax(1.5))
}

/// Rows for each of our sides, beside the kernel where it can be had.
pub(super) fn run(rounds: u32) -> Result<Outcome, BenchError> {
    let mut notes = Vec::new();
    let peer = match Peer::start() {
        Ok(peer) => Some(peer),
        Err(BenchError(why)) => {
            notes.push(format!("skipped: the kernel's memcg + zram: {why}"));
            None
        }
    };
    let killed = Killed::default();
    let mut contenders: Vec<Contender<'_>> = Vec::new();
    for side in OURS {
        contenders.push(Contender::new(side.name(), move || {
            let run = run_apart(side, |_| Ok(()))?;
            Ok(values(&run, run.peak_bytes.unwrap_or(0)))
        }));
    }
    if let Some(peer) = &peer {
        let survivor = || killed.repeat(|| run_apart(Side::Kernel, |process| peer.admit(process)));
        contenders.push(Contender::new(Side::Kernel.name(), move || {
            let run = survivor()?;
            Ok(values(&run, peer.peak_bytes().unwrap_or(0)))
        }));
    }
    let measured = interleave(rounds, &mut contenders)?;
    drop(contenders);
    let mut rows = rows(&measured, peer.is_some());
    if let Some(peer) = &peer {
        let (nr_killed, nr_runs) = (killed.nr_killed.get(), killed.nr_runs.get());
        let samples = Samples::new(vec![f64::from(nr_killed)]);
        rows.push(Row::new("random/kernel/killed", "runs", &samples));
        let samples = Samples::new(vec![f64::from(nr_runs)]);
        rows.push(Row::new("random/kernel/started", "runs", &samples));
        notes.push(peer.about());
        notes.push(format!(
            "the kernel killed {nr_killed} of {nr_runs} runs of the peer; none of them is in the \
             figures"
        ));
    }
    Ok(Outcome {
        rows,
        notes,
        curves: None,
    })
}

fn values(run: &Run, peak_bytes: u64) -> Vec<f64> {
    METRICS
        .iter()
        .map(|metric| (metric.of)(run, peak_bytes))
        .collect()
}

fn rows(measured: &Measured, has_peer: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    for side in OURS {
        for (at, metric) in METRICS.iter().enumerate() {
            let name = format!("{}/{}", side.name(), metric.name);
            let mut row = Row::new(name, metric.unit, measured.of(side.name(), at));
            if has_peer {
                let peer = Side::Kernel.name();
                row = row.beside(peer, measured.of(peer, at));
                if let Some(budget) = (metric.budget)(side) {
                    row = row.within(budget);
                }
            }
            rows.push(row);
        }
    }
    rows
}

/// How often the kernel killed a run of the peer.
#[derive(Default)]
struct Killed {
    nr_killed: Cell<u32>,
    nr_runs: Cell<u32>,
}

impl Killed {
    /// Repeats the run until one is not killed.
    fn repeat(&self, run: impl Fn() -> Result<Run, NoRun>) -> Result<Run, BenchError> {
        for _ in 0..NR_KILLED_MAX {
            self.nr_runs.set(self.nr_runs.get() + 1);
            match run() {
                Err(NoRun::Killed) => self.nr_killed.set(self.nr_killed.get() + 1),
                Err(NoRun::Failed(error)) => return Err(error),
                Ok(run) => return Ok(run),
            }
        }
        Err(BenchError(format!(
            "the kernel killed the peer {NR_KILLED_MAX} times in a row"
        )))
    }
}

/// Why a run measured nothing.
enum NoRun {
    /// By SIGKILL.
    Killed,
    Failed(BenchError),
}

impl From<NoRun> for BenchError {
    fn from(no_run: NoRun) -> Self {
        match no_run {
            NoRun::Killed => Self("a run was killed".into()),
            NoRun::Failed(error) => error,
        }
    }
}

/// Runs the program in a process of its own, which begins after `before`.
fn run_apart(side: Side, before: impl FnOnce(u32) -> Result<(), BenchError>) -> Result<Run, NoRun> {
    let own = |what| {
        move |error: io::Error| NoRun::Failed(BenchError(format!("cannot {what} a run: {error}")))
    };
    let program = std::env::current_exe().map_err(own("start"))?;
    let mut child = Command::new(program)
        .args([PART, side.part()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(own("start"))?;
    // Its input stays open until it has ended: a run ends itself when it is left alone.
    let mut input = child.stdin.take();
    let begun = before(child.id());
    if let (Ok(()), Some(input)) = (&begun, &mut input) {
        let _ = input.write_all(GO.as_bytes());
    } else {
        drop(input.take());
    }
    let output = child.wait_with_output().map_err(own("wait for"))?;
    drop(input);
    begun.map_err(NoRun::Failed)?;
    if output.status.signal() == Some(SIGKILL) {
        return Err(NoRun::Killed);
    }
    serde_json::from_slice(&output.stdout).map_err(|_| {
        NoRun::Failed(BenchError(format!(
            "a run of {} ended without a result: {}",
            side.part(),
            output.status
        )))
    })
}

/// Plays the part with this name in a process of its own.
pub(super) fn play(part: &str) -> Result<(), BenchError> {
    if part == KEEPER {
        return kernel::keep();
    }
    let sides = [Side::Guard, Side::InThread, Side::Service, Side::Kernel];
    let Some(side) = sides.into_iter().find(|side| side.part() == part) else {
        return Err(BenchError("there is no such part".into()));
    };
    let mut line = String::new();
    let told = io::stdin().lock().read_line(&mut line);
    if !told.is_ok_and(|_| line == GO) {
        return Err(BenchError("nobody said `go`".into()));
    }
    std::thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        // Whoever wanted the result has gone.
        std::process::exit(1);
    });
    let run = match side {
        Side::Kernel => program::run(&mut Ordinary::new())?,
        ours => program::run(&mut Managed::new(ours)?)?,
    };
    let text = serde_json::to_string(&run).map_err(|error| BenchError(error.to_string()))?;
    println!("{text}");
    Ok(())
}
