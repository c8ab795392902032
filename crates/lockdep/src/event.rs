//! The events of a validator: what every lock, wrapper and foreign interface tells it.
//!
//! A blocking acquisition is told *before* it blocks, one that was tried *after* it succeeded. A
//! blocking one that fails after it was told is released again. An instance is an address, which
//! is only compared.
//!
//! ```
//! use lockdep::event::{self, Acquire};
//! use lockdep::{Attributes, DynamicClass, Mode, Validator};
//!
//! # if !cfg!(feature = "validate") { return; }
//! let validator = Validator::new();
//! let _entered = validator.enter();
//! let [a, b] = ["a", "b"].map(|name| DynamicClass::new(name, Attributes::SLEEP));
//! for [outer, inner] in [[&a, &b], [&b, &a]] {
//!     event::acquire(&Acquire::new(outer.id(), 1, Mode::Exclusive));
//!     event::acquire(&Acquire::new(inner.id(), 2, Mode::Exclusive));
//!     event::release(2);
//!     event::release(1);
//! }
//! assert_eq!(validator.reports().len(), 1);
//! ```

use std::panic::Location;

use crate::check;
use crate::context::Sections;
use crate::core::step_of;
use crate::finding::Findings;
use crate::hooks::{self, Hooks};
use crate::registry::{self, Attributes, Checking};
use crate::report::Kind;
use crate::task::{self, Held, Hit, Site, Task};
use crate::validator::{self, Inner, Validator, with_current};
use crate::wait;
use crate::word::{ClassId, Context, Mode, Word};

/// An acquisition.
#[derive(Clone, Copy, Debug)]
pub struct Acquire {
    /// The class, with its subclass.
    pub class: ClassId,
    /// The address that stands for the lock.
    pub instance: usize,
    /// How it is taken.
    pub mode: Mode,
    /// Whether it could not block: told after it succeeded, records no order to it.
    pub is_try: bool,
    /// Whether only balance is checked.
    pub is_unchecked: bool,
    /// A lock that is held, under which locks of one class may nest.
    pub nest: Option<usize>,
    /// Where.
    pub site: Site,
}

impl Acquire {
    /// A blocking, checked acquisition at the place of the caller.
    #[track_caller]
    pub fn new(class: ClassId, instance: usize, mode: Mode) -> Self {
        Self {
            class,
            instance,
            mode,
            is_try: false,
            is_unchecked: false,
            nest: None,
            site: Site::caller(),
        }
    }

    /// The same, tried.
    #[must_use]
    pub fn tried(mut self) -> Self {
        self.is_try = true;
        self
    }

    /// The same, with only its balance checked.
    #[must_use]
    pub fn unchecked(mut self) -> Self {
        self.is_unchecked = true;
        self
    }

    /// The same, under a nest lock.
    #[must_use]
    pub fn nested_under(mut self, instance: usize) -> Self {
        self.nest = Some(instance);
        self
    }

    fn flags(&self) -> u64 {
        let mut flags = 0;
        for (is_set, flag) in [
            (self.is_try, Word::TRY),
            (self.is_unchecked, Word::UNCHECKED),
            (self.nest.is_some(), Word::NESTED),
        ] {
            flags |= if is_set { flag } else { 0 };
        }
        flags
    }
}

/// A lock is taken.
pub fn acquire(acquire: &Acquire) {
    let hooks = hooks::load();
    if !hooks.has_validator() {
        return;
    }
    task::with(|task| {
        let (flags, context) = (acquire.flags(), task.context());
        let word = Word::new(acquire.class, acquire.mode, flags, context);
        let held = Held::new(acquire.instance, word, acquire.site);
        push(task, hooks, held, acquire.nest);
    });
}

/// The class of a key with a subclass; reports one above seven, and gives `None`.
#[track_caller]
pub fn subclass(class: ClassId, subclass: u32) -> Option<ClassId> {
    let found = class.subclass(subclass);
    if found.is_none() {
        let site = Site::caller();
        work(|inner, task, findings| {
            let word = Word::new(class, Mode::Exclusive, 0, task.context());
            let held = Held::new(0, word, site);
            findings.add(inner.finding(task, Kind::InvalidSubclass, &held));
        });
    }
    found
}

/// A lock is taken, with nothing special about it: the fast path of `lockdep::sync`.
#[inline(always)]
pub(crate) fn acquire_plain(
    what: Word,
    instance: usize,
    place: &'static Location<'static>,
    hooks: Hooks,
) {
    task::with(|task| acquire_on(task, what, instance, place, hooks));
}

