//! A validator: what was seen, which chains are known, what was reported.
//!
//! The process has one. Tests make their own with [`Validator::new`] and enter it in each thread
//! that takes part, so that they see each other's orders no more than each other's locks. Classes
//! have the same numbers in all validators.
//!
//! Locks of the validator, outermost first: the core, the registry; the reports; the spilled locks.
//! Under none of them is memory allocated, so an allocator may call in while another thread works
//! here. A handler of a fault of managed memory never interrupts the validator in its own thread,
//! because the validator touches no managed memory.

use core::ops::DerefMut;
use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use crate::chain::{self, Added, ChainId, ChainSet};
use crate::check::Check;
use crate::core::{Core, step_of};
use crate::finding::{self, Draft, Findings};
use crate::hooks;
use crate::pending::{self, Pending};
use crate::report::{self, Delivery, Kind, Policy, Report, Severity, Sink, ThreadNames};
use crate::sync::raw::RawLock;
use crate::sync::scheduler::scheduler_point;
use crate::task::{self, Held, Task, TaskState};
use crate::testing::Inject;
use crate::word::ClassId;

/// How many reports are kept; more are dropped.
const NR_REPORTS_MAX: usize = 1024;

/// How many chains a thread looks at itself though others have validated them, so that it is known
/// which orders more than one thread has.
const NR_JOINED_MAX: u32 = 256;

/// What [`Validator`] handles share.
pub(crate) struct Inner {
    chains: ChainSet,
    /// The core: take it by [`lock_core`](Inner::lock_core).
    pub(crate) core: RawLock<Core>,
    /// Whether a simulator is asked at the validator's own steps, and chains are trusted at once.
    is_tight: bool,
    reports: RawLock<Reports>,
    pending: Pending,
}

struct Reports {
    list: Vec<Arc<Report>>,
    delivery: Delivery,
    suppressed: Vec<String>,
}

/// The epoch changed meanwhile: chain numbers found before mean nothing.
pub(crate) struct Stale;

thread_local! {
    /// The validator of the thread, if it is not that of the process.
    static CURRENT: RefCell<Option<Arc<Inner>>> = const { RefCell::new(None) };
    /// Says when the thread ends. Apart from the task's state, which must have no destructor.
    static EXIT: Exit = const { Exit };
}

struct Exit;

impl Drop for Exit {
    fn drop(&mut self) {
        crate::event::thread_exits();
    }
}

/// Does something with the validator of the calling thread.
pub(crate) fn with_current<R>(act: impl FnOnce(&Inner) -> R) -> R {
    // In the last moments of a thread the slot is gone; so is who had set it.
    let own = CURRENT.try_with(|current| current.borrow().clone());
    match own.ok().flatten() {
        Some(inner) => act(&inner),
        None => act(global()),
    }
}

/// Whether the calling thread has a validator of its own.
pub(crate) fn is_private() -> bool {
    CURRENT
        .try_with(|current| current.borrow().is_some())
        .unwrap_or(false)
}

/// Gives the calling thread another validator; returns the one that it had.
pub(crate) fn exchange_current(other: Option<Arc<Inner>>) -> Option<Arc<Inner>> {
    // An error says that the thread is at its end.
    let before = CURRENT.try_with(|current| current.replace(other));
    before.ok().flatten()
}

/// Tells the validator of the calling thread that the thread has ended, as far as it is concerned.
pub(crate) fn end_thread() {
    task::with(|task| {
        let _work = task.begin_work();
        with_current(|inner| inner.lock_core().end_thread(task.thread.get()));
    });
}

pub(crate) fn global() -> &'static Inner {
    static GLOBAL: OnceLock<Inner> = OnceLock::new();
    GLOBAL.get_or_init(|| {
        crate::registry::start();
        crate::spill::start();
        finding::start();
        pending::meet_allocator();
        let setting = std::env::var("LOCKDEP").unwrap_or_default();
        let policy = match setting.as_str() {
            // A release is no place to look for mistakes in, unless somebody asks for it.
            "" if !cfg!(debug_assertions) => {
                hooks::set_validator(false);
                Policy::Silent
            }
            "off" => {
                hooks::set_validator(false);
                Policy::Silent
            }
            "panic" => Policy::Panic,
            "abort" => Policy::Abort,
            "strict" => Policy::Strict,
            "once" => Policy::Once,
            _ => Policy::Print,
        };
        let inner = Inner::new(ChainSet::global(), policy, false);
        {
            let mut reports = inner.reports.lock();
            reports.delivery.is_json = std::env::var("LOCKDEP_FORMAT").is_ok_and(|f| f == "json");
            if let Ok(path) = std::env::var("LOCKDEP_SUPPRESSIONS")
                && let Ok(text) = std::fs::read_to_string(path)
            {
                reports.suppressed = parse_suppressions(&text);
            }
        }
        inner
    })
}

