//! The word of a sequence by itself: every operation from every kind of state.

use super::super::sequence::{Ended, Look, Sequence};
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use lockdep::scheduler::{self, Point, Scheduler, Wake};
use lockdep::sync::Waited;
use std::sync::Arc;

/// A state: the number, brackets that are open, and whether somebody waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct State {
    number: u64,
    open: u64,
    waited: bool,
}

impl State {
    fn with_waiter(self, waited: bool) -> Self {
        Self { waited, ..self }
    }
}

const NUMBER_MAX: u64 = (1 << 40) - 1;

fn states() -> impl Iterator<Item = State> {
    let numbers = [0, 1, 2, 3, 7, 1000, NUMBER_MAX - 1, NUMBER_MAX];
    numbers.into_iter().flat_map(|number| {
        (0..5).flat_map(move |open| {
            let state = move |waited| State {
                number,
                open,
                waited,
            };
            // Nobody waits where nothing is open.
            [false, true][..if open == 0 { 1 } else { 2 }]
                .iter()
                .map(move |&waited| state(waited))
        })
    })
}

fn grown(number: u64, by: u64) -> u64 {
    number.wrapping_add(by) & NUMBER_MAX
}

fn sequence(state: State) -> Sequence {
    let sequence = Sequence::new_open(grown(state.number, state.open.wrapping_neg()));
    for _ in 0..state.open {
        sequence.begin();
    }
    if state.waited {
        assert_eq!(sequence.announce_wait(), Look::Open);
    }
    // The one that it was made with.
    assert_eq!(sequence.end(), wakes(state.open == 0 && state.waited));
    sequence
}

fn wakes(wakes: bool) -> Ended {
    if wakes { Ended::Wake } else { Ended::Quiet }
}

/// What can be seen of a sequence is what the model says.
#[track_caller]
fn check(sequence: &Sequence, expected: State) {
    let State { number, open, .. } = expected;
    assert_eq!(sequence.snapshot(), (open, number), "{expected:?}");
    let look = if open == 0 {
        Look::Idle(number)
    } else {
        Look::Open
    };
    assert_eq!(sequence.look(), look, "{expected:?}");
    assert!(sequence.is_at(number), "{expected:?}");
    for by in [1, 2, NUMBER_MAX] {
        assert!(!sequence.is_at(grown(number, by)), "{expected:?}");
    }
}

/// Closes all that is open, the last by `close`, and checks whether those who wait are woken.
#[track_caller]
fn check_wakes(sequence: &Sequence, state: State) {
    for left in (0..state.open).rev() {
        let ended = sequence.end();
        assert_eq!(ended, wakes(left == 0 && state.waited), "{state:?}");
    }
}

#[test]
fn n41_n44_n58_each_operation_from_each_state() {
    for state in states() {
        let State { number, open, .. } = state;
        let sequence = sequence(state);
        check(&sequence, state);
        sequence.begin();
        let begun = State {
            number: grown(number, 1),
            open: open + 1,
            ..state
        };
        check(&sequence, begun);
        sequence.hold_open();
        sequence.bump();
        let held = State {
            number: grown(number, 2),
            open: open + 2,
            ..state
        };
        check(&sequence, held);
        assert_eq!(sequence.end(), Ended::Quiet);
        assert_eq!(sequence.roll_back(), wakes(open == 0 && state.waited));
        let closed = State {
            number: grown(number, 1),
            ..state
        };
        check(&sequence, closed);
        check_wakes(&sequence, state);
        check(&sequence, State { open: 0, ..closed });
    }
}

/// The last to close wakes those who announced a wait, however it closes, and only the last; what
/// was forgotten wakes nobody.
#[test]
fn n51_the_last_to_close_wakes() {
    for state in states() {
        let waited = sequence(state);
        let look = waited.announce_wait();
        check(&waited, state);
        assert_eq!(look, waited.look(), "{state:?}");
        assert_eq!(waited.announce_wait(), look, "again");
        check_wakes(&waited, state.with_waiter(true));
        let forgotten = sequence(state);
        let _look = forgotten.announce_wait();
        forgotten.forget_waits();
        check(&forgotten, state);
        check_wakes(&forgotten, state.with_waiter(false));
        let again = sequence(state);
        again.hold_open();
        assert_eq!(again.announce_wait(), Look::Open);
        again.forget_waits();
        assert_eq!(again.announce_wait(), Look::Open);
        assert_eq!(again.end(), wakes(state.open == 0));
    }
}

/// Room for as many open brackets as anybody has memory for: they do not reach the number.
#[test]
fn n43_many_brackets_are_open_at_once() {
    const NR: u64 = if cfg!(miri) { 1000 } else { (1 << 23) - 2 };
    let sequence = Sequence::new_open(5);
    for _ in 0..NR {
        sequence.hold_open();
    }
    check(
        &sequence,
        State {
            number: 5,
            open: NR + 1,
            waited: false,
        },
    );
}

/// Counts the points that it is asked at.
#[derive(Default)]
struct Points(AtomicU64);

impl Scheduler for Points {
    fn point(&self, point: Point) {
        assert_eq!(point.class, "mmu_notifier.sequence");
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn block(&self, _point: Point, _timeout: Option<Duration>) -> Waited {
        unreachable!("nothing here waits")
    }

    fn wake(&self, _addr: usize, _wake: Wake) {}
}

/// Each look and each change is a point: there a scheduler can let others go on.
#[test]
fn n54_each_operation_is_a_point() {
    let operations: [fn(&Sequence); 8] = [
        Sequence::begin,
        Sequence::hold_open,
        Sequence::bump,
        |sequence| assert_eq!(sequence.end(), Ended::Quiet),
        |sequence| assert_eq!(sequence.roll_back(), Ended::Quiet),
        |sequence| assert_eq!(sequence.look(), Look::Open),
        |sequence| assert!(sequence.is_at(5)),
        |sequence| assert_eq!(sequence.announce_wait(), Look::Open),
    ];
    for (nth, operation) in operations.into_iter().enumerate() {
        let sequence = Sequence::new_open(5);
        sequence.hold_open();
        let points = Arc::new(Points::default());
        let installed = scheduler::install(Arc::clone(&points) as _);
        operation(&sequence);
        drop(installed);
        assert_eq!(points.0.load(Ordering::Relaxed), 1, "operation {nth}");
    }
}