/// A call of its own, without another in it: where a thread-local lies may be asked by a call,
/// around which all of this would have to be saved.
#[inline(never)]
fn acquire_on(
    task: &Task,
    what: Word,
    instance: usize,
    place: &'static Location<'static>,
    hooks: Hooks,
) {
    let word = what.with_context(task.context());
    let held = Held::new(instance, word, Site::Place(place));
    match task.push_known(held, hooks) {
        Hit::Pushed => {}
        Hit::Unknown => acquire_slowly(task, what, instance, place),
        Hit::Forgotten(key) => task.remember_top(key),
    }
}

/// The rest of it, with its arguments in registers: one reference to what is pushed, and the fast
/// path would put all of it into memory first.
#[cold]
#[inline(never)]
fn acquire_slowly(task: &Task, what: Word, instance: usize, place: &'static Location<'static>) {
    let word = what.with_context(task.context());
    push_slowly(task, Held::new(instance, word, Site::Place(place)), None);
}

fn push(task: &Task, hooks: Hooks, held: Held, nest: Option<usize>) {
    if nest.is_some() {
        return push_slowly(task, held, nest);
    }
    match task.push_known(held, hooks) {
        Hit::Pushed => {}
        Hit::Unknown => push_slowly(task, held, nest),
        Hit::Forgotten(key) => task.remember_top(key),
    }
}

#[cold]
#[inline(never)]
fn push_slowly(task: &Task, held: Held, nest: Option<usize>) {
    let Some(work) = task.begin_work() else {
        // By way of an allocator or a sink.
        registry::mark_taken_by_reports(held.word.class());
        return;
    };
    let panics_for = with_current(|inner| {
        inner.report_pending(task, Some(held.word.class()));
        let mut findings = Findings::default();
        inner.push(task, held, nest, &mut findings);
        report(inner, findings)
    });
    drop(work);
    if let Some(headline) = panics_for {
        // The lock is not taken: nobody will release it.
        release_quietly(task, held.instance);
        panic!("lockdep: {headline}");
    }
}

/// Reports what was found; for what the thread should panic, if it should.
fn report(inner: &Inner, findings: Findings) -> Option<&'static str> {
    if findings.is_empty() {
        return None;
    }
    let headline = findings.headline();
    inner.report(findings).then_some(headline)
}

/// Does something with the validator of the thread, and reports what it finds.
pub(crate) fn work(act: impl FnOnce(&Inner, &Task, &mut Findings)) {
    if let Some(headline) = work_quietly(act) {
        panic!("lockdep: {headline}");
    }
}

/// The same where nothing may panic; for what it would have, if it would.
fn work_quietly(act: impl FnOnce(&Inner, &Task, &mut Findings)) -> Option<&'static str> {
    if !hooks::load().has_validator() {
        return None;
    }
    task::with(|task| {
        let _work = task.begin_work()?;
        with_current(|inner| {
            inner.report_pending(task, None);
            let mut findings = Findings::default();
            if task.epoch() != hooks::epoch_now() {
                inner.rechain(task, 0, &mut findings);
            }
            act(inner, task, &mut findings);
            report(inner, findings)
        })
    })
}

impl Inner {
    fn push(&self, task: &Task, held: Held, nest: Option<usize>, findings: &mut Findings) {
        let Attributes {
            checking, order, ..
        } = registry::attributes(held.word.class());
        if checking == Checking::NoTrack {
            // Its release will be told too.
            task.nr_lost.set(task.nr_lost.get() + 1);
            return;
        }
        if task.epoch() != hooks::epoch_now() {
            self.rechain(task, 0, findings);
        }
        let is_checked = !held.word.has(Word::UNCHECKED) && checking == Checking::Full;
        if is_checked && (nest.is_some() || order.is_some()) {
            self.check_instance(task, &held, nest, findings);
            if nest.is_some() && merge(task, &held) {
                return;
            }
        }
        self.push_checked(task, held, findings);
        // A lock with an order of instances is compared each time: its steps are not learned.
        let same = |other: Held| other.word.class() == held.word.class();
        if order.is_some() && task.iter().filter(|held| same(*held)).count() > 1 {
            let key = crate::chain::step(task.get(task.depth() - 1).before, held.word);
            task.unlearn(key);
        }
    }

