//! Lock programs as text, run against a validator of their own: for tests with many rows.
//!
//! A program is a list of steps with blanks between them.
//!
//! ```text
//! A  A1  A/1       take lock A, lock 1 of class A, A with subclass 1, alone: `A` is `A0/0`
//! r(A)  R(A)       as a reader; as a recursive reader
//! ?A  ?r(A)        try, with success
//! ~A  ~R(A)        only balance is checked
//! A1@N             nested under lock N
//! A'               release            ;           release all, the last taken first
//! sync(A)          wait for every holder
//! hard[ soft[ ]    run as a level, to the bracket; `threaded[`: as a hard one with a thread
//! irq- irq+        hard level off, on     bh- bh+    soft level off, on
//! nonblock[ ]      a section that must not wait
//! down(A)  set(A,B)  free(A)  zap(A)  pin(A)  unpin(A)
//! begin(E) wait(E) timed(E) signal(E)     an event: wait and go on at once
//! ctx(1,O)         begin wound/wait context 1 for locks of class O; `done(1)`  `end(1)`
//! O1%1  !O1%1      under the context: granted; refused      slow(O1%1)  after a refusal
//! O1'%1            release what was granted
//! |                another thread goes on, when this one has ended
//! ||               another thread goes on, while this one still lives
//! none             nothing may be held
//! ```

pub mod model;
mod tight;

pub use tight::Inject;

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::thread;

use crate::context::{self, ContextGuard};
use crate::event::{self, Acquire, PinCookie};
use crate::sync::raw::RawLock;
use crate::task::Site;
use crate::wait::{EventKind, EventState, Limit};
use crate::ww::{AcquireContext, Family, LockState};
use crate::{Attributes, ClassId, DynamicClass, Kind, Level, Mode, Report, Severity, Validator};

/// Classes, locks and a validator for one program, or several after each other.
pub struct World {
    validator: Validator,
    attributes: fn(&str) -> Attributes,
    /// Shared by the threads of a program. Not `lockdep::sync`, which is what is tested.
    shared: RawLock<Shared>,
}

#[derive(Default)]
struct Shared {
    classes: BTreeMap<String, DynamicClass>,
    /// Shared, so that their addresses stay: instances are addresses.
    instances: BTreeMap<String, Arc<LockState>>,
    events: BTreeMap<String, Arc<EventState>>,
}

impl World {
    /// A world in which every class spins.
    #[must_use]
    pub fn new() -> Self {
        Self::with(|_| Attributes::SPIN)
    }

    /// A world whose classes have these attributes, by name.
    #[must_use]
    pub fn with(attributes: fn(&str) -> Attributes) -> Self {
        Self {
            validator: Validator::new(),
            attributes,
            shared: RawLock::new(Shared::default()),
        }
    }

    /// The validator of this world.
    #[must_use]
    pub fn validator(&self) -> &Validator {
        &self.validator
    }

    /// Runs a program, and gives all reports of the world so far.
    ///
    /// # Panics
    ///
    /// When the text is not a program.
    pub fn run(&self, program: &str) -> Vec<Arc<Report>> {
        thread::scope(|scope| {
            let mut lives = Vec::new();
            for part in program.split(" || ") {
                for (at, steps) in part.split(" | ").enumerate() {
                    let last = at == part.split(" | ").count() - 1;
                    let (done, is_done) = mpsc::channel::<()>();
                    let (end, may_end) = mpsc::channel::<()>();
                    let handle = scope.spawn(move || {
                        let _entered = self.validator.enter();
                        Thread::new(self).run(steps);
                        drop(done);
                        // An error means that the sender is gone: the thread may end.
                        let _ = may_end.recv();
                        event::reset_thread();
                        crate::validator::end_thread();
                    });
                    // An error means that the thread is done.
                    let _ = is_done.recv();
                    if last {
                        lives.push((end, handle));
                    } else {
                        drop(end);
                        join(handle);
                    }
                }
            }
            for (end, handle) in lives.drain(..) {
                drop(end);
                join(handle);
            }
        });
        self.validator.reports()
    }

    /// The kinds of the reports that are worse than unlikely, so far.
    #[must_use]
    pub fn kinds(&self) -> Vec<Kind> {
        let reports = self.validator.reports();
        let counted = reports.iter().filter(|r| r.severity > Severity::Unlikely);
        counted.map(|report| report.kind).collect()
    }

    fn class(&self, name: &str) -> ClassId {
        let mut shared = self.shared.lock();
        let make = || DynamicClass::new(name, (self.attributes)(name));
        let classes = &mut shared.classes;
        classes.entry(name.to_owned()).or_insert_with(make).id()
    }

