//! Access to four times the limit: managed memory beside the kernel's own limit and compressed
//! swap.
//!
//! 256 MiB, half of it compressible, under a limit of 64 MiB; one thread, or two, read and write
//! pages, and check each. Every run of the program is a process of its own, so no side inherits
//! the memory or the page tables of another. The kernel kills runs of the peer although it has
//! room: those are counted and repeated, never averaged.

mod keeper;
mod kernel;
mod ours;
mod program;

use super::picture::{Bars, Picture};
use super::report::{BenchError, Budget, Contender, Measured, Outcome, Row, Samples, interleave};
use kernel::{Ordinary, Peer};
use ours::Managed;
use pinless_host::CpuLatency;
use program::{Measurement, Pattern, Run, WORKLOADS, Workload};
use std::cell::Cell;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

/// The hidden subcommand, and the part that sets up the peer.
const PART: &str = "bench-part";
const KEEPER: &str = "paging/keeper";

/// What tells a run to begin.
const GO: &str = "go\n";
const SIGKILL: i32 = 9;
/// Killed runs in a row after which there is nothing to compare with.
const NR_KILLED_MAX: u32 = 20;

/// Threads that access the memory.
const NR_THREADS: [usize; 2] = [1, 2];

/// Whose memory, and how it is accessed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Guard,
    InThread,
    Service,
    /// The same, with processors kept awake.
    ServiceAwake,
    Kernel,
}

const OURS: [Side; 4] = [
    Side::Guard,
    Side::InThread,
    Side::Service,
    Side::ServiceAwake,
];

/// One program: a side, and how many threads it has.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Player {
    side: Side,
    nr_threads: usize,
}

impl Player {
    fn all() -> impl Iterator<Item = Self> {
        let sides = OURS.into_iter().chain([Side::Kernel]);
        sides.flat_map(|side| NR_THREADS.map(|nr_threads| Self { side, nr_threads }))
    }

    /// Those that can play here; `notes` is told why others cannot.
    fn present(peer: Option<&Peer>, notes: &mut Vec<String>) -> Vec<Self> {
        let awake = CpuLatency::open();
        if let Err(errno) = &awake {
            notes.push(format!(
                "skipped: service_awake: processors cannot be kept awake: {errno}"
            ));
        }
        let can_play = |player: &Self| match player.side {
            Side::ServiceAwake => awake.is_ok(),
            Side::Kernel => peer.is_some(),
            _ => true,
        };
        Self::all().filter(can_play).collect()
    }

    /// The side, as its rows and its processes are named.
    fn side_name(self) -> &'static str {
        match self.side {
            Side::Guard => "paging/guard",
            Side::InThread => "paging/in_thread",
            Side::Service => "paging/service",
            Side::ServiceAwake => "paging/service_awake",
            Side::Kernel => "paging/kernel",
        }
    }

    fn part(self) -> String {
        format!("{}/{}", self.side_name(), self.nr_threads)
    }
}

/// What is told of each workload, in this order.
struct Metric {
    name: &'static str,
    unit: &'static str,
    of: fn(&Measurement, peak_bytes: u64) -> f64,
    /// With one thread.
    budget: fn(Side, Pattern) -> Option<Budget>,
}

const METRICS: [Metric; 6] = [
    Metric {
        name: "throughput",
        unit: "kop/s",
        of: |measured, _| measured.kops,
        budget: throughput_budget,
    },
    Metric {
        name: "p50",
        unit: "us",
        of: |measured, _| measured.p50_us,
        budget: |_, _| None,
    },
    Metric {
        name: "p99",
        unit: "us",
        of: |measured, _| measured.p99_us,
        budget: p99_budget,
    },
    Metric {
        name: "max",
        unit: "us",
        of: |measured, _| measured.max_us,
        budget: |_, _| None,
    },
    Metric {
        name: "cpu",
        unit: "us/op",
        of: |measured, _| measured.cpu_us,
        budget: |_, pattern| (pattern != Pattern::Scan).then_some(Budget::TimesPeerMax(1.5)),
    },
    // Of the whole run: frames, compressed pool, and what the kernel's zram takes.
    Metric {
        name: "ram",
        unit: "MiB",
        of: |_, peak_bytes| peak_bytes as f64 / f64::from(1 << 20),
        budget: |_, _| None,
    },
];

fn throughput_budget(side: Side, pattern: Pattern) -> Option<Budget> {
    let times = match (pattern, side) {
        (Pattern::Scan, _) => 3.0,
        (_, Side::Guard) => 2.0,
        (_, Side::InThread) => 1.3,
        (_, Side::Service | Side::ServiceAwake) => 0.7,
        (_, Side::Kernel) => return None,
    };
    Some(Budget::TimesPeerMin(times))
}