    pub(crate) fn push_checked(&self, task: &Task, mut held: Held, findings: &mut Findings) {
        let chain = loop {
            match self.step(task, task.depth(), &held, findings) {
                Ok(chain) => break chain,
                Err(_) => self.rechain(task, 0, findings),
            }
        };
        held.before = task.chain();
        if held.word.has(Word::SYNC) {
            return;
        }
        if task.push(held, chain) {
            task.remember(held.word, held.site, wait::generation());
        } else {
            task.nr_lost.set(task.nr_lost.get() + 1);
            let finding = self.finding(task, Kind::Limit, &held);
            findings.add(finding.note("held locks"));
        }
    }

    fn check_instance(
        &self,
        task: &Task,
        held: &Held,
        nest: Option<usize>,
        findings: &mut Findings,
    ) {
        let order = registry::attributes(held.word.class()).order;
        let (kind, against) = {
            let mut core = self.lock_core();
            core.stack.clear();
            let room = core.stack.capacity();
            core.stack.extend(task.iter().take(room));
            let same = |other: &&Held| other.word.class() == held.word.class();
            let against = core.stack.iter().find(same).map(step_of);
            (check::instance(&core.stack, held, nest, order), against)
        };
        if let Some(kind) = kind {
            let finding = self.finding(task, kind, held);
            findings.add(finding.against(against));
        }
    }
}

/// Counts one more acquisition under a nest lock in the entry of its class, if that is on top.
fn merge(task: &Task, held: &Held) -> bool {
    let Some(at) = task.depth().checked_sub(1) else {
        return false;
    };
    let mut top = task.get(at);
    let merges = top.word.class() == held.word.class();
    let Some(counts) = top.counts.merged().filter(|_| merges) else {
        return false;
    };
    top.counts = counts;
    task.set(at, top);
    true
}

/// A lock is released, by its holder.
#[track_caller]
pub fn release(instance: usize) {
    release_at(instance, Site::caller());
}

/// A lock is released at this place.
pub fn release_at(instance: usize, site: Site) {
    let hooks = hooks::load();
    if hooks.has_validator() {
        release_plain(hooks, instance, site);
    }
}

#[inline(always)]
pub(crate) fn release_plain(hooks: Hooks, instance: usize, site: Site) {
    task::with(|task| {
        if !task.pop_known(instance, hooks) {
            release_slowly(instance, site);
        }
    });
}

#[cold]
#[inline(never)]
fn release_slowly(instance: usize, site: Site) {
    // A report at a release must not unwind: releases are destructors.
    task::with(|task| {
        let Some(_work) = task.begin_work() else {
            return;
        };
        with_current(|inner| {
            let mut findings = Findings::default();
            inner.release(task, instance, site, &mut findings);
            report(inner, findings);
            // Not here: a release may be told before it is done.
            inner.stay_slow(task);
        });
    });
}

fn release_quietly(task: &Task, instance: usize) {
    if let Some(_work) = task.begin_work() {
        with_current(|inner| {
            if let Some(at) = find_held(task, instance) {
                inner.remove(task, at, &mut Findings::default());
            }
        });
    }
}

/// The last entry of this lock, not beyond the level in which the thread is.
pub(crate) fn find_held(task: &Task, instance: usize) -> Option<u32> {
    let level = task.context().level();
    (0..task.depth()).rev().find(|&at| {
        let held = task.get(at);
        held.instance == instance && held.word.context().level() == level
    })
}

/// The last entry into which others were merged: their instances are not known.
fn find_merged(task: &Task) -> Option<u32> {
    (0..task.depth())
        .rev()
        .find(|&at| task.get(at).counts.is_merged())
}

impl Inner {
    fn release(&self, task: &Task, instance: usize, site: Site, findings: &mut Findings) {
        let Some(at) = find_held(task, instance).or_else(|| find_merged(task)) else {
            self.release_unheld(task, instance, site, findings);
            return;
        };
        let mut held = task.get(at);
        if held.counts.nr_refs() > 1 {
            held.counts = held.counts.released();
            task.set(at, held);
            return;
        }
        if held.counts.pin() != 0 {
            let finding = self.finding(task, Kind::Pin, &held);
            findings.add(finding.note("a pinned lock is released"));
        }
        self.remove(task, at, findings);
    }

