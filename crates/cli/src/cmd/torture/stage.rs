//! The whole: lives side by side, chaos over them, and those who watch.

use super::plan::Plan;
use super::report::{Done, Report};
use super::{chaos, life};
use crate::args::Injection;
use crate::cmd::run::RunError;
use crate::cmd::run::corpus::Corpus;
use crate::cmd::run::judge::{Failure, Judge};
use crate::exit;
use crate::render::live::{Figures, Live};
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use lockdep::sync::Mutex;
use lockdep::{Policy, Severity, Validator};
use pinless::io_uring::SetupError;
use pinless::oom::Reason;
use pinless::{Builder, Mm, PAGE_SIZE, Pinless, swap};
use pinless_sim::checker::Kills;
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Between two looks at how it goes.
const TICK: Duration = Duration::from_millis(20);

/// How long the reaper may take with the last victims: many times what its passes and pauses take.
const REAP_DEADLINE: Duration = Duration::from_secs(30);

/// Pages of the store that may have come free between the choice of a victim and the report of it.
const FREED_MEANWHILE: u64 = 16;

/// How long a fault waits for a frame: the machine may be busy otherwise.
const FAULT_DEADLINE: Duration = Duration::from_secs(60);

/// One store in so many fails, when it is made to fail.
const INJECT_ONE_IN: u32 = 64;

/// Everything that takes part.
pub(super) struct Stage {
    pub(super) plan: Plan,
    pub(super) corpus: Arc<Corpus>,
    pub(super) judge: Judge,
    pub(super) did: Done,
    pub(super) no_ring: OnceLock<SetupError>,
    is_interrupted: Arc<AtomicBool>,
    /// Who lives where at this moment.
    pub(super) slots: Vec<Mutex<Option<Arc<Mm>>>>,
    /// Why a life could not begin.
    error: Mutex<Option<RunError>>,
    pub(super) pinless: Pinless,
}

/// What was seen of the kills, and of the locks.
#[derive(Default)]
struct Watch {
    kills: Kills,
    victims: BTreeSet<u64>,
    /// The validator has reported something.
    is_told: bool,
}

impl Stage {
    pub(super) fn set(
        plan: Plan,
        corpus: Arc<Corpus>,
        is_interrupted: Arc<AtomicBool>,
    ) -> Result<Self, RunError> {
        // A release does not watch locks by itself; and what is reported is judged here, so that
        // it is told with the seed.
        lockdep::set_enabled(true);
        Validator::global().set_policy(Policy::Silent);
        let pinless = Builder::new(plan.limit_bytes)
            .zswap_max(plan.zswap_bytes())
            .fault_deadline(FAULT_DEADLINE)
            .fault_threads(plan.nr_slots as usize)
            .bus_checks(plan.checks)
            .build()
            .map_err(RunError::Build)?;
        let zswap = pinless.memcg().zswap();
        let one_in = INJECT_ONE_IN;
        match plan.inject {
            Some(Injection::LostStore) => zswap.inject(swap::Inject::LoseStore { one_in }),
            Some(Injection::CorruptSlot) => zswap.inject(swap::Inject::CorruptSlot { one_in }),
            // Those of the notifiers are each life's.
            Some(Injection::SkipNotifier | Injection::LateEnd) | None => {}
        }
        let slot = |_| Mutex::new("cli.slot", None);
        Ok(Self {
            slots: (0..plan.nr_slots).map(slot).collect(),
            corpus,
            judge: Judge::new(),
            did: Done::new(),
            no_ring: OnceLock::new(),
            is_interrupted,
            error: Mutex::new("cli.error", None),
            pinless,
            plan,
        })
    }

    pub(super) fn is_interrupted(&self) -> bool {
        self.is_interrupted.load(Ordering::Relaxed)
    }

    /// Does it all, and takes everything down.
    pub(super) fn play(self, live: &Live) -> Result<Report, RunError> {
        let began = Instant::now();
        let mut watch = Watch::default();
        std::thread::scope(|scope| {
            for slot in 0..self.plan.nr_slots {
                self.judge.spawn(scope, "slot", {
                    let stage = &self;
                    move || stage.live_on(slot)
                });
            }
            self.judge.spawn(scope, "chaos", || chaos::run(&self));
            while !self.judge.is_stopped() {
                std::thread::sleep(TICK);
                self.watch_kills(&mut watch);
                self.watch_locks(&mut watch);
                let (now, all) = (began.elapsed(), self.plan.duration);
                live.show(
                    "torture",
                    now.as_millis() as u64,
                    all.as_millis() as u64,
                    &self.figures(),
                );
                if now >= all || self.is_interrupted() {
                    self.judge.stop();
                }
            }
        });
        live.finish();
        if let Some(error) = self.error.lock().take() {
            return Err(error);
        }
        self.watch_reaper(&mut watch);
        self.watch_locks(&mut watch);
        Ok(self.take_down(began.elapsed()))
    }

