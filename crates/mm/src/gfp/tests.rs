//! What the annotations catch, as rows: programs of locks, allocations, scopes and callbacks.
//!
//! ```text
//! A  ?A  A'           takes lock A, tries it, releases it      ;   releases all
//! kernel nofs noio nowait                                      an allocation of this kind
//! NoFs[ NoIo[ NoReclaim[ Reclaimer[ ]                          a scope
//! start[ try[ ]       a callback that may block, or may not; an end is like the latter
//! reclaim[ memalloc[ ]   inside reclaim, as the map says; and as it is in fact, a reclaimer
//! touch notify        managed memory is used; a bracket is opened that may block
//! spin sleep wait(C)  a short lock, a sleep, a wait for a condition variable
//! ```
//!
//! One thread runs all of it: no deadlock has to happen, and no callback has to be called.

use super::*;
use core::any::Any;
use core::time::Duration;
use lockdep::sync::{Condvar, Fence, Mutex, MutexGuard, ShortLock};
use lockdep::wait::{begin_signalling, might_wait_for_fence};
use lockdep::{Kind, Level, Severity, Validator};
use std::collections::BTreeMap;

/// Locks by name; leaked, so that guards can lie in one list.
type Locks = BTreeMap<&'static str, &'static Mutex<()>>;

/// Whatever ends when it is dropped.
type Section = Box<dyn Any>;

struct Program {
    alloc: fn(Gfp),
    locks: Locks,
    held: Vec<(&'static str, MutexGuard<'static, ()>)>,
    sections: Vec<Section>,
}

fn section(guard: impl Any) -> Section {
    Box::new(guard)
}

/// A start that may block.
#[track_caller]
fn start() -> Notifying {
    Notifying::enter(|| None)
}

impl Program {
    /// Runs it with allocations that are annotated like this; the kinds of the reports.
    fn run(text: &'static str, alloc: fn(Gfp)) -> Vec<Kind> {
        let validator = Validator::new();
        let entered = validator.enter();
        let mut program = Self {
            alloc,
            locks: Locks::new(),
            held: Vec::new(),
            sections: Vec::new(),
        };
        text.split_whitespace().for_each(|step| program.step(step));
        program.release_all();
        while program.sections.pop().is_some() {}
        drop(entered);
        let reports = validator.reports();
        let is_bad = |severity| severity > Severity::Unlikely;
        let bad = reports.iter().filter(|report| is_bad(report.severity));
        bad.map(|report| report.kind).collect()
    }