    fn release_unheld(&self, task: &Task, instance: usize, site: Site, findings: &mut Findings) {
        if task.nr_lost.get() > 0 {
            task.nr_lost.set(task.nr_lost.get() - 1);
            return;
        }
        if hooks::was_toggled() {
            return;
        }
        let word = Word::new(ClassId::of_key(0), Mode::Exclusive, 0, task.context());
        let finding = self.finding(task, Kind::BadUnlock, &Held::new(instance, word, site));
        findings.add(finding.note("not held by this thread"));
    }

    /// Takes an entry out, and validates what was above it again, as new chains.
    pub(crate) fn remove(&self, task: &Task, at: u32, findings: &mut Findings) {
        let last = task.depth() - 1;
        let before = task.get(at).before;
        for above in at..last {
            task.set(above, task.get(above + 1));
        }
        let mut top = task.get(last);
        top.before = before;
        task.set(last, top);
        task.truncate(last);
        task.set_chain(before);
        if at < last || task.epoch() != hooks::epoch_now() {
            self.rechain(task, at, findings);
        }
    }
}

/// Which modes of holding a lock are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HeldAs {
    /// Any.
    Any,
    /// Alone.
    Exclusive,
    /// As a reader of any kind.
    Reader,
}

/// Whether the calling thread holds a lock; `None` when the validator does not know.
#[must_use]
pub fn is_held(instance: usize, how: HeldAs) -> Option<bool> {
    if !hooks::load().has_validator() {
        return None;
    }
    task::with(|task| {
        let held = task.iter().find(|held| held.instance == instance);
        Some(held.is_some_and(|held| match how {
            HeldAs::Any => true,
            HeldAs::Exclusive => !held.word.mode().is_read(),
            HeldAs::Reader => held.word.mode().is_read(),
        }))
    })
}

/// Whether the calling thread holds any lock of this class.
pub(crate) fn is_inside(class: ClassId) -> bool {
    task::with(|task| task.iter().any(|held| held.word.class() == class))
}

/// How many locks the calling thread holds.
#[must_use]
pub fn nr_held() -> u32 {
    task::with(Task::depth)
}

/// The thread waits for every holder of a lock, and holds nothing itself afterwards.
///
/// For joins, barriers and flushes.
pub fn sync(class: ClassId, instance: usize, mode: Mode, site: Site) {
    work(|inner, task, findings| {
        let word = Word::new(class, mode, Word::SYNC, task.context());
        if registry::attributes(class).checking != Checking::NoTrack {
            inner.push_checked(task, Held::new(instance, word, site), findings);
        }
    });
}

/// A held lock becomes one of another class: what is above it is validated again.
pub fn set_held_class(instance: usize, class: ClassId) {
    change_held(instance, Kind::BadUnlock, |held| {
        held.word = held.word.with_class(class);
        None
    });
}

/// A writer becomes a reader that others can join.
pub fn downgrade(instance: usize) {
    change_held(instance, Kind::Downgrade, |held| {
        let was_reader = held.word.mode().is_read();
        held.word = held.word.with_mode(Mode::Shared);
        was_reader.then_some("it was a reader before")
    });
}

/// Changes an entry; `change` may find that it should not have been. What is above it is validated
/// again.
fn change_held(
    instance: usize,
    kind: Kind,
    change: impl FnOnce(&mut Held) -> Option<&'static str>,
) {
    work(|inner, task, findings| {
        let Some(at) = find_held(task, instance) else {
            inner.release_unheld(task, instance, Site::Unknown, findings);
            return;
        };
        let mut held = task.get(at);
        if let Some(note) = change(&mut held) {
            let finding = inner.finding(task, kind, &held);
            findings.add(finding.note(note));
        }
        task.set(at, held);
        task.set_chain(held.before);
        inner.rechain(task, at, findings);
    });
}

/// What a pin must be undone with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a pinned lock cannot be released without a report"]
pub struct PinCookie(u32);

impl PinCookie {
    /// A cookie that no pin has given.
    pub const FORGED: Self = Self(1 << 20);
}

/// Forbids the release of a held lock, until it is unpinned with the cookie.
pub fn pin(instance: usize) -> PinCookie {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let cookie = NEXT.fetch_add(2, Ordering::Relaxed) & 0xffff | 1;
    change_pin(instance, "an unheld lock is pinned", |pin| {
        pin.checked_add(cookie)
    });
    PinCookie(cookie)
}

/// Pins a lock again with a cookie that it was unpinned with.
pub fn repin(instance: usize, cookie: PinCookie) {
    change_pin(instance, "an unheld lock is pinned", |pin| {
        pin.checked_add(cookie.0)
    });
}

