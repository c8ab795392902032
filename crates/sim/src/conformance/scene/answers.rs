//! What a start answers: to those whom it does not concern, beside others, and when a device hangs.

use super::spy::Spy;
use super::{Change, Scene, Stage, page};
use crate::checker::Breach;
use crate::conformance::Invariant::{P1, P3, P4, P6, P8, P9, R2, R4, R8};
use crate::conformance::memory::Ask;
use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;
use lockdep::sync::{Completion, Waited, sleep};
use pinless_mm::mmu_notifier::{Event, Mode};
use std::sync::Arc;

/// How long a user waits for a page that nobody changes, in virtual time.
const PATIENCE: Duration = Duration::from_millis(20);

/// How often somebody waits for the end of a bracket.
const WAITS: u32 = 2;

/// How long a device hangs that hangs for long, in virtual time.
const HANG: Duration = Duration::from_secs(5);

/// An idle device is asked about a page that it has never used.
pub(super) const UNRELATED: Scene = Scene {
    name: "unrelated",
    judges: &[P1],
    stuck: P9,
    play: |stage| {
        // Each by itself: what was registered together is used together.
        for nr in [0, 1] {
            stage.register(page(nr));
        }
        let _is_used = stage.read(0, 0);
        stage.device.wait_idle();
        let ask = Ask::new(page(1), Event::Clear, Mode::NonBlock);
        // Once may be chance: some other task holds a lock that is only tried.
        let mut asked = (0..3).map(|_| stage.bracket(ask).is_none());
        let is_refused = asked.all(|is_refused| is_refused);
        stage.figures.unrelated.fetch_add(1, Relaxed);
        if is_refused {
            stage.figures.unrelated_refused.fetch_add(1, Relaxed);
            let what = "a start over a page that the device never used was refused";
            stage.judge(Err(Breach::of(P1, what)));
        }
        stage.finish();
    },
};

/// A user beside a bracket over a page that is not its own.
pub(super) const STALL: Scene = Scene {
    name: "stall",
    judges: &[P8],
    stuck: P8,
    play: |stage| {
        let bracket = stage.bracket(Ask::new(page(0), Event::Clear, Mode::Blockable));
        stage.memory.books.stays_open(Some(page(0)));
        let is_done = Arc::new(Completion::new("sim.kit.done"));
        let done = Arc::clone(&is_done);
        stage.spawn("user", move |stage| {
            let _is_used = stage.read(1, 0);
            done.complete_all();
        });
        stage.figures.beside.fetch_add(1, Relaxed);
        if is_done.wait_timeout(PATIENCE) == Waited::TimedOut {
            stage.figures.beside_stalled.fetch_add(1, Relaxed);
            let what = "an access had to wait for the end of a bracket over another page";
            stage.judge(Err(Breach::of(P8, what)));
        }
        stage.memory.books.stays_open(None);
        drop(bracket);
        stage.finish();
    },
};

/// Others are told, too, and perhaps one of them refuses: what was started gets its end, and
/// everybody goes on.
pub(super) const REFUSED: Scene = Scene {
    name: "refused",
    judges: &[P4, P6],
    stuck: P4,
    play: |stage| {
        let (spy, _told_after) = Spy::on_list(stage);
        // Who came last is told first: before the one that refuses.
        let (first, _told_before) = Spy::on_list(stage);
        let (single, interval) = Spy::on_interval(stage);
        let _is_used = stage.write(0, 0, 1);
        for nr in 0..stage.nr("brackets") {
            let is_refused = (stage.nr("choice") + nr) % 2 == 0;
            spy.refuses.store(is_refused, Relaxed);
            let ask = Ask::new(page(0), Event::Clear, Mode::NonBlock);
            stage.take_back(ask, Change::Move);
            spy.refuses.store(false, Relaxed);
            // Who looks up waits for the brackets that it knows of: all are closed.
            let seen = interval.read_begin();
            drop(interval.lock());
            let _is_old = seen;
            let _is_used = stage.write(0, 0, 2);
        }
        for spy in [&spy, &first, &single] {
            stage.judge(spy.seen.lock().finish());
        }
        interval.remove();
        stage.finish();
    },
};

/// Somebody waits for the ends of brackets that follow each other closely, or of one that is
/// refused, which has none.
pub(super) const WOKEN: Scene = Scene {
    name: "woken",
    judges: &[P6],
    stuck: P6,
    play: |stage| {
        let (refusing, _told_after) = Spy::on_list(stage);
        refusing.refuses.store(true, Relaxed);
        let (_spy, interval) = Spy::on_interval(stage);
        let interval = Arc::new(interval);
        let waiting = Arc::clone(&interval);
        stage.spawn("user", move |_| {
            for _ in 0..WAITS {
                let _seen = waiting.read_begin();
            }
        });
        for nr in 0..2 {
            stage.spawn("taker", move |stage| {
                let mode = match stage.nr("choice") > 2 + nr {
                    true => Mode::NonBlock,
                    false => Mode::Blockable,
                };
                stage.take_back(Ask::new(page(0), Event::Clear, mode), Change::Move);
            });
        }
        stage.sim.join_all();
        if let Some(interval) = Arc::into_inner(interval) {
            interval.remove();
        }
        stage.finish();
    },
};

/// The device hangs, and goes on later.
pub(super) const HUNG: Scene = Scene {
    name: "hung",
    judges: &[P9, R2, R4, R8, P3, P6],
    stuck: P9,
    play: |stage| {
        let choice = stage.nr("choice");
        if choice % 2 == 1 || stage.nr("uses") > 1 {
            let _is_used = stage.write(0, 0, 1);
        }
        if choice % 2 == 0 {
            stage.spawn("user", |stage| {
                let _is_used = stage.read(0, 0);
            });
        }
        stage.excuse(true);
        stage.device.hang(true);
        if stage.nr("brackets") > 0 {
            let ask = Ask::new(page(0), Event::Clear, Mode::NonBlock);
            stage.take_back(ask, Change::Move);
        }
        let patient = Ask {
            deadline: Duration::from_millis(50),
            ..Ask::new(page(0), Event::Unmap, Mode::Blockable)
        };
        stage.take_back(patient, Change::Discard);
        if choice < 2 {
            // A device that hangs can be stopped, and then holds nobody up.
            stage.detach();
            stage.sim.join_all();
            // What its engine has in hand it lets go of when it goes on.
            stage.device.hang(false);
            sleep("kit.stopped", PATIENCE);
            return stage.finish();
        }
        if choice > 3 {
            // Long enough for whoever gives up waiting for it.
            sleep("kit.hung", HANG);
        }
        stage.device.hang(false);
        if matches!(choice, 2 | 5) {
            goes_on(stage);
        }
        stage.finish();
    },
};

/// A device that hung is used as if nothing had been.
fn goes_on(stage: &Stage) {
    stage.sim.join_all();
    stage.excuse(false);
    let ask = Ask::new(page(0), Event::Clear, Mode::Blockable);
    stage.take_back(ask, Change::Move);
    if !stage.read(0, 0) {
        let what = "the device does not go on after it hung";
        stage.judge(Err(Breach::of(P9, what)));
    }
}