    fn lock_state(&self, name: &str) -> Arc<LockState> {
        let mut shared = self.shared.lock();
        Arc::clone(shared.instances.entry(name.to_owned()).or_default())
    }

    fn instance(&self, name: &str) -> usize {
        self.lock_state(name).instance()
    }

    fn event(&self, name: &str) -> Arc<EventState> {
        let mut shared = self.shared.lock();
        let make = || Arc::new(EventState::new(EventKind::Once));
        Arc::clone(shared.events.entry(name.to_owned()).or_insert_with(make))
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

fn join(handle: thread::ScopedJoinHandle<'_, ()>) {
    if let Err(payload) = handle.join() {
        std::panic::resume_unwind(payload);
    }
}

/// A lock of a step: `A1/2`.
struct Lock<'a> {
    /// Class and number, which make the instance.
    name: &'a str,
    class: &'a str,
    subclass: u32,
}

impl<'a> Lock<'a> {
    fn parse(text: &'a str) -> Self {
        let (name, subclass) = text.split_once('/').unwrap_or((text, "0"));
        let class = name.trim_end_matches(|c: char| c.is_ascii_digit());
        assert!(!class.is_empty(), "a lock has a name: {text:?}");
        let subclass = subclass.parse().expect("a subclass is a number");
        Self {
            name,
            class,
            subclass,
        }
    }
}

struct Thread<'a> {
    world: &'a World,
    /// What it holds, with the guards of contexts among it.
    held: Vec<String>,
    brackets: Vec<ContextGuard>,
    off: BTreeMap<&'static str, ContextGuard>,
    pins: BTreeMap<String, PinCookie>,
    contexts: BTreeMap<String, AcquireContext>,
}

impl<'a> Thread<'a> {
    fn new(world: &'a World) -> Self {
        Self {
            world,
            held: Vec::new(),
            brackets: Vec::new(),
            off: BTreeMap::new(),
            pins: BTreeMap::new(),
            contexts: BTreeMap::new(),
        }
    }

    fn run(mut self, steps: &str) {
        steps.split_whitespace().for_each(|step| self.step(step));
        while let Some(guard) = self.brackets.pop() {
            drop(guard);
        }
    }

    fn step(&mut self, step: &str) {
        match step {
            ";" => self.release_all(),
            "]" => drop(self.brackets.pop().expect("a bracket is open")),
            "hard[" => self.brackets.push(context::enter(Level::Hard)),
            "threaded[" => self.brackets.push(context::enter_threaded()),
            "soft[" => self.brackets.push(context::enter(Level::Soft)),
            "nonblock[" => self.brackets.push(context::non_block()),
            "irq-" => drop(self.off.insert("irq", context::disable(Level::Hard))),
            "bh-" => drop(self.off.insert("bh", context::disable(Level::Soft))),
            "irq+" => drop(self.off.remove("irq")),
            "bh+" => drop(self.off.remove("bh")),
            "none" => event::check_none_held(),
            _ if !step.contains('(') && step.contains('%') => self.wound_wait(step),
            _ => match step.strip_suffix('\'') {
                Some(lock) => self.release(lock),
                None => self.call_or_acquire(step),
            },
        }
    }

    fn release_all(&mut self) {
        while let Some(lock) = self.held.pop() {
            event::release(self.world.instance(&lock));
        }
    }

    fn release(&mut self, lock: &str) {
        if let Some(at) = self.held.iter().rposition(|held| held == lock) {
            self.held.remove(at);
        }
        event::release(self.world.instance(lock));
    }

    fn call_or_acquire(&mut self, step: &str) {
        let Some((name, rest)) = step.split_once('(') else {
            return self.acquire(step, Mode::Exclusive);
        };
        let (arguments, behind) = rest.split_once(')').expect("a call ends in a bracket");
        let (flag, name) = match name.chars().next() {
            Some('?' | '~') => name.split_at(1),
            _ => ("", name),
        };
        let mode = match name {
            "W" => Some(Mode::Exclusive),
            "r" => Some(Mode::Shared),
            "R" => Some(Mode::SharedRecursive),
            _ => None,
        };
        match mode {
            Some(mode) => self.acquire(&format!("{flag}{arguments}{behind}"), mode),
            None => self.call(name, arguments),
        }
    }

