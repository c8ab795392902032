//! The run from load to report: who does what, and when.

use super::RunError;
use super::corpus::Corpus;
use super::judge::{Failure, Judge};
use super::oom_story;
use super::plan::Plan;
use super::report::{Input, Report};
use super::rng::Rng;
use super::rss::OtherMemory;
use super::tenant::{Tally, Tenant};
use super::verify::{self, Verified};
use super::workload::{Actor, cpu, dma, leak, load, ring};
use crate::args::{Bytes, Injection};
use crate::exit;
use crate::render::live::{Figures, Live};
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use pinless::io_uring::SetupError;
use pinless::{Builder, MapOptions, Mapping, PAGE_SIZE, Pinless, mmu_notifier};
use pinless_mm::swap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Instant;

/// Between two looks at how it goes.
const TICK: Duration = Duration::from_millis(20);

/// How long a device may keep reclaim waiting: nobody waits for reclaim meanwhile.
const SETTLE_DEADLINE: Duration = Duration::from_millis(400);

/// How long a fault waits for a frame. Longer than usual: the machine may be busy otherwise.
const FAULT_DEADLINE: Duration = Duration::from_secs(30);

/// The work goes on after the kill, so that it is seen that it does.
const AFTERMATH: Duration = Duration::from_millis(300);

/// Whoever does nothing for this long after the kill does not go on.
const AFTERMATH_MAX: Duration = Duration::from_secs(20);

/// A leak that nobody was killed for after this long is a failure; and as many seconds more as the
/// limit has pieces of this size: the leak has to fill what is left of the store, page by page.
const LEAK_MAX: Duration = Duration::from_secs(120);
const LEAK_BYTES_A_SECOND: u64 = 4 << 20;

/// A change outside of a bracket ends the run; a device that meets it may still say so, and then
/// ends it at once.
const WITNESS_GRACE: Duration = Duration::from_secs(20);

/// One store in so many fails, when it is made to fail.
const INJECT_ONE_IN: u32 = 64;

/// Everything that takes part.
pub(crate) struct Stage {
    pub(crate) plan: Plan,
    pub(crate) input: Input,
    pub(crate) judge: Judge,
    pub(crate) no_ring: OnceLock<SetupError>,
    pub(crate) is_interrupted: Arc<AtomicBool>,
    may_hang: AtomicBool,
    /// Kept to the end: it is the reaper who is to free it.
    leaked: OnceLock<Mapping>,
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) pinless: Pinless,
}

/// What is measured on the way, since it is gone at the end.
#[derive(Debug, Default)]
pub(crate) struct Course {
    pub(crate) loaded: Duration,
    pub(crate) worked: Duration,
    pub(crate) rss_other: (u64, u64),
    other: OtherMemory,
    pub(crate) compression_ratio: f64,
    /// Operations of each tenant when the victim had been reaped.
    pub(crate) ops_at_kill: Option<Vec<u64>>,
    pub(crate) verified: Vec<Verified>,
}

/// Where the work is.
enum Phase {
    Steady,
    /// One device is to hang.
    Hanging,
    Leaking,
    /// The victim was reaped.
    Aftermath(Instant),
}