/// A signature a line; empty lines and those that begin with `#` are comments.
fn parse_suppressions(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

impl Inner {
    fn new(chains: ChainSet, policy: Policy, is_tight: bool) -> Self {
        Self {
            chains,
            is_tight,
            core: RawLock::new(Core::new()),
            reports: RawLock::new(Reports {
                list: Vec::with_capacity(NR_REPORTS_MAX),
                delivery: Delivery {
                    policy,
                    sink: None,
                    is_json: false,
                },
                suppressed: Vec::new(),
            }),
            pending: Pending::new(),
        }
    }

    /// Locks the core; where it is tight, another task may go on before.
    pub(crate) fn lock_core(&self) -> impl DerefMut<Target = Core> + use<'_> {
        self.pass_point();
        self.core.lock()
    }

    /// A step between which and the next others may come; under no lock of the validator.
    fn pass_point(&self) {
        if self.is_tight && !std::thread::panicking() {
            scheduler_point("validator", 0);
        }
    }

    /// The number of the calling thread in this validator, or of the task that is on it.
    pub(crate) fn thread(task: &Task, core: &mut Core) -> u32 {
        if let Some(name) = task.name.get() {
            return core.number_task(name);
        }
        if task.thread.get() == 0 {
            task.thread.set(core.add_thread());
            // It fails in a thread that is ending; its end was told.
            let _ = EXIT.try_with(|_| ());
        }
        task.thread.get()
    }

    /// The chain that `held` makes of the first `depth` locks of the task, whose chain is current.
    ///
    /// Validates it if it is not known.
    pub(crate) fn step(
        &self,
        task: &Task,
        depth: u32,
        held: &Held,
        findings: &mut Findings,
    ) -> Result<ChainId, Stale> {
        let key = chain::step(task.chain(), held.word);
        if let Some(chain) = task.known(key) {
            return Ok(chain);
        }
        let known = self.chains.find(key);
        if let Some(chain) = known
            && (self.is_tight || task.nr_joined.get() >= NR_JOINED_MAX)
        {
            self.pass_point();
            return self.fresh(task, key, chain);
        }
        if self.is_tight && self.core.lock().injected == Inject::EarlyChains {
            // A table that is full is told below.
            let _ = self.chains.add(key);
        }
        let mut core = self.lock_core();
        if hooks::epoch_now() != task.epoch() && core.injected != Inject::StaleChains {
            return Err(Stale);
        }
        core.nr_misses += 1;
        let known = self.chains.find(key);
        task.nr_joined.set(task.nr_joined.get().saturating_add(1));
        let thread = Self::thread(task, &mut core);
        core.stack.clear();
        let room = core.stack.capacity();
        core.stack
            .extend(task.iter().take((depth as usize).min(room)));
        Check {
            core: &mut core,
            new: step_of(held),
            thread,
            findings,
        }
        .run();
        if let Some(chain) = known {
            return self.fresh(task, key, chain);
        }
        match self.chains.add(key) {
            Added::Chain(chain) => {
                task.learn(key, chain);
                Ok(chain)
            }
            Added::Full => {
                self.forget_chains();
                Err(Stale)
            }
        }
    }

    fn fresh(&self, task: &Task, key: u64, chain: ChainId) -> Result<ChainId, Stale> {
        if hooks::epoch_now() != task.epoch() {
            return Err(Stale);
        }
        task.learn(key, chain);
        Ok(chain)
    }

    pub(crate) fn nr_chains(&self) -> u32 {
        self.chains.nr_chains()
    }

    /// Whether a pair of an event and a class was seen, and need not be looked at by this thread.
    pub(crate) fn is_known_pair(&self, task: &Task, key: u64) -> bool {
        if task.known(key).is_some() {
            return true;
        }
        task.learn(key, 0);
        let is_known = self.chains.find(key).is_some();
        if is_known && task.nr_joined.get() < NR_JOINED_MAX {
            task.nr_joined.set(task.nr_joined.get() + 1);
            return false;
        }
        is_known
    }

    /// Remembers a pair, under the lock of the core.
    pub(crate) fn add_pair(&self, key: u64) {
        if self.chains.find(key).is_none() && self.chains.add(key) == Added::Full {
            self.forget_chains();
        }
    }

    /// Begins an epoch with no known chain; under the lock of the core.
    pub(crate) fn forget_chains(&self) {
        hooks::next_epoch();
        self.chains.clear();
    }

    /// Finds out the chain of the task again from this depth on, or from the bottom if it is stale.
    pub(crate) fn rechain(&self, task: &Task, from: u32, findings: &mut Findings) {
        let mut from = from;
        loop {
            if task.epoch() != hooks::epoch_now() {
                crate::handed::collect(task);
                task.enter_epoch(hooks::epoch_now());
                from = 0;
            }
            let step = |at: u32| {
                let mut held = task.get(at);
                held.before = task.chain();
                task.set(at, held);
                task.set_chain(self.step(task, at, &held, findings)?);
                Ok::<(), Stale>(())
            };
            if (from..task.depth()).try_for_each(step).is_ok() {
                return;
            }
        }
    }

    pub(crate) fn finding(&self, task: &Task, kind: Kind, held: &Held) -> Draft {
        let mut core = self.lock_core();
        let thread = Self::thread(task, &mut core);
        core.stack.clear();
        let room = core.stack.capacity();
        core.stack.extend(task.iter().take(room));
        Draft::new(kind, step_of(held), thread, &core.stack)
    }

    /// Keeps and hands on what was found; says whether the thread should panic.
    #[cold]
    pub(crate) fn report(&self, findings: Findings) -> bool {
        if !task::with(pending::must_wait) {
            return self.report_now(&findings);
        }
        if self.reports.lock().delivery.prints() {
            pending::announce(&findings);
        }
        task::with(|task| self.pending.keep(task, findings));
        false
    }

    /// Reports what had to wait, if this thread holds nothing that a report needs, nor is about to.
    pub(crate) fn report_pending(&self, task: &Task, about_to_take: Option<ClassId>) {
        while let Some(findings) = self.pending.next(task, about_to_take) {
            self.report_now(&findings);
        }
    }

    /// Keeps the thread off the fast path while there is something to report.
    pub(crate) fn stay_slow(&self, task: &Task) {
        if !self.pending.is_empty() {
            task.slow_down();
        }
    }

    fn report_now(&self, findings: &Findings) -> bool {
        let mut panics = false;
        for finding in findings.iter() {
            let mut names = ThreadNames::new();
            names.collect(&self.lock_core(), finding);
            let report = Arc::new(report::build(finding, &names));
            let Some(delivery) = self.keep(&report) else {
                continue;
            };
            report::deliver(&delivery, &report);
            panics |= delivery.policy == Policy::Panic && report.severity == Severity::Error;
        }
        panics && !std::thread::panicking()
    }

    fn forget_reports(&self) {
        let empty = Vec::with_capacity(NR_REPORTS_MAX);
        let reports = std::mem::replace(&mut self.reports.lock().list, empty);
        drop(reports);
    }

    /// Keeps a report; how to deliver it, if it is new.
    fn keep(&self, report: &Arc<Report>) -> Option<Delivery> {
        let mut reports = self.reports.lock();
        let same = |r: &Arc<Report>| r.fault == report.fault;
        let known = reports.list.iter().position(same);
        // What was unlikely, and has become worse, is told again.
        if known.is_some_and(|at| reports.list[at].severity >= report.severity)
            || reports.suppressed.contains(&report.signature)
        {
            return None;
        }
        match known {
            Some(at) => reports.list[at] = Arc::clone(report),
            None if reports.list.len() == NR_REPORTS_MAX => return None,
            None => reports.list.push(Arc::clone(report)),
        }
        Some(reports.delivery.clone())
    }
}