    /// One life after the other.
    fn live_on(&self, slot: u32) {
        for nr in 0.. {
            if self.judge.is_stopped() {
                return;
            }
            if let Err(error) = life::live(self, slot, nr) {
                *self.error.lock() = Some(error);
                self.judge.stop();
            }
        }
    }

    /// G7 and G9: nobody is killed who was not asked to be, while there is room for pages, or while
    /// another one is being reaped.
    fn watch_kills(&self, watch: &mut Watch) {
        let reports = self.pinless.memcg().oom_reports();
        for (at, report) in reports.iter().enumerate() {
            if !watch.victims.insert(report.mm.0) {
                continue;
            }
            for before in &reports[..at] {
                let done = before.done_ns.map(|done| before.killed_at_ns + done);
                if done.is_some_and(|done| done <= report.killed_at_ns) {
                    watch.kills.reaped(before.mm.0);
                }
            }
            if report.reason == Reason::Asked {
                watch.kills.asked(report.mm.0);
                continue;
            }
            let nr_free = report.zswap.1.saturating_sub(report.zswap.0) / PAGE_SIZE as u64;
            let nr_freeable = nr_free.saturating_sub(FREED_MEANWHILE);
            let killed = watch.kills.killed(report.mm.0, &[report.mm.0], nr_freeable);
            if let Err(breach) = killed {
                self.judge
                    .fail_all("kill", &format!("{}: {breach}", report.victim));
            }
        }
        // Now, since only the newest reports are kept.
        for done in reports.iter().filter(|report| report.done_ns.is_some()) {
            watch.kills.reaped(done.mm.0);
        }
    }

    /// G8: the reaper comes to an end with each victim.
    fn watch_reaper(&self, watch: &mut Watch) {
        let began = Instant::now();
        let found = loop {
            self.watch_kills(watch);
            let found = watch.kills.finish();
            if found.is_ok() || began.elapsed() > REAP_DEADLINE {
                break found;
            }
            std::thread::sleep(TICK);
        };
        if let Err(breach) = found {
            self.judge.fail_all("reap", &breach.to_string());
        }
    }

    /// What the lock validator reports counts, unless it is unlikely.
    fn watch_locks(&self, watch: &mut Watch) {
        let reports = Validator::global().reports();
        let told = reports
            .iter()
            .find(|report| report.severity > Severity::Unlikely);
        if let Some(report) = told
            && !core::mem::replace(&mut watch.is_told, true)
        {
            self.judge.fail_all("watch locks", &report.text());
        }
    }

    fn figures(&self) -> Figures {
        let stat = self.pinless.memcg().stat();
        Figures {
            verified_bytes: self.did.verified_bytes(),
            soft_faults: stat.soft_fault.count,
            hard_faults: stat.hard_fault.count,
            evictions: stat.pgsteal,
            nr_failures: self.judge.nr_failures(),
            kills: stat.oom_kill,
        }
    }

    /// Takes everything down. Whatever is charged after that was lost.
    fn take_down(self, took: Duration) -> Report {
        let memcg = Arc::clone(self.pinless.memcg());
        let convictions = memcg.convictions().len();
        let (figures, interrupted) = (self.figures(), self.is_interrupted());
        drop(self.pinless);
        let (frames, stored) = (memcg.frames().usage(), memcg.zswap().stats().stored_pages);
        let mut failures = self.judge.failures();
        // Where pages were lost on purpose there is nothing to give back for them.
        if frames + stored > 0 && failures.is_empty() {
            let what = format!("{frames} frames and {stored} stored pages were not given back");
            failures.push(Failure::of_all("take everything down", what));
        }
        if let Some(panic) = exit::take_panic() {
            let what = format!("a bug of pinless: {panic}");
            failures.push(Failure::of_all("take everything down", what));
        }
        let no_ring = self.no_ring.get();
        Report {
            ok: failures.is_empty(),
            interrupted,
            seed: self.plan.seed,
            replay: self.plan.replay,
            seconds: took.as_secs_f64(),
            limit_bytes: self.plan.limit_bytes,
            slots: self.plan.nr_slots,
            bytes_verified: figures.verified_bytes,
            did: self.did.counts(),
            devices: self.did.devices(),
            evictions: figures.evictions,
            faults: figures.soft_faults + figures.hard_faults,
            convictions,
            failures,
            notes: no_ring
                .map(|error| format!("without io_uring: {error}"))
                .into_iter()
                .collect(),
        }
    }
}