impl Stage {
    pub(crate) fn set(
        plan: Plan,
        input: &Path,
        corpus: Arc<Corpus>,
        is_interrupted: Arc<AtomicBool>,
    ) -> Result<Self, RunError> {
        let pinless = Builder::new(plan.limit_bytes)
            .zswap_max(plan.zswap_bytes)
            .fault_deadline(FAULT_DEADLINE)
            .settle_deadline(SETTLE_DEADLINE)
            // One for each tenant, and one for the leak.
            .fault_threads(plan.nr_tenants as usize + 1)
            .build()
            .map_err(RunError::Build)?;
        let no_ring = OnceLock::new();
        let tenants = (0..plan.nr_tenants)
            .map(|index| Tenant::create(&pinless, plan.shape_of(index), &corpus, &no_ring))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            input: Input::new(input, &corpus),
            judge: Judge::new(),
            no_ring,
            is_interrupted,
            may_hang: AtomicBool::new(false),
            leaked: OnceLock::new(),
            tenants,
            pinless,
            plan,
        })
    }

    /// Does it all, and takes everything down.
    pub(crate) fn play(self, live: &Live) -> Report {
        let mut course = Course::default();
        std::thread::scope(|scope| {
            let _curtain = Curtain(&self);
            self.start_engines(scope);
            self.load(scope, live, &mut course);
            self.work(scope, live, &mut course);
            self.judge_course(&course);
            course.verified = verify::run(&self, scope, live);
        });
        live.finish();
        let mut report = Report::new(&self, &course);
        self.take_down(&mut report);
        report
    }

    fn start_engines<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        for tenant in &self.tenants {
            for dma in tenant.dma_devices() {
                self.judge
                    .spawn(scope, dma.device.name(), || dma.device.serve());
            }
        }
    }

    fn load<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        live: &Live,
        course: &mut Course,
    ) {
        let began = Instant::now();
        let loaders: Vec<_> = self
            .tenants
            .iter()
            .filter_map(|tenant| {
                let actor = self.actor(tenant, "loader".to_owned(), &tenant.loading, 0);
                let chunk_pages = self.plan.chunk_pages;
                let load = move || load::run(&actor, chunk_pages).is_ok();
                self.judge.spawn(scope, "loader", load)
            })
            .collect();
        while loaders.iter().any(|loader| !loader.is_finished()) {
            self.heed_interrupt();
            let loaded: u64 = self
                .tenants
                .iter()
                .map(|t| t.loading.verified_bytes())
                .sum();
            live.show("load", loaded, self.plan.managed_bytes(), &self.figures());
            course.other.watch(self.pinless.memcg());
            std::thread::sleep(TICK);
        }
        course.loaded = began.elapsed();
    }

    /// The work, until its time is over or something did not hold.
    fn work<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        live: &Live,
        course: &mut Course,
    ) {
        if self.judge.is_stopped() {
            return;
        }
        self.inject();
        let mut actors = self.start_actors(scope);
        let began = Instant::now();
        let leak_at = self.plan.duration * 2 / 3;
        let mut phase = Phase::Steady;
        let mut convicted_at = None;
        while !self.judge.is_stopped() {
            std::thread::sleep(TICK);
            self.heed_interrupt();
            let elapsed = began.elapsed();
            let (done, total) = (elapsed.as_millis(), self.plan.duration.as_millis());
            live.show("work", done as u64, total as u64, &self.figures());
            course.other.watch(self.pinless.memcg());
            self.heed_witness(&mut convicted_at);
            self.heed_wrong_victim();
            match phase {
                Phase::Steady if elapsed < leak_at / 4 || course.rss_other.0 == 0 => {
                    course.rss_other.0 = course.other.bytes(self.pinless.memcg());
                }
                Phase::Steady if elapsed >= leak_at => {
                    course.rss_other.1 = course.other.bytes(self.pinless.memcg());
                    course.compression_ratio = self.compression_ratio();
                    self.may_hang.store(true, Ordering::Relaxed);
                    phase = Phase::Hanging;
                }
                Phase::Hanging if self.leaker().is_hung.load(Ordering::Relaxed) => {
                    actors.extend(self.start_leak(scope));
                    phase = Phase::Leaking;
                }
                Phase::Leaking if self.is_reaped() => {
                    let ops = self.tenants.iter().map(Tenant::ops).collect();
                    course.ops_at_kill = Some(ops);
                    phase = Phase::Aftermath(Instant::now());
                }
                Phase::Aftermath(since)
                    if elapsed >= self.plan.duration
                        && (since.elapsed() >= AFTERMATH && self.goes_on(course)
                            || since.elapsed() >= AFTERMATH_MAX) =>
                {
                    self.judge.stop();
                }
                Phase::Hanging | Phase::Leaking if elapsed > leak_at + self.leak_max() => {
                    self.judge
                        .fail_all("leak", "nobody was killed and reaped for it in minutes");
                }
                _ => {}
            }
        }
        course.worked = began.elapsed();
        if course.compression_ratio == 0.0 {
            course.compression_ratio = self.compression_ratio();
        }
        for actor in actors {
            let _ = actor.join();
        }
    }

    fn start_actors<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
    ) -> Vec<ScopedJoinHandle<'scope, Option<()>>> {
        let mut actors = Vec::new();
        for tenant in &self.tenants {
            let name = format!("cpu thread ({})", tenant.access);
            let actor = self.actor(tenant, name, &tenant.cpu, 1);
            actors.push(self.judge.spawn(scope, "cpu", move || cpu::run(actor)));
            for (index, dma) in (2..).zip(&tenant.dma) {
                let name = format!("device {}", dma.device.name());
                let actor = self.actor(tenant, name, &dma.tally, index);
                actors.push(
                    self.judge
                        .spawn(scope, dma.kind, move || dma::run(actor, dma)),
                );
            }
            if let Some(dma) = &tenant.hanging {
                let name = format!("device {}", dma.device.name());
                let actor = self.actor(tenant, name, &dma.tally, 10);
                let may_hang = || self.may_hang.load(Ordering::Relaxed);
                actors.push(self.judge.spawn(scope, "nic", move || {
                    dma::run_until_hang(actor, dma, may_hang);
                }));
            }
            if let Some(device) = &tenant.ring {
                let name = format!("device {}/io_uring", tenant.name);
                let actor = self.actor(tenant, name, &device.tally, 11);
                let pages_max = self.plan.chunk_pages.min(8);
                actors.push(self.judge.spawn(scope, "ring", move || {
                    ring::run(actor, device, pages_max);
                }));
            }
        }
        actors.into_iter().flatten().collect()
    }

    fn start_leak<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
    ) -> Vec<ScopedJoinHandle<'scope, Option<()>>> {
        static NOBODYS: Tally = Tally::new();
        let (tenant, nr_pages) = (self.leaker(), self.plan.leak_pages());
        let mapping = match self.pinless.map(&tenant.mm, MapOptions::of_pages(nr_pages)) {
            Ok(mapping) => self.leaked.get_or_init(|| mapping),
            Err(error) => {
                self.judge.fail_all("leak", &error.to_string());
                return Vec::new();
            }
        };
        let threads = (0..leak::THREADS).filter_map(|thread| {
            let name = "leaking thread".to_owned();
            let actor = self.actor(tenant, name, &NOBODYS, 12 + thread);
            let chunk_pages = self.plan.chunk_pages;
            self.judge.spawn(scope, "leak", move || {
                leak::run(actor, mapping, thread, chunk_pages);
            })
        });
        threads.collect()
    }

    pub(crate) fn actor<'a>(
        &'a self,
        tenant: &'a Tenant,
        name: String,
        tally: &'a Tally,
        index: u32,
    ) -> Actor<'a> {
        Actor {
            judge: &self.judge,
            tenant,
            name,
            tally,
            rng: Rng::new(self.plan.seed, tenant.index, index),
        }
    }

    pub(crate) fn leaker(&self) -> &Tenant {
        &self.tenants[self.plan.leaker() as usize]
    }

    fn inject(&self) {
        for tenant in &self.tenants {
            tenant.witness.arm();
        }
        let zswap = self.pinless.memcg().zswap();
        let one_in = INJECT_ONE_IN;
        let notifiers = |fault| {
            for tenant in &self.tenants {
                tenant.mm.notifiers().inject(fault);
            }
        };
        match self.plan.inject {
            None => {}
            Some(Injection::SkipNotifier) => notifiers(mmu_notifier::Inject::SkipNotifier),
            Some(Injection::LateEnd) => notifiers(mmu_notifier::Inject::LateEnd),
            Some(Injection::LostStore) => zswap.inject(swap::Inject::LoseStore { one_in }),
            Some(Injection::CorruptSlot) => zswap.inject(swap::Inject::CorruptSlot { one_in }),
        }
    }

    fn heed_interrupt(&self) {
        if self.is_interrupted.load(Ordering::Relaxed) {
            self.judge.stop();
        }
    }

    fn heed_witness(&self, convicted_at: &mut Option<Instant>) {
        if let Some(since) = convicted_at {
            if since.elapsed() >= WITNESS_GRACE {
                self.judge.stop();
            }
            return;
        }
        let is_convicted = |tenant: &Tenant| tenant.witness.verdict(&tenant.name).is_some();
        if self.tenants.iter().any(is_convicted) {
            *convicted_at = Some(Instant::now());
        }
    }

    /// Somebody was killed who had not leaked, or before he leaked.
    fn heed_wrong_victim(&self) {
        let leaker = self.leaker();
        let may_die = self.may_hang.load(Ordering::Relaxed);
        for tenant in &self.tenants {
            if tenant.mm.is_killed() && !(may_die && tenant.index == leaker.index) {
                let what = "it was killed although it did not leak";
                self.judge.fail(oom_story::failure(&tenant.name, what));
            }
        }
    }

    fn is_reaped(&self) -> bool {
        let reports = self.pinless.memcg().oom_reports();
        reports.iter().any(|report| report.done_ns.is_some())
    }

    /// How long a leak may go on.
    fn leak_max(&self) -> Duration {
        LEAK_MAX + Duration::from_secs(self.plan.limit_bytes / LEAK_BYTES_A_SECOND)
    }

    /// Everybody but the victim has done something since it was reaped.
    fn goes_on(&self, course: &Course) -> bool {
        let before = course.ops_at_kill.iter().flatten();
        let mut tenants = self.tenants.iter().zip(before);
        tenants.all(|(tenant, &before)| tenant.mm.is_killed() || tenant.ops() > before)
    }

    /// What has to be true at the end of the work.
    fn judge_course(&self, course: &Course) {
        for tenant in &self.tenants {
            if let Some(failure) = tenant.witness.verdict(&tenant.name) {
                self.judge.fail(failure);
            }
        }
        self.judge_bounds();
        let is_complete = self.judge.nr_failures() == 0 && !self.is_interrupted();
        if is_complete {
            oom_story::judge(self, course);
        }
    }

    fn judge_bounds(&self) {
        let memcg = self.pinless.memcg();
        let (frames, zswap) = (memcg.frames(), memcg.zswap());
        let bytes = |frames: u64| Bytes(frames * PAGE_SIZE as u64);
        if frames.is_exceeded() {
            let (usage, max) = (bytes(frames.usage()), bytes(frames.max()));
            self.judge.fail_all(
                "charge frames",
                &format!("{usage} are charged, {max} may be"),
            );
        }
        if zswap.peak_bytes() > zswap.max_bytes() {
            let (peak, max) = (Bytes(zswap.peak_bytes()), Bytes(zswap.max_bytes()));
            self.judge.fail_all(
                "charge the store",
                &format!("{peak} were charged, {max} may be"),
            );
        }
        let stale = super::report::stale_dma(self);
        if stale > 0 && self.judge.nr_failures() == 0 {
            self.judge.fail_all(
                "DMA",
                &format!("{stale} accesses through stale translations"),
            );
        }
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        self.is_interrupted.load(Ordering::Relaxed)
    }

    fn compression_ratio(&self) -> f64 {
        let stats = self.pinless.memcg().zswap().stats();
        stats.original_bytes as f64 / stats.compressed_bytes.max(1) as f64
    }

    pub(crate) fn figures(&self) -> Figures {
        let memcg = self.pinless.memcg();
        let stat = memcg.stat();
        Figures {
            verified_bytes: self.tenants.iter().map(Tenant::verified_bytes).sum(),
            soft_faults: stat.soft_fault.count,
            hard_faults: stat.hard_fault.count,
            evictions: stat.pgsteal,
            nr_failures: self.judge.nr_failures(),
            kills: stat.oom_kill,
        }
    }

    /// Takes everything down. Whatever is charged after that was lost.
    fn take_down(self, report: &mut Report) {
        let Self {
            judge,
            leaked,
            tenants,
            pinless,
            ..
        } = self;
        drop(leaked);
        let pinned: u64 = tenants.into_iter().map(Tenant::close).sum();
        if pinned > 0 {
            let what = format!("{pinned} pins were left by devices that had stopped");
            report.fail(Failure::of_all("take everything down", what));
        }
        let memcg = Arc::clone(pinless.memcg());
        drop(pinless);
        let (frames, stored) = (memcg.frames().usage(), memcg.zswap().stats().stored_pages);
        // A tenant whose pages were lost on purpose has nothing to give back for them.
        if frames + stored > 0 && judge.nr_failures() == 0 {
            let what = format!("{frames} frames and {stored} stored pages were not given back");
            report.fail(Failure::of_all("take everything down", what));
        }
        if let Some(panic) = exit::take_panic() {
            let what = format!("a bug of pinless: {panic}");
            report.fail(Failure::of_all("run", what));
        }
    }
}

/// However the scope is left: everybody stops, and no engine is waited for in vain.
struct Curtain<'a>(&'a Stage);

impl Drop for Curtain<'_> {
    fn drop(&mut self) {
        self.0.judge.stop();
        for tenant in &self.0.tenants {
            tenant.stop_devices();
        }
    }
}
