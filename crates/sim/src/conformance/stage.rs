//! One run of a scene: a device on a memory, users, and whoever changes the memory under them.

use super::books::NR_BYTES;
use super::memory::{Ask, Bracket, Memory};
use super::{Invariant, Need, Pattern, Subject};
use crate::checker::{Breach, Found, Locks};
use crate::scheduler::contained;
use crate::{Rng, Sim};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use lockdep::scheduler::scheduler_point;
use lockdep::sync::{Mutex, sleep};
use pinless_mm::addr::PageRun;
use pinless_mm::bus::{Checks, DeviceMemory, DmaDevice, DmaError};
use pinless_mm::mmu_notifier::{Event, Inject, Mode};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};

/// Makes a device for a memory.
pub(super) type Make = Arc<dyn Fn(&Arc<dyn DeviceMemory>) -> Subject + Send + Sync>;

/// Tries of one access that ends because its page is not registered.
const REGISTER_MAX: u32 = 8;

/// The point at which the device is set up.
pub(super) const BEGIN: &str = "kit.begin";

/// The point at which all users have ended, and the device is about to be detached.
pub(super) const OVER: &str = "kit.over";

/// The point from which on it is looked at what is left.
pub(super) const JUDGED: &str = "kit.judged";

/// How long the engines have for their first look, in virtual time.
const SET_UP: Duration = Duration::from_micros(1);

/// How long a page may stay pinned that nobody uses, in virtual time.
const FREED_LATE: Duration = Duration::from_secs(1);

/// Decides what a breach is worth.
pub(super) struct Judge {
    /// `None`: held to everything.
    pattern: Option<Pattern>,
    /// Known already: what is looked for is another one.
    ignored: Vec<Invariant>,
    /// Held to, also where it is but a figure for devices of the kind.
    wanted: Vec<Invariant>,
    /// Seen where a panic would be contained. One task runs at a time, so the lock is always free,
    /// and taking it is no step of the run.
    noted: StdMutex<Vec<Breach>>,
    figures: Arc<Figures>,
}

/// What is counted over all runs.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// Non-blockable starts over what nobody uses, and how many of them were refused.
    pub(super) unrelated: AtomicU64,
    pub(super) unrelated_refused: AtomicU64,
    /// Users of a page beside an open bracket, and how many of them had to wait for its end.
    pub(super) beside: AtomicU64,
    pub(super) beside_stalled: AtomicU64,
    /// The longest non-blockable start, in virtual time.
    pub(super) start_ns_max: AtomicU64,
    /// The longest time for which a page was pinned that nobody used any more.
    pub(super) late_ns_max: AtomicU64,
    /// Breaches that are graded, not failed.
    pub(super) graded: [AtomicU64; Invariant::ALL.len()],
}

impl Figures {
    /// Nobody got any further in a scene, which is a breach of this that is graded.
    pub(super) fn stuck(&self, invariant: Invariant) {
        if invariant == Invariant::P8 {
            self.beside_stalled.fetch_add(1, Relaxed);
        }
        self.grade(Some(invariant));
    }

    fn grade(&self, invariant: Option<Invariant>) {
        if let Some(invariant) = invariant {
            self.graded[invariant as usize].fetch_add(1, Relaxed);
        }
    }
}

/// A device and all that is around it.
#[derive(Clone)]
pub(super) struct Stage {
    pub(super) sim: Sim,
    pub(super) memory: Arc<Memory>,
    pub(super) device: Arc<dyn DmaDevice>,
    pub(super) figures: Arc<Figures>,
    judge: Arc<Judge>,
    make: Make,
    locks: Arc<Locks>,
    detach: Arc<Mutex<Option<Subject>>>,
    /// Accesses may fail: the device hangs, or its memory is gone.
    may_fail: Arc<AtomicBool>,
    registered: Registered,
}

/// What has been registered, for a device that uses nothing else: an access registers its page
/// first, and does not find out each time that it has to. One task runs at a time, so the lock is
/// always free, and taking it is no step of the run.
type Registered = Option<Arc<StdMutex<BTreeSet<u32>>>>;

/// What a stage is set up from.
#[derive(Clone)]
pub(super) struct Setting {
    pub(super) make: Make,
    pub(super) pattern: Option<Pattern>,
    pub(super) ignored: Vec<Invariant>,
    pub(super) wanted: Vec<Invariant>,
    pub(super) inject: Inject,
    pub(super) checks: Checks,
    pub(super) figures: Arc<Figures>,
    pub(super) locks: Arc<Locks>,
    /// The device uses only what was registered.
    pub(super) must_register: bool,
}