/// A validator of one's own, or a handle of that of the process.
#[derive(Clone)]
pub struct Validator(Option<Arc<Inner>>);

impl Validator {
    /// One that has seen nothing, and prints nothing: a test asks it for its reports.
    #[must_use]
    pub fn new() -> Self {
        Self::made(ChainSet::private(), false)
    }

    pub(crate) fn made_tight() -> Self {
        Self::made(ChainSet::tight(), true)
    }

    fn made(chains: ChainSet, is_tight: bool) -> Self {
        crate::registry::start();
        crate::spill::start();
        finding::start();
        Self(Some(Arc::new(Inner::new(chains, Policy::Silent, is_tight))))
    }

    /// That of the process.
    #[must_use]
    pub fn global() -> Self {
        Self(None)
    }

    /// That of the calling thread: the one it has entered, or that of the process.
    #[must_use]
    pub fn current() -> Self {
        let own = CURRENT.try_with(|current| current.borrow().clone());
        Self(own.ok().flatten())
    }

    /// Makes the calling thread one of this validator, holding nothing, until the guard is dropped.
    #[must_use = "the thread leaves the validator when the guard is dropped"]
    pub fn enter(&self) -> Entered {
        let mut outside = TaskState::new();
        outside.exchange();
        let thread = task::with(|task| {
            task.nr_joined.set(0);
            task.thread.replace(0)
        });
        let before = CURRENT.with(|current| current.replace(self.0.clone()));
        task::with(|task| task.enter_epoch(hooks::epoch_now()));
        Entered {
            outside,
            thread,
            before,
            not_send: std::marker::PhantomData,
        }
    }

