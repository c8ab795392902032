//! `cargo xtask soak`: tenants on all backends and stores, for as long as one likes.
//!
//! Eight tenants in a tree of memory cgroups use four times as much memory as there may be in
//! frames: private and shared, through service threads, in the faulting thread and through guards,
//! over the compressed store and a file. Meanwhile every bound changes, of the tree and of each
//! memory cgroup in it; tenants are killed and begin anew; and here and there comes a glutton that
//! takes more than its memory cgroup may have, for which somebody is killed, or all in it. Every
//! page read is compared with what was written. No bound is exceeded, and nobody is killed without
//! a reason. At the end nothing is lost, nothing has grown, and everything was given back. How long
//! operations were held up stands beside how late an idle thread of this machine woke up.

mod chaos;
mod tenant;
mod tree;

use super::figures::{Scales, Taken, print_stores, times};
use super::{JobError, exit};
use chaos::{Changes, Glut};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use lockdep::sync::Mutex;
use pinless::mmu_notifier::MmId;
use pinless::oom::Reason;
use pinless::{Builder, Memcg, Mm, OomReport, Pinless};
use pinless_mm::histogram::Histogram;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Instant;
use tenant::{Tally, Tenant};
use tree::{BOUNDS, Level, Size};

/// Bytes of the file under the store.
const FILE_BYTES: u64 = 96 << 20;

const NR_TENANTS: u32 = 8;
/// Bytes of each: all together have four times what there may be in frames at first.
const TENANT_BYTES: u64 = 32 << 20;

/// Memory of the process beside frames and the store may grow by so much: allocators keep some.
const GROWTH_MAX: u64 = 32 << 20;

/// In a run of so many minutes everything has happened that there is.
const MINUTES_OF_ALL: f64 = 5.0;

/// Who has not ended so long after the end hangs: longer than a fault waits for a frame.
const HANG: Duration = Duration::from_secs(120);

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
    /// The root comes first.
    levels: Vec<Level>,
    seed: u64,
    is_over: AtomicBool,
    /// Who lives where at this moment.
    living: Vec<Mutex<Option<Arc<Mm>>>>,
    /// The first thing that was wrong.
    failed: Mutex<Option<JobError>>,
    nr_kills: AtomicU64,
    /// Of each of [`BOUNDS`]: those of the root, and those of all below it.
    changes: [[Changes; 2]; BOUNDS.len()],
    gluts: Mutex<Vec<Glut>>,
    /// What gluttons that were killed waited in the end.
    gluttons_took_ns: Histogram,
    /// Kills that nobody asked for, and that a glut explains.
    nr_ooms: AtomicU64,
}

impl Stage {
    fn new(pinless: Pinless, seed: u64) -> Result<Self, JobError> {
        Ok(Self {
            levels: tree::grow(pinless.memcg())?,
            pinless,
            seed,
            is_over: AtomicBool::new(false),
            living: (0..NR_TENANTS)
                .map(|_| Mutex::new("xtask.soak.living", None))
                .collect(),
            failed: Mutex::new("xtask.soak.failed", None),
            nr_kills: AtomicU64::new(0),
            changes: Default::default(),
            gluts: Mutex::new("xtask.soak.gluts", Vec::new()),
            gluttons_took_ns: Histogram::new(),
            nr_ooms: AtomicU64::new(0),
        })
    }

    /// The memory cgroup of a tenant.
    fn home_of(&self, index: u32) -> &Arc<Memcg> {
        let mut leaves = self.levels.iter().filter(|level| level.size == Size::Two);
        let home = leaves.nth(index as usize / 2);
        &home.expect("there is one for every two tenants").memcg
    }

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
    let pinless = Builder::with_limits(tree::limits(Size::All))
        .swap_file(folder, FILE_BYTES)
        .fault_threads(4)
        .fault_deadline(Duration::from_secs(60))
        .build()
        .map_err(|error| JobError::of("set up", error))?;
    let stage = Stage::new(pinless, args.seed)?;
    let tallies: Vec<_> = (0..NR_TENANTS).map(|_| Tally::default()).collect();
    let idle = Histogram::new();
    let duration = Duration::from_secs_f64(args.minutes * 60.0);
    let ended = end_if_hung(duration + HANG);
    let mut judged = BTreeSet::new();
    let growth = std::thread::scope(|scope| {
        for (index, tally) in (0..).zip(&tallies) {
            let stage = &stage;
            scope.spawn(move || Tenant::new(stage, index, tally).live());
        }
        scope.spawn(|| chaos::run(&stage));
        scope.spawn(|| nap(&stage, &idle));
        watch(&stage, duration, &mut judged)
    });
    if let Err(error) = judge_bounds(&stage).and_then(|()| judge_kills(&stage, &mut judged)) {
        stage.fail(error);
    }
    print(&stage, &tallies, &idle, growth);
    let missing = missing(&stage, &tallies);
    judge(stage, growth)?;
    drop(ended);
    match missing {
        Some(missing) if args.minutes >= MINUTES_OF_ALL => {
            Err(JobError::of("it showed nothing, for there was", missing))
        }
        _ => Ok(()),
    }
}