impl Setting {
    /// The same, with everything but this known already.
    pub(super) fn aimed_at(&self, invariant: Invariant) -> Self {
        let others = Invariant::ALL
            .into_iter()
            .filter(|&other| other != invariant);
        Self {
            ignored: others.collect(),
            ..self.clone()
        }
    }
}

impl Judge {
    fn need(&self, invariant: Option<Invariant>) -> Need {
        match (invariant, self.pattern) {
            (Some(invariant), _) if self.ignored.contains(&invariant) => Need::Nothing,
            (Some(invariant), Some(pattern)) if self.wanted.contains(&invariant) => {
                pattern.need_of_wanted(invariant)
            }
            (Some(invariant), Some(pattern)) => pattern.need(invariant),
            _ => Need::Must,
        }
    }

    /// Ends the run for a breach that the driver must not commit.
    #[track_caller]
    pub(super) fn judge(&self, found: Result<(), Breach>) {
        let Err(breach) = found else { return };
        match self.need(breach.invariant) {
            Need::Must => breach.raise(),
            Need::Graded => self.figures.grade(breach.invariant),
            Need::Nothing => {}
        }
    }

    /// Remembers a breach that was seen in a callback.
    pub(super) fn note(&self, breach: Breach) {
        self.noted().push(breach);
    }

    fn noted(&self) -> MutexGuard<'_, Vec<Breach>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[track_caller]
    pub(super) fn judge_noted(&self) {
        let noted = core::mem::take(&mut *self.noted());
        noted.into_iter().for_each(|breach| self.judge(Err(breach)));
    }
}

impl Stage {
    /// A device with its engines running, on a memory of `nr_pages`.
    pub(super) fn set(sim: &Sim, setting: &Setting, nr_pages: u32) -> Self {
        let judge = Arc::new(Judge {
            pattern: setting.pattern,
            ignored: setting.ignored.clone(),
            wanted: setting.wanted.clone(),
            noted: StdMutex::new(Vec::new()),
            figures: Arc::clone(&setting.figures),
        });
        let memory = Memory::new(nr_pages, &judge, setting.checks);
        memory.notifiers().inject(setting.inject);
        let shared = Arc::clone(&memory) as Arc<dyn DeviceMemory>;
        let subject = (setting.make)(&shared);
        let stage = Self {
            sim: sim.clone(),
            memory,
            device: Arc::clone(subject.device()),
            figures: Arc::clone(&setting.figures),
            judge,
            make: Arc::clone(&setting.make),
            locks: Arc::clone(&setting.locks),
            detach: Arc::new(Mutex::new("sim.kit.detach", Some(subject))),
            may_fail: Arc::new(AtomicBool::new(false)),
            registered: setting.must_register.then(Arc::default),
        };
        stage.serve(&stage.device);
        // The device is set up when its engines wait for work.
        sleep("kit.set-up", SET_UP);
        scheduler_point(BEGIN, 0);
        stage
    }

    fn serve(&self, device: &Arc<dyn DmaDevice>) {
        for _ in 0..device.nr_servers() {
            let (device, locks) = (Arc::clone(device), Arc::clone(&self.locks));
            self.sim.spawn_daemon("engine", move || {
                let _watched = locks.watch();
                contained(|| device.serve());
            });
        }
    }

    /// Another device on the same memory, used twice, perhaps with a pause between, and detached.
    pub(super) fn use_another(&self, pause: Option<Duration>) {
        let shared = Arc::clone(&self.memory) as Arc<dyn DeviceMemory>;
        let subject = (self.make)(&shared);
        self.serve(subject.device());
        let other = Self {
            device: Arc::clone(subject.device()),
            registered: self.registered.as_ref().map(|_| Arc::default()),
            ..self.clone()
        };
        // The device is `other`'s, too: it is not dropped before a panic of its own has ended.
        contained(|| {
            let _is_used = other.write(0, NR_BYTES - 1, 8);
            if let Some(pause) = pause {
                sleep("kit.pause", pause);
            }
            let _is_used = other.write(0, NR_BYTES - 1, 9);
            subject.detach();
        });
    }

    /// Starts a task.
    pub(super) fn spawn(&self, name: &str, act: impl FnOnce(&Self) + Send + 'static) {
        let stage = self.clone();
        self.sim.spawn(name, move || {
            let _watched = stage.locks.watch();
            contained(|| act(&stage));
        });
    }

