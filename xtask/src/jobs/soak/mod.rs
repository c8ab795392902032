//! `cargo xtask soak`: tenants on all backends and stores, for as long as one likes.
//!
//! Eight tenants use four times as much memory as there may be in frames: private and shared,
//! through service threads, in the faulting thread and through guards, over the compressed store
//! and a file. Meanwhile bounds change, and tenants are killed and begin anew. Every page read is
//! compared with what was written. At the end nothing is lost, nothing has grown, and everything
//! was given back. How long operations were held up stands beside how late an idle thread of this
//! machine woke up.

mod chaos;
mod tenant;

use super::figures::{Scales, Taken, print_stores, times};
use super::{JobError, exit};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use lockdep::sync::Mutex;
use pinless::{Builder, Mm, Pinless};
use pinless_mm::histogram::Histogram;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;
use tenant::{Tally, Tenant};

/// Bytes of frames at first; bounds go down to half of it.
const LIMIT_BYTES: u64 = 64 << 20;
/// Compressed bytes at most.
const STORE_BYTES: u64 = 24 << 20;
/// Bytes of the file under the store.
const FILE_BYTES: u64 = 96 << 20;

const NR_TENANTS: u32 = 8;

/// Memory of the process beside frames and the store may grow by so much: allocators keep some.
const GROWTH_MAX: u64 = 32 << 20;

/// In a run of so many minutes everything has happened that there is.
const MINUTES_OF_ALL: f64 = 5.0;

/// Between two looks at how it goes.
const TICK: Duration = Duration::from_millis(50);

/// What the idle thread asks for.
const NAP: Duration = Duration::from_millis(1);

/// Options of the job.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long it goes on
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,

    /// What everybody does follows from it
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// The folder of the file under the store [default: target]
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// What all who take part share.
struct Stage {
    pinless: Pinless,
    seed: u64,
    is_over: AtomicBool,
    /// Who lives where at this moment.
    living: Vec<Mutex<Option<Arc<Mm>>>>,
    /// The first thing that was wrong.
    failed: Mutex<Option<JobError>>,
    nr_kills: AtomicU64,
    nr_bounds: AtomicU64,
}

