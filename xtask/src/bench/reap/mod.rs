//! The reaper: how fast it takes memory back, beside what the machine can do and what the kernel's
//! own reaper does, and what the choice of a victim costs.
//!
//! A victim has 64 MiB in frames, filled by faults. Its bandwidth is beside one `MADV_DONTNEED`
//! over the same memory: as large, in a mapping of the same kind, filled by the same faults, and
//! given back by a thread that slept meanwhile and is woken for it, as the reaper is. (Who gives
//! back what it has just filled itself finds the kernel's books of those pages in the caches of its
//! processor.) Both are told by the clock, from the order until the last page is free, and by the
//! time that they had a processor, which neighbours on a busy machine change little.
//!
//! The time to the first page, while a device hangs with a part of it, is beside the wake-up of a
//! thread that sleeps, which is a part of it. Such a device is asked and never done; its callback
//! returns. The kernel's reaper is timed by its trace events, on a process of the same size whose
//! memory a system call keeps from going with it.

mod kernel;

use super::picture::{Curves, Picture};
use super::report::{BenchError, Budget, Contender, Measured, Outcome, Row, interleave};
use kernel::Reaped;
use lockdep::sync::{Condvar, Fence, Mutex};
use pinless_host::{FaultService, HostMapping, MonotonicClock, Resolver};
use pinless_mm::addr::{PAGE_SIZE, PageRun, Vaddr};
use pinless_mm::limits::Limits;
use pinless_mm::mmu_notifier::{Context, Notifier, Range, Ranges};
use pinless_mm::oom::OomReport;
use pinless_mm::primary_mmu::{MmuError, PrimaryMmu};
use pinless_mm::{Memcg, MmHandle};
use pinless_sim::{Frames, SimMmu};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(super) use kernel::{VICTIM, victim};

/// What a victim has.
const NR_PAGES: u32 = 16_384;
const VICTIM_BYTES: u64 = NR_PAGES as u64 * PAGE_SIZE as u64;

/// What its device holds.
const HELD_PAGES: u32 = 16;

/// How many address spaces a victim is chosen from.
const COUNTS: [u64; 5] = [1, 10, 100, 1000, 10_000];

/// From a kill to the first page that is free.
const FIRST_PAGE_MS_MAX: f64 = 1.0;

/// Of what `MADV_DONTNEED` does.
const BANDWIDTH_TIMES_MIN: f64 = 0.9;

/// Runs of the kernel's reaper, which begins after two seconds each time.
const KERNEL_ROUNDS: u32 = 3;

/// Who waits for the end of something looks as seldom: whoever looks takes time from it.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

const CHOICE_NOTE: &str = "the cost of a choice is linear, as the kernel's: before it, nothing \
    could be freed for 75 ms at least, and an order that is kept up to date would cost each fault";

/// A device that hangs: what it was given is never done.
struct Hangs {
    done: Fence,
}

impl Hangs {
    fn new() -> Self {
        Self {
            done: Fence::new("bench.nic.done"),
        }
    }
}

impl Notifier for Hangs {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        cx.settle(&self.done)
    }
}

/// A memory cgroup with its workers.
struct System {
    memcg: Arc<Memcg>,
    resolver: Resolver,
    workers: Vec<JoinHandle<()>>,
    /// Where the kernel tells how long the reaper had a processor.
    reaper: PathBuf,
}

fn failed(error: impl std::fmt::Display) -> BenchError {
    BenchError(error.to_string())
}

impl System {
    fn new() -> Result<Self, BenchError> {
        let mut limits = Limits::new(2 * VICTIM_BYTES);
        // What is held is asked for once, and that is enough here.
        limits.reap_passes = 1;
        let memcg = Memcg::new(limits, Arc::new(MonotonicClock)).map_err(failed)?;
        let run = |run: fn(&Memcg)| {
            let memcg = Arc::clone(&memcg);
            std::thread::spawn(move || run(&memcg))
        };
        let workers = [Memcg::run_reclaim, Memcg::run_settle, Memcg::run_spare];
        let mut workers: Vec<_> = workers.into_iter().map(run).collect();
        let (tell, told) = mpsc::channel();
        let reaps = Arc::clone(&memcg);
        workers.push(std::thread::spawn(move || {
            // Nobody listens when the other end has failed.
            let _ = tell.send(schedstat());
            reaps.run_reaper();
        }));
        Ok(Self {
            workers,
            reaper: told.recv().map_err(failed)?.map_err(failed)?,
            resolver: Resolver::Service(FaultService::start(1).map_err(failed)?),
            memcg,
        })
    }