/// Ends the process, for a debugger to look at, if what is returned is not dropped before then.
fn end_if_hung(after: Duration) -> Sender<()> {
    let (ended, ends) = mpsc::channel();
    std::thread::spawn(move || {
        if ends.recv_timeout(after) == Err(RecvTimeoutError::Timeout) {
            eprintln!("soak: it hangs");
            std::process::abort();
        }
    });
    ended
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
fn watch(stage: &Stage, duration: Duration, judged: &mut BTreeSet<MmId>) -> (Taken, Taken) {
    let (began, memcg) = (Instant::now(), stage.pinless.memcg());
    let mut scales = Scales::default();
    let mut warm = None;
    while began.elapsed() < duration && !stage.is_over() {
        std::thread::sleep(TICK);
        scales.watch(memcg);
        if warm.is_none() && began.elapsed() >= duration / 4 {
            warm = Some(scales.weigh(memcg));
        }
        if let Err(error) = judge_bounds(stage).and_then(|()| judge_kills(stage, judged)) {
            stage.fail(error);
        }
    }
    let last = scales.weigh(memcg);
    stage.is_over.store(true, Ordering::Relaxed);
    (warm.unwrap_or(last), last)
}

fn judge_bounds(stage: &Stage) -> Result<(), JobError> {
    for level in &stage.levels {
        let mut counters = level.counters().into_iter();
        if let Some((what, counter)) = counters.find(|(_, counter)| counter.is_exceeded()) {
            let which = format!("{what} of {}, {counter:?}", level.name());
            return Err(JobError::of("a bound was exceeded", which));
        }
    }
    Ok(())
}

/// Nobody is killed but who was to be, and who was beside a glutton.
fn judge_kills(stage: &Stage, judged: &mut BTreeSet<MmId>) -> Result<(), JobError> {
    let reports = stage.pinless.memcg().oom_reports();
    let is_new = |report: &&OomReport| report.reason != Reason::Asked && judged.insert(report.mm);
    for report in reports.iter().filter(is_new) {
        if !stage.gluts.lock().iter().any(|glut| glut.explains(report)) {
            return Err(JobError::of("killed without a reason", report));
        }
        stage.nr_ooms.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn print(stage: &Stage, tallies: &[Tally], idle: &Histogram, (warm, last): (Taken, Taken)) {
    for (index, tally) in (0..).zip(tallies) {
        println!("{}: {tally}", tenant::Kind::of(index));
    }
    print_tree(stage);
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

/// What came over the tree, and what it did.
fn print_tree(stage: &Stage) {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "killed: {} that were to be, {} beside gluttons, themselves included; a glutton waited for \
         its end {}",
        load(&stage.nr_kills),
        load(&stage.nr_ooms),
        times(&stage.gluttons_took_ns.summary())
    );
    let changed = BOUNDS.iter().zip(&stage.changes).map(|(bound, changes)| {
        let [root, below] = changes
            .each_ref()
            .map(|of| format!("{} ({})", load(&of.set), load(&of.refused)));
        format!("{} {root} and {below}", bound.name)
    });
    let changed: Vec<_> = changed.collect();
    println!(
        "bounds changed (refused), of the root and below it: {}",
        changed.join(", ")
    );
    for level in &stage.levels {
        let events = level.memcg.memory_events();
        let events: Vec<_> = events.map(|(name, nr)| format!("{name} {nr}")).collect();
        println!("  {}: {}", level.name(), events.join(", "));
    }
}

/// What has not happened.
fn missing(stage: &Stage, tallies: &[Tally]) -> Option<&'static str> {
    for (bound, [root, below]) in BOUNDS.iter().zip(&stage.changes) {
        if [root, below]
            .into_iter()
            .any(|of| of.set.load(Ordering::Relaxed) == 0)
        {
            return Some(bound.name);
        }
    }
    let stat = stage.pinless.memcg().stat();
    let happened = [
        (stage.nr_kills.load(Ordering::Relaxed), "no kill"),
        (
            stage.nr_ooms.load(Ordering::Relaxed),
            "no kill for a glutton",
        ),
        (stat.oom_group_kill, "no kill of a group"),
        (stat.event_max, "no wait at a bound"),
        (stat.event_high, "no use above high"),
        (stat.event_low, "nothing taken that low protects"),
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
    let explained = stage.nr_kills.load(Ordering::Relaxed) + stage.nr_ooms.load(Ordering::Relaxed);
    if memcg.stat().oom_kill != explained {
        let found = format!("{} instead of {explained}", memcg.stat().oom_kill);
        return Err(JobError::of("kills that nobody knows of", found));
    }
    let Stage {
        pinless, levels, ..
    } = stage;
    drop(pinless);
    for level in &levels {
        let mut counters = level.counters().into_iter();
        if let Some((what, counter)) = counters.find(|(_, counter)| counter.usage() > 0) {
            let which = format!("{what} of {}, {}", level.name(), counter.usage());
            return Err(JobError::of("not given back", which));
        }
    }
    let left = (
        memcg.zswap().stats().stored_pages,
        memcg.file().map_or(0, |file| file.stats().clusters),
    );
    match left {
        (0, 0) => Ok(()),
        left => Err(JobError::of("not given back", format!("{left:?}"))),
    }
}