fn p99_budget(side: Side, pattern: Pattern) -> Option<Budget> {
    match side {
        Side::Guard | Side::InThread if pattern != Pattern::Scan => Some(Budget::TimesPeerMax(0.1)),
        _ => None,
    }
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
    let players = Player::present(peer.as_ref(), &mut notes);
    let killed = Killed::default();
    let measured = interleave(rounds, &mut contenders(&players, peer.as_ref(), &killed))?;
    let mut rows = rows(&measured, &players);
    if let Some(peer) = &peer {
        let (nr_killed, nr_runs) = (killed.nr_killed.get(), killed.nr_runs.get());
        for (name, nr) in [("killed", nr_killed), ("started", nr_runs)] {
            let samples = Samples::new(vec![f64::from(nr)]);
            rows.push(Row::new(format!("paging/kernel/{name}"), "runs", &samples));
        }
        notes.push(peer.about());
        notes.push(format!(
            "the kernel killed {nr_killed} of {nr_runs} runs of the peer; none of them is in the \
             figures"
        ));
    }
    Ok(Outcome {
        rows,
        notes,
        picture: Some(Picture::Bars(bars(&measured, &players))),
    })
}

fn contenders<'a>(
    players: &[Player],
    peer: Option<&'a Peer>,
    killed: &'a Killed,
) -> Vec<Contender<'a>> {
    let contender = |&player: &Player| {
        let peer = peer.filter(|_| player.side == Side::Kernel);
        let round = move || match peer {
            Some(peer) => {
                let run = killed.repeat(|| run_apart(player, |process| peer.admit(process)))?;
                Ok(values(&run, peer.peak_bytes().unwrap_or(0)))
            }
            None => {
                let run = run_apart(player, |_| Ok(()))?;
                Ok(values(&run, run.peak_bytes.unwrap_or(0)))
            }
        };
        Contender::new(player.part(), round)
    };
    players.iter().map(contender).collect()
}

/// All metrics of the first workload, of the second, and so on.
fn values(run: &Run, peak_bytes: u64) -> Vec<f64> {
    let of = |measured| {
        METRICS
            .iter()
            .map(move |metric| (metric.of)(measured, peak_bytes))
    };
    run.measured.iter().flat_map(of).collect()
}

/// Each value with its workload and its metric.
fn places() -> impl Iterator<Item = (usize, Workload, &'static Metric)> {
    let all = WORKLOADS.into_iter();
    let all = all.flat_map(|workload| METRICS.iter().map(move |metric| (workload, metric)));
    all.enumerate()
        .map(|(at, (workload, metric))| (at, workload, metric))
}

fn rows(measured: &Measured, players: &[Player]) -> Vec<Row> {
    let mut rows = Vec::new();
    let (peers, ours): (Vec<Player>, Vec<Player>) =
        (players.iter()).partition(|player| player.side == Side::Kernel);
    for player in ours {
        let (side, nr_threads) = (player.side_name(), player.nr_threads);
        for (at, workload, metric) in places() {
            let name = format!("{side}/{}/{nr_threads}/{}", workload.name(), metric.name);
            let mut row = Row::new(name, metric.unit, measured.of(&player.part(), at));
            if !peers.is_empty() {
                row = row.beside("memcg + zram", measured.of(&peer_of(player).part(), at));
                let budget = (metric.budget)(player.side, workload.pattern);
                if let (1, Some(budget)) = (nr_threads, budget) {
                    row = row.within(budget);
                }
            }
            rows.push(row);
        }
    }
    rows
}

/// The kernel's side with as many threads.
fn peer_of(player: Player) -> Player {
    Player {
        side: Side::Kernel,
        ..player
    }
}

/// Throughput with one thread, of each side.
fn bars(measured: &Measured, players: &[Player]) -> Bars {
    let players = (players.iter()).filter(|player| player.nr_threads == NR_THREADS[0]);
    let throughput = || places().filter(|(_, _, metric)| metric.name == METRICS[0].name);
    Bars {
        title: "256 MiB under 64 MiB, one thread".to_owned(),
        unit: METRICS[0].unit,
        groups: throughput()
            .map(|(_, workload, _)| workload.name())
            .collect(),
        lines: players
            .map(|player| {
                let values =
                    throughput().map(|(at, _, _)| measured.of(&player.part(), at).median());
                (player.side_name().to_owned(), values.collect())
            })
            .collect(),
    }
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
fn run_apart(
    player: Player,
    before: impl FnOnce(u32) -> Result<(), BenchError>,
) -> Result<Run, NoRun> {
    let own = |what| {
        move |error: io::Error| NoRun::Failed(BenchError(format!("cannot {what} a run: {error}")))
    };
    let program = std::env::current_exe().map_err(own("start"))?;
    let mut child = Command::new(program)
        .args([PART, &player.part()])
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
            player.part(),
            output.status
        )))
    })
}

/// Plays the part with this name in a process of its own.
pub(super) fn play(part: &str) -> Result<(), BenchError> {
    if part == KEEPER {
        return keeper::keep();
    }
    let Some(player) = Player::all().find(|player| player.part() == part) else {
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
    let run = match player.side {
        Side::Kernel => program::run(&Ordinary::new(), player.nr_threads)?,
        ours => program::run(&Managed::new(ours)?, player.nr_threads)?,
    };
    let text = serde_json::to_string(&run).map_err(|error| BenchError(error.to_string()))?;
    println!("{text}");
    Ok(())
}