    /// An address space with all its pages in frames.
    fn filled(&self) -> Result<(MmHandle, HostMapping), BenchError> {
        let mm = self.memcg.new_mm("victim");
        let mut host = HostMapping::create(NR_PAGES, self.resolver.clone()).map_err(failed)?;
        let vma = mm.map(host.mmu()).map_err(failed)?;
        host.attach(vma).map_err(failed)?;
        for page in 0..NR_PAGES {
            let offset = u64::from(page) * PAGE_SIZE as u64;
            host.write_at(offset, &[1]).map_err(failed)?;
        }
        Ok((mm, host))
    }

    /// Kills a victim, and tells how it went once the reaper is done.
    fn kill(&self, mm: &MmHandle) -> Result<OomReport, BenchError> {
        if !self.memcg.kill(mm) {
            return Err(failed("nobody to kill"));
        }
        loop {
            // Before the first look: whoever looks takes time from the reaper.
            std::thread::sleep(LOOK_PAUSE);
            let report = self.memcg.oom_reports().pop();
            if let Some(report) =
                report.filter(|report| report.mm == mm.id() && report.done_ns.is_some())
            {
                return Ok(report);
            }
        }
    }

    /// The same, while a device holds a part.
    fn kill_beside_a_device(&self) -> Result<OomReport, BenchError> {
        let (mm, host) = self.filled()?;
        let vma = mm.vmas().pop().ok_or_else(|| failed("no mapping"))?;
        let held = Ranges::Only(vec![vma.base()..vma.address(HELD_PAGES)]);
        let device = Arc::new(Hangs::new());
        let nic = Arc::clone(&device);
        let subscription = mm.notifiers().subscribe("nic", held, nic);
        let report = self.kill(&mm);
        // A teardown waits for it.
        device.done.signal();
        drop(subscription);
        drop((vma, host, mm));
        report
    }
}

impl Drop for System {
    fn drop(&mut self) {
        self.memcg.stop();
        for worker in self.workers.drain(..) {
            // An error says that the thread panicked, and it has said so itself.
            let _ = worker.join();
        }
    }
}

fn ms(ns: Option<u64>) -> Result<f64, BenchError> {
    let ns = ns.ok_or_else(|| failed("the reaper did nothing"))?;
    Ok(ns as f64 / 1e6)
}

/// Where the kernel tells how long the calling thread had a processor.
fn schedstat() -> io::Result<PathBuf> {
    let thread = std::fs::read_link("/proc/thread-self")?;
    Ok(Path::new("/proc").join(thread).join("schedstat"))
}

/// How long a thread has had a processor, in nanoseconds: of one that is asleep, or was just now.
fn processor_ns(schedstat: &Path) -> Result<u64, BenchError> {
    let text = std::fs::read_to_string(schedstat).map_err(failed)?;
    let first = text.split_whitespace().next().unwrap_or_default();
    first.parse().map_err(failed)
}

fn gib_per_s(bytes: u64, ns: f64) -> f64 {
    bytes as f64 / ns * 1e9 / (1 << 30) as f64
}

/// GiB a second of the reaper, over everything: by the clock, and of the time on a processor.
fn reap(system: &System) -> Result<Vec<f64>, BenchError> {
    let (mm, host) = system.filled()?;
    let before_ns = processor_ns(&system.reaper)?;
    let report = system.kill(&mm)?;
    let ran_ns = processor_ns(&system.reaper)? - before_ns;
    drop((host, mm));
    let (bytes, done_ms) = (report.freed_bytes(), ms(report.done_ns)?);
    Ok(vec![
        gib_per_s(bytes, done_ms * 1e6),
        gib_per_s(bytes, ran_ns as f64),
    ])
}