impl Stage {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Something is wrong: everybody stops.
    fn fail(&self, error: JobError) {
        self.failed.lock().get_or_insert(error);
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Does it, and says how it went.
pub(crate) fn run(args: &Args) -> ExitCode {
    exit("soak", play(args))
}

fn play(args: &Args) -> Result<(), JobError> {
    let folder = args
        .folder
        .clone()
        .unwrap_or_else(|| PathBuf::from("target"));
    let pinless = Builder::new(LIMIT_BYTES)
        .zswap_max(STORE_BYTES)
        .swap_file(folder, FILE_BYTES)
        .fault_threads(4)
        .fault_deadline(Duration::from_secs(60))
        .build()
        .map_err(|error| JobError::of("set up", error))?;
    let stage = Stage {
        pinless,
        seed: args.seed,
        is_over: AtomicBool::new(false),
        living: (0..NR_TENANTS)
            .map(|_| Mutex::new("xtask.soak.living", None))
            .collect(),
        failed: Mutex::new("xtask.soak.failed", None),
        nr_kills: AtomicU64::new(0),
        nr_bounds: AtomicU64::new(0),
    };
    let tallies: Vec<_> = (0..NR_TENANTS).map(|_| Tally::default()).collect();
    let idle = Histogram::new();
    let duration = Duration::from_secs_f64(args.minutes * 60.0);
    let growth = std::thread::scope(|scope| {
        for (index, tally) in (0..).zip(&tallies) {
            let stage = &stage;
            scope.spawn(move || Tenant::new(stage, index, tally).live());
        }
        scope.spawn(|| chaos::run(&stage));
        scope.spawn(|| nap(&stage, &idle));
        watch(&stage, duration)
    });
    print(&stage, &tallies, &idle, growth);
    let missing = missing(&stage, &tallies);
    judge(stage, growth)?;
    match missing {
        Some(missing) if args.minutes >= MINUTES_OF_ALL => {
            Err(JobError::of("it showed nothing, for there was", missing))
        }
        _ => Ok(()),
    }
}

/// Wakes up again and again, and notes how late that was.
fn nap(stage: &Stage, lateness: &Histogram) {
    while !stage.is_over() {
        let began = Instant::now();
        std::thread::sleep(NAP);
        lateness.record(began.elapsed().saturating_sub(NAP).as_nanos() as u64);
    }
}

/// Waits for the end; returns what the process took when it had warmed up, and at the end.
fn watch(stage: &Stage, duration: Duration) -> (Taken, Taken) {
    let (began, memcg) = (Instant::now(), stage.pinless.memcg());
    let mut scales = Scales::default();
    let mut warm = None;
    while began.elapsed() < duration && !stage.is_over() {
        std::thread::sleep(TICK);
        scales.watch(memcg);
        if warm.is_none() && began.elapsed() >= duration / 4 {
            warm = Some(scales.weigh(memcg));
        }
        if memcg.frames().is_exceeded() {
            stage.fail(JobError::of(
                "a bound was exceeded",
                format!("{:?}", memcg.frames()),
            ));
        }
    }
    let last = scales.weigh(memcg);
    stage.is_over.store(true, Ordering::Relaxed);
    (warm.unwrap_or(last), last)
}

fn print(stage: &Stage, tallies: &[Tally], idle: &Histogram, (warm, last): (Taken, Taken)) {
    for (index, tally) in (0..).zip(tallies) {
        println!("{}: {tally}", tenant::Kind::of(index));
    }
    println!(
        "kills: {}, bounds changed: {}",
        stage.nr_kills.load(Ordering::Relaxed),
        stage.nr_bounds.load(Ordering::Relaxed)
    );
    print_stores(stage.pinless.memcg());
    println!("an idle thread woke up late by: {}", times(&idle.summary()));
    println!(
        "beside frames and store: {} MiB after a quarter of the time, {} MiB at the end; files {} \
         and {}, threads {} and {}, mappings of the kernel {} and {}",
        warm.other_bytes >> 20,
        last.other_bytes >> 20,
        warm.nr_files,
        last.nr_files,
        warm.nr_threads,
        last.nr_threads,
        warm.nr_vmas,
        last.nr_vmas
    );
}

/// What has not happened.
fn missing(stage: &Stage, tallies: &[Tally]) -> Option<&'static str> {
    let stat = stage.pinless.memcg().stat();
    let happened = [
        (stage.nr_kills.load(Ordering::Relaxed), "no kill"),
        (stage.nr_bounds.load(Ordering::Relaxed), "no other bound"),
        (stat.zswpout, "no store"),
        (stat.zswpwb, "no write to the file"),
        (stat.pgfault_wp, "no write to a clean page"),
        (stat.workingset_refault, "no page that came back"),
    ];
    let mut missing = happened.iter().filter(|(nr, _)| *nr == 0);
    let of_a_tenant = || tallies.iter().find_map(Tally::missing);
    missing.next().map(|(_, what)| *what).or_else(of_a_tenant)
}

fn judge(stage: Stage, (warm, last): (Taken, Taken)) -> Result<(), JobError> {
    if let Some(error) = stage.failed.lock().take() {
        return Err(error);
    }
    let grown = last.other_bytes.saturating_sub(warm.other_bytes);
    if grown > GROWTH_MAX {
        return Err(JobError::of(
            "memory has grown",
            format!("by {} MiB", grown >> 20),
        ));
    }
    let memcg = Arc::clone(stage.pinless.memcg());
    let asked = stage.nr_kills.load(Ordering::Relaxed);
    if memcg.stat().oom_kill > asked {
        return Err(JobError::of(
            "killed without being asked",
            memcg.stat().oom_kill - asked,
        ));
    }
    drop(stage);
    let left = (
        memcg.frames().usage(),
        memcg.zswap().stats().stored_pages,
        memcg.swap().usage(),
        memcg.file().map_or(0, |file| file.stats().clusters),
    );
    match left {
        (0, 0, 0, 0) => Ok(()),
        left => Err(JobError::of("not given back", format!("{left:?}"))),
    }
}