    fn lock(&mut self, name: &'static str) -> &'static Mutex<()> {
        self.locks
            .entry(name)
            .or_insert_with(|| Box::leak(Box::new(Mutex::new(name, ()))))
    }

    fn release_all(&mut self) {
        while self.held.pop().is_some() {}
    }

    fn step(&mut self, step: &'static str) {
        match step {
            ";" => self.release_all(),
            "]" => drop(self.sections.pop().expect("a section is open")),
            "kernel" => (self.alloc)(Gfp::Kernel),
            "nofs" => (self.alloc)(Gfp::NoFs),
            "noio" => (self.alloc)(Gfp::NoIo),
            "nowait" => (self.alloc)(Gfp::NoWait),
            "touch" => might_touch(),
            "notify" => might_notify(),
            "sleep" => might_sleep(),
            "spin" => drop(ShortLock::new("t.spin", ()).lock()),
            "wait(C)" => {
                let mutex = Mutex::new("t.C", ());
                let condvar = Condvar::new("t.C.changed");
                drop(condvar.wait_timeout(mutex.lock(), Duration::ZERO));
            }
            _ => match step.strip_suffix('[') {
                Some(name) => self.enter(name),
                None => self.take(step),
            },
        }
    }

    fn enter(&mut self, name: &str) {
        self.sections.push(match name {
            "NoFs" => section(NoFs::enter()),
            "NoIo" => section(NoIo::enter()),
            "NoReclaim" => section(NoReclaim::enter()),
            "Reclaimer" => section(Reclaimer::enter()),
            "start" => section(start()),
            "try" => section(Notifying::enter(|| Some(context::non_block()))),
            "reclaim" => section(FS_RECLAIM.read_recursive()),
            "memalloc" => section(Reclaiming::enter()),
            _ => panic!("no such section: {name}"),
        });
    }

    fn take(&mut self, step: &'static str) {
        if let Some(name) = step.strip_suffix('\'') {
            return self.held.retain(|(held, _)| *held != name);
        }
        let name = step.trim_start_matches('?');
        let lock = self.lock(name);
        let guard = match step.starts_with('?') {
            true => lock.try_lock().expect("nobody else has it"),
            false => lock.lock(),
        };
        self.held.push((name, guard));
    }
}

type Row = (&'static str, &'static [Kind]);

const CIRCLE: &[Kind] = &[Kind::Circular];
const TWICE: &[Kind] = &[Kind::Recursive];
const WAITS: &[Kind] = &[Kind::WaitContext];
const FINE: &[Kind] = &[];

/// The rows that differ when allocations are annotated like this.
fn differing(rows: &[Row], alloc: fn(Gfp)) -> Vec<String> {
    let wrong = rows.iter().filter_map(|(program, expected)| {
        let found = Program::run(program, alloc);
        (found != *expected).then(|| format!("{program}: {found:?}, not {expected:?}"))
    });
    wrong.collect()
}

/// The kernel's own tests of the annotation, and those that belong beside them.
const ANNOTATION: &[Row] = &[
    ("reclaim[ nofs ]", FINE),
    ("reclaim[ kernel ]", TWICE),
    ("reclaim[ NoFs[ kernel ] ]", FINE),
    ("start[ nowait ]", FINE),
    ("start[ nofs ]", TWICE),
    ("start[ noio ]", TWICE),
    ("start[ kernel ]", TWICE),
    ("L kernel ; start[ L ; ]", CIRCLE),
    ("L noio ; start[ L ; ]", CIRCLE),
    ("L kernel ; start[ ?L ; ]", FINE),
    ("start[ L ; ] L kernel ;", CIRCLE),
    ("start[ L ; ] L nowait ;", FINE),
    ("Reclaimer[ start[ kernel ] ]", FINE),
    ("start[ NoIo[ kernel ] ]", TWICE),
    ("start[ NoFs[ kernel ] ]", TWICE),
    ("start[ NoReclaim[ kernel ] ]", FINE),
    ("try[ M ; ]", WAITS),
    ("try[ wait(C) ]", WAITS),
    ("try[ sleep ]", WAITS),
    ("try[ ?M ; ]", FINE),
    ("try[ spin ]", FINE),
    ("try[ nowait ]", FINE),
];

/// Misuses *a* to *o* as far as they can be written: the types leave no way to a refusal in a
/// bracket that may block (*j*), to an end without its start (*k*), nor out of a section that was
/// not entered (*o*).
const MISUSES: &[Row] = &[
    // a, b: a lock over an allocation, and in a callback.
    ("L kernel ; start[ L ; ]", CIRCLE),
    ("L nofs ; start[ L ; ]", CIRCLE),
    ("NoIo[ L kernel ; ] start[ L ; ]", CIRCLE),
    ("NoReclaim[ L kernel ; ] start[ L ; ]", FINE),
    // With others between, in either order of discovery.
    ("L M ; M kernel ; start[ L ; ]", CIRCLE),
    ("start[ L ; ] L M ; M kernel ;", CIRCLE),
    ("start[ L M ; ] M kernel ;", CIRCLE),
    // What is tried records nothing, what is taken under it does.
    ("start[ ?L M ; ] M kernel ;", CIRCLE),
    // c: the same over a fault.
    ("L touch ; start[ L ; ]", CIRCLE),
    ("start[ touch ]", TWICE),
    // d: an allocation in a callback. In reclaim itself nobody reclaims once more.
    ("start[ kernel ]", TWICE),
    ("memalloc[ start[ kernel ] ]", FINE),
    ("memalloc[ start[ L ; ] ] L nofs ;", CIRCLE),
    // e.
    ("start[ nowait ]", FINE),
    // f: a lock over an allocation that is taken in reclaim.
    ("F kernel ; memalloc[ F ; ]", CIRCLE),
    ("F nofs ; memalloc[ F ; ]", FINE),
    ("NoFs[ F kernel ; ] memalloc[ F ; ]", FINE),
    // g.
    ("reclaim[ kernel ]", TWICE),
    // h, i: what sleeps in a callback that may not, whoever is called, and in every end.
    ("try[ L ; ]", WAITS),
    ("try[ wait(C) ]", WAITS),
    ("try[ sleep ]", WAITS),
    // l, m: waiting for brackets under a lock of a callback, and in one.
    ("L notify ; start[ L ; ]", CIRCLE),
    ("start[ notify ]", TWICE),
    // n: adding a mapping or a device allocates.
    ("L kernel ; start[ M L ; ]", CIRCLE),
];

#[test]
fn the_annotation_tells_what_it_must() {
    assert_eq!(differing(ANNOTATION, might_alloc), [""; 0]);
}

#[test]
fn each_misuse_is_caught_before_it_happens() {
    assert_eq!(differing(MISUSES, might_alloc), [""; 0]);
}

/// It says that notifiers might be called, and none is by it: whoever is told of a callback later
/// is not inside of one.
#[test]
fn n100_the_annotation_leaves_no_callback_open() {
    let validator = Validator::new();
    let _entered = validator.enter();
    for gfp in [Gfp::Kernel, Gfp::NoFs, Gfp::NoIo, Gfp::NoWait] {
        might_alloc(gfp);
        assert_eq!(NOTIFIER_START.is_entered(), Some(false), "{gfp:?}");
    }
    let _inside = start();
    assert_eq!(NOTIFIER_START.is_entered(), Some(true));
}

/// What once went wrong: the scopes were found out, and then the caller's own flags were used.
#[test]
fn an_annotation_that_forgets_the_scopes_is_caught() {
    fn raw(gfp: Gfp) {
        annotate(gfp);
    }
    fn inverted(gfp: Gfp) {
        let scoped = gfp.scoped();
        annotate(if scoped == gfp { Gfp::NoFs } else { gfp });
    }
    fn silent(_: Gfp) {}
    for (mutant, row) in [
        (raw as fn(Gfp), "reclaim[ NoFs[ kernel ] ]"),
        (inverted, "reclaim[ kernel ]"),
        (silent, "start[ noio ]"),
    ] {
        let wrong = differing(ANNOTATION, mutant);
        assert!(
            wrong.iter().any(|wrong| wrong.starts_with(row)),
            "{row}: {wrong:?}"
        );
    }
}

#[test]
fn scopes_take_away_and_nest() {
    use Gfp::{Kernel, NoFs as GfpNoFs, NoIo as GfpNoIo, NoWait};
    assert_eq!(Kernel.scoped(), Kernel);
    let no_fs = NoFs::enter();
    assert_eq!(Kernel.scoped(), GfpNoFs);
    let no_io = NoIo::enter();
    let again = NoIo::enter();
    assert_eq!(Kernel.scoped(), GfpNoIo);
    drop(no_fs);
    drop(again);
    assert_eq!(
        [Kernel, GfpNoFs, NoWait].map(Gfp::scoped),
        [GfpNoIo, GfpNoIo, NoWait]
    );
    drop(no_io);
    let _reclaimer = Reclaimer::enter();
    assert_eq!([Kernel, GfpNoIo].map(Gfp::scoped), [NoWait, NoWait]);
}

#[test]
fn a_report_names_the_scope_of_each_acquisition() {
    let validator = Validator::new();
    let entered = validator.enter();
    let lock = Mutex::new("t.scoped", ());
    let scope = NoIo::enter();
    let held = lock.lock();
    might_alloc(Gfp::Kernel);
    drop(held);
    drop(scope);
    let callback = start();
    drop(lock.lock());
    drop(callback);
    drop(entered);
    let text = validator.reports()[0].text();
    assert!(text.contains("`mmu_notifier.start` (W, NoIo)"), "{text}");
    assert!(text.contains(file!()), "{text}");
}

/// A callback waits for what another thread signals, which does `signaller` first.
#[track_caller]
fn check_wait(wait: fn(&Fence), signaller: fn(&Fence), expected: &[Kind]) {
    let validator = Validator::new();
    let fence = Fence::new("t.fence");
    std::thread::scope(|scope| {
        let (validator, fence) = (&validator, &fence);
        let signal = move || {
            let _entered = validator.enter();
            signaller(fence);
        };
        scope.spawn(signal).join().expect("it does not panic");
        scope.spawn(move || {
            let _entered = validator.enter();
            let _inside = start();
            wait(fence);
        });
    });
    let kinds: Vec<Kind> = validator.reports().iter().map(|r| r.kind).collect();
    assert_eq!(kinds, expected);
}

#[test]
fn who_is_waited_for_in_a_callback_must_not_reclaim() {
    fn after(gfp: Gfp, fence: &Fence) {
        might_alloc(gfp);
        fence.signal();
    }
    check_wait(Fence::wait, |fence| after(Gfp::Kernel, fence), CIRCLE);
    check_wait(Fence::wait, |fence| after(Gfp::NoIo, fence), CIRCLE);
    check_wait(Fence::wait, |fence| after(Gfp::NoWait, fence), FINE);
    // Also when it only uses managed memory.
    let touches = |fence: &Fence| {
        might_touch();
        fence.signal();
    };
    check_wait(Fence::wait, touches, CIRCLE);
    // The thread that was interrupted has nothing to do with the signal.
    let interrupted = |fence: &Fence| {
        might_alloc(Gfp::Kernel);
        let _level = context::enter(Level::Soft);
        fence.signal();
    };
    check_wait(Fence::wait, interrupted, FINE);
}

#[test]
fn a_section_that_owes_a_signal_must_not_reclaim() {
    fn owing(gfp: Gfp) {
        let _signalling = begin_signalling();
        might_alloc(gfp);
    }
    // Nobody need wait: that somebody might is enough.
    check_wait(|_| might_wait_for_fence(), |_| owing(Gfp::Kernel), CIRCLE);
    check_wait(|_| might_wait_for_fence(), |_| owing(Gfp::NoWait), FINE);
}