/// Milliseconds to the first page, and to all but those that a device holds.
fn reap_beside_a_device(system: &System) -> Result<Vec<f64>, BenchError> {
    let report = system.kill_beside_a_device()?;
    if report.freed_frames != u64::from(NR_PAGES - HELD_PAGES) {
        return Err(failed(format!("not all came back: {report}")));
    }
    Ok(vec![ms(report.first_page_ns)?, ms(report.first_pass_ns)?])
}

/// A thread that gives memory back with one `MADV_DONTNEED` when it is told.
struct Zapper {
    orders: mpsc::Sender<Arc<dyn PrimaryMmu>>,
    done: mpsc::Receiver<Result<Instant, MmuError>>,
    /// Where the kernel tells how long it had a processor.
    schedstat: PathBuf,
}

impl Zapper {
    /// It ends when this is dropped.
    fn start() -> Result<Self, BenchError> {
        let (orders, ordered) = mpsc::channel::<Arc<dyn PrimaryMmu>>();
        let (tell, done) = mpsc::channel();
        let (tell_where, place) = mpsc::channel();
        std::thread::spawn(move || {
            // Nobody listens when the other end has failed.
            let _ = tell_where.send(schedstat());
            while let Ok(mmu) = ordered.recv() {
                let zapped = mmu.zap(PageRun::new(0, mmu.nr_pages()));
                let _ = tell.send(zapped.map(|()| Instant::now()));
            }
        });
        Ok(Self {
            orders,
            done,
            schedstat: place.recv().map_err(failed)?.map_err(failed)?,
        })
    }

    /// GiB a second over everything, as [`reap`].
    fn zap(&self, system: &System) -> Result<Vec<f64>, BenchError> {
        let (mm, host) = system.filled()?;
        let before_ns = processor_ns(&self.schedstat)?;
        let begun = Instant::now();
        self.orders.send(host.mmu()).map_err(failed)?;
        // As long as a kill is not looked at.
        std::thread::sleep(LOOK_PAUSE);
        let ended = self.done.recv().map_err(failed)?.map_err(failed)?;
        let ran_ns = processor_ns(&self.schedstat)? - before_ns;
        drop((host, mm));
        let took_ns = (ended - begun).as_nanos() as f64;
        let speeds = [took_ns, ran_ns as f64].map(|ns| gib_per_s(VICTIM_BYTES, ns));
        Ok(speeds.to_vec())
    }
}

/// A thread that sleeps until it is told, and then says when it woke.
struct Sleeper {
    state: Mutex<(Option<Instant>, Option<f64>)>,
    changed: Condvar,
}

/// Milliseconds until a thread runs that was asleep.
fn wake_up() -> Result<Vec<f64>, BenchError> {
    let sleeper = Sleeper {
        state: Mutex::new("bench.sleeper", (None, None)),
        changed: Condvar::new("bench.sleeper.changed"),
    };
    let woken = std::thread::scope(|scope| {
        scope.spawn(|| {
            let guard = sleeper.state.lock();
            let mut guard = sleeper.changed.wait_while(guard, |state| state.0.is_none());
            guard.1 = guard.0.map(|told| told.elapsed().as_secs_f64() * 1e3);
            sleeper.changed.notify_all();
        });
        std::thread::sleep(Duration::from_millis(5));
        let mut guard = sleeper.state.lock();
        guard.0 = Some(Instant::now());
        sleeper.changed.notify_all();
        sleeper
            .changed
            .wait_while(guard, |state| state.1.is_none())
            .1
    });
    Ok(vec![woken.ok_or_else(|| failed("nobody woke"))?])
}

/// Microseconds to choose a victim of so many.
fn choose(memcg: &Memcg) -> Result<Vec<f64>, BenchError> {
    let begun = Instant::now();
    let worst = memcg.worst();
    let elapsed = begun.elapsed().as_secs_f64() * 1e6;
    if worst.is_empty() {
        return Err(failed("nobody to choose"));
    }
    Ok(vec![elapsed])
}

/// A memory cgroup with so many address spaces of a page each.
struct Crowd {
    memcg: Arc<Memcg>,
    /// In this order: mappings before their address spaces.
    _members: Vec<(Arc<pinless_mm::Vma>, MmHandle)>,
}