/// Allows the release of a lock again.
pub fn unpin(instance: usize, cookie: PinCookie) {
    change_pin(instance, "an unheld or unpinned lock is unpinned", |pin| {
        pin.checked_sub(cookie.0)
    });
}

fn change_pin(instance: usize, note: &'static str, change: impl FnOnce(u32) -> Option<u32>) {
    work(|inner, task, findings| {
        let at = find_held(task, instance);
        let held = at.map(|at| task.get(at));
        if let (Some(at), Some(mut held)) = (at, held)
            && let Some(pin) = change(held.counts.pin())
        {
            held.counts = held.counts.with_pin(pin);
            task.set(at, held);
            return;
        }
        let nobody = Word::new(ClassId::of_key(0), Mode::Exclusive, 0, task.context());
        let held = held.unwrap_or(Held::new(instance, nobody, Site::Unknown));
        let finding = inner.finding(task, Kind::Pin, &held);
        findings.add(finding.note(note));
    });
}

/// Memory is given back or made anew: no lock in it may be held by this thread.
#[track_caller]
pub fn check_freed(start: usize, len: usize) {
    let site = Site::caller();
    work(|inner, task, findings| {
        let in_range = |held: &Held| (start..start.saturating_add(len)).contains(&held.instance);
        let Some(held) = task.iter().find(in_range) else {
            return;
        };
        let act = Held { site, ..held };
        let finding = inner.finding(task, Kind::HeldFreed, &act);
        findings.add(finding.against(Some(step_of(&held))));
    });
}

/// Nothing may be held here: at the end of a task, or where it gives its thread away.
#[track_caller]
pub fn check_none_held() {
    let site = Site::caller();
    work(|inner, task, findings| find_held_at_exit(inner, task, site, findings));
}

fn find_held_at_exit(inner: &Inner, task: &Task, site: Site, findings: &mut Findings) {
    let Some(held) = task.iter().last() else {
        return;
    };
    let act = Held { site, ..held };
    let finding = inner.finding(task, Kind::HeldAtExit, &act);
    findings.add(finding.against(Some(step_of(&held))));
}

/// Interrupt-like levels were switched on or off while locks are held; see [`crate::context`].
pub(crate) fn levels_changed() {
    work(|inner, task, findings| {
        let mut core = inner.lock_core();
        let thread = Inner::thread(task, &mut core);
        core.stack.clear();
        let context = task.context();
        for held in task.iter() {
            let now = Word::new(held.word.class(), held.word.mode(), 0, context);
            let usage = crate::usage::Usage::of_enabled(now);
            let new = crate::graph::Step {
                word: now,
                site: held.site,
            };
            let mut check = check::Check {
                core: &mut core,
                new,
                thread,
                findings: &mut *findings,
            };
            if check::is_checked(&held) {
                usage.bits().for_each(|bit| check.mark(new, bit));
            }
        }
    });
}

/// Forgets a class, in all its subclasses, in the validator of the thread and in that of the
/// process; its number may come back later. Reports a lock of it that this thread holds.
pub fn zap(class: ClassId) {
    forget(class);
    work(|inner, task, findings| {
        let is_of = |held: &Held| held.word.class().key() == class.key();
        if let Some(held) = task.iter().find(is_of) {
            findings.add(inner.finding(task, Kind::HeldFreed, &held));
        }
    });
}

/// Forgets a class like [`zap`], whoever holds what.
pub fn forget(class: ClassId) {
    task::with(|task| {
        let _work = task.begin_work();
        let forget = |inner: &Inner| {
            let mut core = inner.lock_core();
            core.zap(class);
            inner.forget_chains();
        };
        with_current(forget);
        if validator::is_private() {
            forget(Validator::global().inner());
        }
        crate::contention::forget(class);
        registry::unregister(class);
    });
}

/// Forgets what the calling thread holds and what it knows.
pub fn reset_thread() {
    task::with(|task| {
        task.truncate(0);
        task.nr_lost.set(0);
        task.set_context(Context::default());
        task.sections.set(Sections::NONE);
        task.forget_recent();
        task.enter_epoch(hooks::epoch_now());
    });
}

/// The thread ends.
pub(crate) fn thread_exits() {
    if !hooks::load().has_validator() {
        return;
    }
    // A destructor of a thread must not panic: that would end the process.
    let site = Site::caller();
    work_quietly(|inner, task, findings| find_held_at_exit(inner, task, site, findings));
    validator::end_thread();
}