    /// Whether it is that of the process.
    #[must_use]
    pub const fn is_global(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn inner(&self) -> &Inner {
        match &self.0 {
            Some(inner) => inner,
            None => global(),
        }
    }

    /// What was reported so far, the first first.
    #[must_use]
    pub fn reports(&self) -> Vec<Arc<Report>> {
        self.unwatched(|inner| {
            task::with(|task| inner.report_pending(task, None));
            inner.reports.lock().list.clone()
        })
    }

    /// Forgets all orders, uses, chains and reports. Classes and settings stay.
    pub fn reset(&self) {
        self.unwatched(|inner| {
            let mut core = inner.lock_core();
            inner.forget_chains();
            core.clear();
            drop(core);
            inner.forget_reports();
        });
    }

    /// Forgets chains and reports, and keeps orders and uses: what is seen is looked at anew.
    pub fn forget_chains(&self) {
        self.unwatched(|inner| {
            let core = inner.lock_core();
            inner.forget_chains();
            drop(core);
            inner.forget_reports();
        });
    }

    /// Sets what happens on a report.
    pub fn set_policy(&self, policy: Policy) {
        self.unwatched(|inner| inner.reports.lock().delivery.policy = policy);
    }

    /// Hands reports to this sink, instead of the terminal.
    pub fn set_sink(&self, sink: Arc<dyn Sink>) {
        let before = self.unwatched(|inner| inner.reports.lock().delivery.sink.replace(sink));
        drop(before);
    }

    /// Prints reports as JSON, one a line.
    pub fn set_json(&self, is_json: bool) {
        self.unwatched(|inner| inner.reports.lock().delivery.is_json = is_json);
    }

    /// Drops reports with these signatures: a signature a line, `#` begins a comment.
    pub fn suppress(&self, signatures: &str) {
        let more = parse_suppressions(signatures);
        self.unwatched(|inner| inner.reports.lock().suppressed.extend(more));
    }

    /// Does something while this thread is not watched.
    pub(crate) fn unwatched<R>(&self, act: impl FnOnce(&Inner) -> R) -> R {
        task::with(|task| {
            let _work = task.begin_work();
            act(self.inner())
        })
    }
}

impl Default for Validator {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Validator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Validator")
            .field("is_global", &self.is_global())
            .finish_non_exhaustive()
    }
}

/// The time during which a thread is one of a validator; see [`Validator::enter`].
pub struct Entered {
    outside: TaskState,
    thread: u32,
    before: Option<Arc<Inner>>,
    /// The slot is the thread's.
    not_send: std::marker::PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.before.take();
        // The slot is gone when a thread-local holds the guard.
        let ended = CURRENT.try_with(|current| current.replace(before));
        drop(ended);
        self.outside.exchange();
        task::with(|task| {
            task.thread.set(self.thread);
            task.enter_epoch(hooks::epoch_now().wrapping_sub(1));
        });
    }
}

impl std::fmt::Debug for Entered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entered").finish_non_exhaustive()
    }
}