    fn acquire(&mut self, step: &str, mode: Mode) {
        let (lock, nest) = match step.split_once('@') {
            Some((lock, nest)) => (lock, Some(self.world.instance(nest))),
            None => (step, None),
        };
        let lock_text = lock.trim_start_matches(['?', '~']);
        let parsed = Lock::parse(lock_text);
        let instance = self.world.instance(parsed.name);
        let class = self.world.class(parsed.class);
        let Some(class) = event::subclass(class, parsed.subclass) else {
            return;
        };
        let mut acquire = Acquire::new(class, instance, mode);
        acquire.is_try = lock.starts_with('?');
        acquire.is_unchecked = lock.starts_with('~');
        acquire.nest = nest;
        event::acquire(&acquire);
        self.held.push(parsed.name.to_owned());
    }

    /// `O1%1`, `!O1%1`, `O1'%1`.
    fn wound_wait(&mut self, step: &str) {
        let (lock, context) = self.lock_and_context(step.trim_start_matches('!'));
        let state = self.world.lock_state(lock.trim_end_matches('\''));
        if lock.ends_with('\'') {
            context.release(&state);
            return;
        }
        context.acquire(self.world.class(Lock::parse(lock).class), &state);
        if step.starts_with('!') {
            context.refused(&state);
        } else {
            context.granted(&state);
        }
    }

    fn lock_and_context<'t>(&self, text: &'t str) -> (&'t str, &AcquireContext) {
        let (lock, context) = text.split_once('%').expect("a lock and its context");
        (lock, self.context(context))
    }

    fn context(&self, name: &str) -> &AcquireContext {
        self.contexts.get(name).expect("the context has begun")
    }

    fn begin_context(&mut self, name: &str, locks: &str) {
        let family = Family {
            tickets: self.world.class(&format!("{locks} tickets")),
            locks: self.world.class(locks),
        };
        self.contexts
            .insert(name.to_owned(), AcquireContext::begin(family));
    }

    fn acquire_slowly(&self, argument: &str) {
        let (lock, context) = self.lock_and_context(argument);
        let state = self.world.lock_state(lock);
        context.acquire_slowly(self.world.class(Lock::parse(lock).class), &state);
        context.granted(&state);
    }

    fn call(&mut self, name: &str, argument: &str) {
        match name {
            "ctx" => {
                let (context, locks) = argument.split_once(',').expect("a context and a class");
                self.begin_context(context, locks);
            }
            "done" => self.context(argument).done(),
            "end" => self.context(argument).end(),
            "slow" => self.acquire_slowly(argument),
            _ => self.call_of_lock(name, argument),
        }
    }

    fn call_of_lock(&mut self, name: &str, argument: &str) {
        let (first, second) = argument.split_once(',').unwrap_or((argument, ""));
        let lock = Lock::parse(first);
        let instance = self.world.instance(lock.name);
        let class = self.world.class(lock.class);
        let event = || self.world.event(first);
        match name {
            "sync" => event::sync(class, instance, Mode::Exclusive, Site::caller()),
            "down" => event::downgrade(instance),
            "set" => event::set_held_class(instance, self.world.class(second)),
            "free" => event::check_freed(instance, size_of::<LockState>()),
            "zap" => {
                let mut shared = self.world.shared.lock();
                let zapped = shared.classes.remove(lock.class);
                drop(shared);
                drop(zapped);
            }
            "pin" => drop(self.pins.insert(first.to_owned(), event::pin(instance))),
            "unpin" => {
                let cookie = self.pins.remove(first).unwrap_or(PinCookie::FORGED);
                event::unpin(instance, cookie);
            }
            "begin" => event().begin(),
            "wait" => drop(event().wait(class, Limit::Forever, Site::caller())),
            "timed" => drop(event().wait(class, Limit::Timed, Site::caller())),
            "signal" => event().signal(class, Site::caller()),
            _ => panic!("no such step: {name}({argument})"),
        }
    }
}

/// Runs `body` with a validator of its own, and fails on what was reported. For tests.
///
/// For a part of a test; a whole one may be marked `#[lockdep::test]`. Threads take part by
/// [`crate::thread::spawn`].
///
/// ```
/// use lockdep::sync::Mutex;
/// use lockdep::testing::check;
///
/// let [a, b] = [Mutex::new("a", ()), Mutex::new("b", ())];
/// check(|| drop((a.lock(), b.lock())));
/// let both_ways = || {
///     drop((a.lock(), b.lock()));
///     drop((b.lock(), a.lock()));
/// };
/// assert!(std::panic::catch_unwind(|| check(both_ways)).is_err());
/// ```
///
/// # Panics
///
/// With the texts of the reports.
#[track_caller]
pub fn check<R>(body: impl FnOnce() -> R) -> R {
    let _entered = Validator::new().enter();
    let result = body();
    crate::assert_no_reports();
    result
}
