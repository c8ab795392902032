//! 31 small programs on real threads: 23 misuses that must be found before they hang, 8 good ones
//! that must not be called wrong.
//!
//! Each is run in an order in which it does not hang. Where the one thread of a program would hang
//! by itself, the validator panics before it does. What `lockdep::sync` has no type for is built
//! from maps and events in [`wrappers`].

mod bodies;
mod wrappers;

use std::sync::mpsc;
use std::thread;

use lockdep::{Kind, Policy, Severity, Validator};

/// What one thread does.
type Body<'a> = Box<dyn FnOnce() + Send + 'a>;

/// Where a program runs: under a validator of its own.
struct Stage {
    validator: Validator,
}

impl Stage {
    /// Runs one after another, each in its own thread; all live until the last is done.
    fn together(&self, bodies: Vec<Body<'_>>) {
        thread::scope(|scope| {
            let mut threads = Vec::new();
            for body in bodies {
                let (done, is_done) = mpsc::channel::<()>();
                let (end, may_end) = mpsc::channel::<()>();
                let run = move || {
                    self.enter_until_exit();
                    body();
                    drop(done);
                    // An error means that the sender is gone: the thread may end.
                    let _ = may_end.recv();
                };
                let thread = scope.spawn(run);
                // An error means that the thread is done.
                let _ = is_done.recv();
                threads.push((end, thread));
            }
            for (end, thread) in threads {
                drop(end);
                thread.join().expect("a program does not panic");
            }
        });
    }

    /// Runs one after another, each in its own thread, which has ended before the next begins.
    fn one_by_one(&self, bodies: Vec<Body<'_>>) {
        bodies
            .into_iter()
            .for_each(|body| self.together(vec![body]));
    }

    /// Runs in one thread, which may not go on behind the first report.
    fn until_report(&self, body: impl FnOnce() + Send) {
        self.validator.set_policy(Policy::Panic);
        thread::scope(|scope| {
            let run = || {
                self.enter_until_exit();
                body();
            };
            let ended = scope.spawn(run).join();
            assert!(ended.is_err(), "the thread would have hung here");
        });
    }

    /// The thread ends in the validator, so that what it still holds is seen.
    fn enter_until_exit(&self) {
        std::mem::forget(self.validator.enter());
    }
}

/// What must be said of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expected {
    /// This, as a warning or an error.
    Found(Kind),
    /// Nothing worse than what is unlikely; whether that is said.
    Fine { unlikely: bool },
}
use Expected::{Fine, Found};

type Run = fn(&Stage);

struct Program {
    name: &'static str,
    run: Run,
    expected: Expected,
}

/// What was said of a program, the worst first.
fn reports_of(program: &Program) -> Vec<(Severity, Kind)> {
    let stage = Stage {
        validator: Validator::new(),
    };
    (program.run)(&stage);
    let reports = stage.validator.reports();
    let mut found: Vec<_> = reports.iter().map(|r| (r.severity, r.kind)).collect();
    found.sort_by_key(|&(severity, _)| std::cmp::Reverse(severity));
    found
}

#[test]
fn misuses_are_found_before_they_hang_and_good_programs_are_not_called_wrong() {
    let (mut nr_found, mut nr_wrong) = (0, 0);
    let (mut nr_misuses, mut nr_good) = (0, 0);
    let mut faults = Vec::new();
    for program in bodies::ALL {
        let found = reports_of(program);
        println!("{:28} {:?} {found:?}", program.name, program.expected);
        let counted = || {
            found
                .iter()
                .filter(|(severity, _)| *severity > Severity::Unlikely)
        };
        let is_right = match program.expected {
            Found(kind) => {
                nr_misuses += 1;
                nr_found += usize::from(counted().count() > 0);
                counted().any(|&(_, found)| found == kind)
            }
            Fine { unlikely } => {
                nr_good += 1;
                nr_wrong += usize::from(counted().count() > 0);
                counted().count() == 0 && unlikely != found.is_empty()
            }
        };
        if !is_right {
            faults.push((program.name, program.expected, found));
        }
    }
    println!(
        "{nr_found} of {nr_misuses} misuses found, {nr_wrong} of {nr_good} good ones called wrong"
    );
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!((nr_misuses, nr_good), (23, 8));
    assert!(
        nr_found >= 22 && nr_wrong == 0,
        "{nr_found} found, {nr_wrong} wrong"
    );
}

/// Who notifies must hold the very lock that the waiter holds, each time.
#[test]
fn a_notifier_is_blamed_for_what_every_notifier_needs() {
    for (run, expected) in bodies::NOTIFIERS {
        let program = Program {
            name: "",
            run: *run,
            expected: *expected,
        };
        let found = reports_of(&program);
        let kinds: Vec<Kind> = found.iter().map(|&(_, kind)| kind).collect();
        let expected: &[Kind] = match program.expected {
            Found(_) => &[Kind::Circular],
            Fine { .. } => &[],
        };
        assert_eq!(kinds, expected, "{:?}", program.expected);
    }
}