impl Crowd {
    fn new(nr: u64) -> Result<Self, BenchError> {
        let limits = Limits::new((nr + 64) * PAGE_SIZE as u64);
        let memcg = Memcg::new(limits, Arc::new(MonotonicClock)).map_err(failed)?;
        let frames = Frames::new(nr);
        let member = |nth: u64| {
            let mm = memcg.new_mm(&format!("tenant{nth}"));
            let base = Vaddr((nth + 1) * 16 * PAGE_SIZE as u64);
            let vma = mm.map(SimMmu::new(base, 1, &frames)).map_err(failed)?;
            let run = PageRun::single(0);
            vma.advise(run, pinless_mm::Advice::WillNeed)
                .map_err(failed)?;
            Ok((vma, mm))
        };
        let members: Result<_, BenchError> = (0..nr).map(member).collect();
        Ok(Self {
            _members: members?,
            memcg,
        })
    }
}

fn crowd_name(nr: u64) -> String {
    format!("reap/choose of {nr}")
}

fn curves(measured: &Measured) -> Curves {
    let median = |nr: u64| measured.of(&crowd_name(nr), 0).median().max(1e-3);
    Curves {
        title: "the choice of a victim".into(),
        counted: "address spaces".into(),
        unit: "us",
        counts: COUNTS.to_vec(),
        lines: vec![("badness of each".into(), COUNTS.map(median).to_vec())],
    }
}

/// Medians of interleaved rounds; the kernel's reaper has rounds of its own, as it takes seconds.
pub(super) fn run(rounds: u32) -> Result<Outcome, BenchError> {
    let system = System::new()?;
    let zapper = Zapper::start()?;
    let crowds: Result<Vec<_>, _> = COUNTS.iter().map(|&nr| Crowd::new(nr)).collect();
    let crowds = crowds?;
    let mut contenders = vec![
        Contender::new("reap/bandwidth", || reap(&system)),
        Contender::new("MADV_DONTNEED", || zapper.zap(&system)),
        Contender::new("reap/device", || reap_beside_a_device(&system)),
        Contender::new("wake-up", wake_up),
    ];
    contenders.extend(
        COUNTS
            .iter()
            .zip(&crowds)
            .map(|(&nr, crowd)| Contender::new(crowd_name(nr), move || choose(&crowd.memcg))),
    );
    let measured = interleave(rounds, &mut contenders)?;
    drop(contenders);
    let of = |name: &str, metric| measured.of(name, metric);
    let mut rows = vec![
        Row::new("reap/bandwidth", "GiB/s", of("reap/bandwidth", 0))
            .beside("MADV_DONTNEED", of("MADV_DONTNEED", 0))
            .within(Budget::TimesPeerMin(BANDWIDTH_TIMES_MIN)),
        Row::new(
            "reap/bandwidth, on a processor",
            "GiB/s",
            of("reap/bandwidth", 1),
        )
        .beside("MADV_DONTNEED", of("MADV_DONTNEED", 1))
        .within(Budget::TimesPeerMin(BANDWIDTH_TIMES_MIN)),
        Row::new("reap/first page, device hangs", "ms", of("reap/device", 0))
            .beside("wake-up of a thread", of("wake-up", 0))
            .within(Budget::Max(FIRST_PAGE_MS_MAX)),
    ];
    let mut notes = vec![CHOICE_NOTE.to_owned()];
    let all = Row::new("reap/all but what is held", "ms", of("reap/device", 1));
    match kernel::reap_a_process(VICTIM_BYTES, KERNEL_ROUNDS) {
        Ok(Reaped { back_ms, speed }) => {
            rows.push(all.beside("kernel's reaper", &back_ms));
            let name = "reap/bandwidth, to the kernel's";
            let ours = Row::new(name, "GiB/s", of("reap/bandwidth", 0));
            rows.push(ours.beside("kernel's reaper", &speed));
        }
        Err(error) => {
            rows.push(all);
            notes.push(format!("skipped: the kernel's own reaper: {error}"));
        }
    }
    rows.extend(COUNTS.map(|nr| Row::new(crowd_name(nr), "us", of(&crowd_name(nr), 0))));
    Ok(Outcome {
        rows,
        notes,
        picture: Some(Picture::Curves(curves(&measured))),
    })
}