    /// Chance for one task.
    pub(super) fn rng(&self, stream: u64) -> Rng {
        self.sim.rng(stream)
    }

    pub(super) fn nr_pages(&self) -> u32 {
        self.memory.books.nr_pages()
    }

    /// From now on accesses and starts may fail, or no longer.
    pub(super) fn excuse(&self, is_excused: bool) {
        self.excuse_accesses(is_excused);
        self.memory.excuse(is_excused);
    }

    /// From now on accesses may fail, or no longer; starts may not.
    pub(super) fn excuse_accesses(&self, is_excused: bool) {
        self.may_fail.store(is_excused, Relaxed);
    }

    /// Opens a bracket, and counts how long that takes where it may not block.
    pub(super) fn bracket(&self, ask: Ask) -> Option<Bracket> {
        use pinless_mm::env::Clock;
        let clock = self.sim.clock();
        let began_ns = clock.now_ns();
        let opened = self.memory.bracket(ask);
        if ask.mode == Mode::NonBlock {
            let took_ns = clock.now_ns() - began_ns;
            self.figures.start_ns_max.fetch_max(took_ns, Relaxed);
        }
        self.judge_noted();
        opened
    }

    /// Registers pages with the device, whether it needs that or not.
    pub(super) fn register(&self, run: PageRun) {
        self.note_registered(|registered| registered.extend(run.pages()));
        let _is_registered = self.device.register(run);
    }

    /// Gives up what was registered.
    pub(super) fn unregister(&self, run: PageRun) {
        self.note_registered(|registered| registered.retain(|page| !run.contains(*page)));
        self.device.unregister(run);
    }

    /// Registers a page that is about to be used for the first time, if the device needs that.
    fn register_to_use(&self, page: u32) {
        let is_new = |registered: &mut BTreeSet<u32>| !registered.contains(&page);
        if self.note_registered(is_new) == Some(true) {
            self.register(self.registered_with(page));
        }
    }

    fn note_registered<R>(&self, act: impl FnOnce(&mut BTreeSet<u32>) -> R) -> Option<R> {
        let registered = self.registered.as_ref()?;
        Some(act(&mut registered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)))
    }

    /// Writes a byte as the device; whether it was written.
    pub(super) fn write(&self, page: u32, byte: usize, value: u8) -> bool {
        let is_written = self.try_write(page, byte, value);
        self.judge_noted();
        is_written
    }

    fn try_write(&self, page: u32, byte: usize, value: u8) -> bool {
        self.register_to_use(page);
        for _ in 0..REGISTER_MAX {
            let from = self.memory.books.now();
            let met = self.device.write(page, byte, &[value]);
            self.memory.books.answered(page);
            match met {
                Ok(()) => {
                    let written = Found { page, byte, value };
                    self.memory.books.wrote(written, from);
                    return true;
                }
                Err(error) => {
                    if !self.recover(&error) {
                        return false;
                    }
                }
            }
        }
        false
    }

    /// Reads a byte as the device, and judges it; whether it was read.
    pub(super) fn read(&self, page: u32, byte: usize) -> bool {
        let is_read = self.try_read(page, byte);
        self.judge_noted();
        is_read
    }

    fn try_read(&self, page: u32, byte: usize) -> bool {
        self.register_to_use(page);
        for _ in 0..REGISTER_MAX {
            let from = self.memory.books.now();
            let mut value = [0];
            let met = self.device.read(page, byte, &mut value);
            self.memory.books.answered(page);
            match met {
                Ok(()) => {
                    let [value] = value;
                    let found = Found { page, byte, value };
                    self.judge.judge(self.memory.books.read(found, from));
                    return true;
                }
                Err(error) => {
                    if !self.recover(&error) {
                        return false;
                    }
                }
            }
        }
        false
    }

    /// What is registered so that a page can be used: the page, or the whole mapping.
    fn registered_with(&self, page: u32) -> PageRun {
        match self.sim.knob("choice") % 2 {
            0 => PageRun::single(page),
            _ => PageRun::new(0, self.nr_pages()),
        }
    }

    /// Registers the page, if that is what is missing; whether to try again.
    fn recover(&self, error: &DmaError) -> bool {
        let may_fail = || self.may_fail.load(Relaxed);
        let met = match *error {
            // Whoever takes the device away may have done so: nobody registers then.
            DmaError::Unregistered { .. } if may_fail() => return false,
            DmaError::Unregistered { page } => self.device.register(self.registered_with(page)),
            error => Err(error),
        };
        match met {
            Ok(()) => true,
            Err(DmaError::Stale(_) | DmaError::LimitReached { .. }) => false,
            Err(_) if may_fail() => false,
            Err(error) => {
                let what = format!("an access failed though nothing hangs: {error}");
                self.judge.judge(Err(Breach::of(Invariant::P5, what)));
                false
            }
        }
    }

    #[track_caller]
    pub(super) fn judge(&self, found: Result<(), Breach>) {
        self.judge.judge(found);
    }

    /// Waits until what left its page is no longer pinned, if nothing hangs.
    pub(super) fn wait_until_freed(&self) {
        use pinless_mm::env::Clock;
        let (clock, books) = (self.sim.clock(), &self.memory.books);
        let began_ns = clock.now_ns();
        let mut left = 50;
        while books.nr_doomed() > 0 && left > 0 {
            sleep("kit.freed", FREED_LATE / 50);
            left -= 1;
        }
        let took_ns = clock.now_ns() - began_ns;
        self.figures.late_ns_max.fetch_max(took_ns, Relaxed);
        let nr = books.nr_doomed();
        if nr > 0 {
            let what = format!("{nr} pages that nobody uses were not freed within a second");
            self.judge.judge(Err(Breach::of(Invariant::P7, what)));
        }
    }

    /// Takes the device away; whoever does it first.
    pub(super) fn detach(&self) {
        let subject = self.detach.lock().take();
        if let Some(subject) = subject {
            subject.detach();
        }
    }

    /// All tasks have ended, and no bracket is open: from here on nothing is under way, and what
    /// the device uses is what it has installed.
    pub(super) fn settle(&self) {
        self.sim.join_all();
        self.memory.books.settled();
    }

    /// A device that keeps pages pinned may know pages only by a pin: one that it has in two
    /// containers is let go of in one of them, and known in the other.
    pub(super) fn judge_containers(&self) {
        if self.judge.pattern != Some(Pattern::PinCache) {
            return;
        }
        // What is known can only become less here, so there were as many pins at some moment.
        let held = self.device.holds();
        let nr_pinned = self.memory.books.nr_pinned();
        let held = held.min(self.device.holds()) as usize;
        if held > nr_pinned {
            let what = format!("{held} pages are known to the device, {nr_pinned} are pinned");
            self.judge.judge(Err(Breach::of(Invariant::R8, what)));
        }
    }

    /// Nothing of the mapping is left, so a device that was lent its pages has none of them.
    pub(super) fn judge_returned(&self) {
        let held = self.device.holds();
        if held > 0 && self.judge.pattern == Some(Pattern::Grant) {
            let what = format!("{held} pages are held that were all taken back");
            self.judge.judge(Err(Breach::of(Invariant::R8, what)));
        }
    }

    /// A device that is detached hears of no change any more. The notifiers are asked, for a driver
    /// may count nothing; nobody else is subscribed.
    pub(super) fn judge_deaf(&self) {
        let heard = || self.memory.notifiers().stats().starts_total();
        let before = heard();
        let all = PageRun::new(0, self.nr_pages());
        drop(self.bracket(Ask::new(all, Event::Clear, Mode::Blockable)));
        if heard() > before {
            let what = "a device that was detached is still told of changes";
            self.judge.judge(Err(Breach::of(Invariant::P10, what)));
        }
    }

    /// Waits for all tasks, and judges what is left.
    pub(super) fn finish(&self) {
        self.sim.join_all();
        scheduler_point(OVER, 0);
        self.detach();
        scheduler_point(JUDGED, 0);
        let held = self.device.holds();
        if held > 0 {
            let what = format!("{held} translations are held by a device that was stopped");
            self.judge.judge(Err(Breach::of(Invariant::P10, what)));
        }
        self.judge.judge(self.memory.books.finish());
        self.judge_noted();
    }

    /// Judges what was seen where nobody could be judged: in callbacks, and by the validator of
    /// locks. One that is known already hides no other one.
    #[track_caller]
    pub(super) fn judge_noted(&self) {
        self.judge.judge_noted();
        let breaches = self.locks.breaches();
        breaches
            .into_iter()
            .for_each(|breach| self.judge.judge(Err(breach)));
    }
}
