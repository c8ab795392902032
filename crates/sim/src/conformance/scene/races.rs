//! Users beside changes.

use super::{Change, Scene, Stage, draw, page};
use crate::conformance::Invariant::{
    L1, L2, L3, L5, P2, P3, P4, P5, P6, R1, R2, R3, R4, R6, R7, R8,
};
use crate::conformance::memory::Ask;
use core::time::Duration;
use lockdep::sync::sleep;
use pinless_mm::addr::PageRun;
use pinless_mm::mmu_notifier::{Event, Mode};

/// Changes of one page in a row.
const CHANGES: u32 = 4;

/// The choice by which brackets come when the first use of a page is under way.
const LATE: u32 = 3;

/// When drivers that put things right later do so, at the latest.
const LATER_BY: Duration = Duration::from_millis(1);

pub(super) const RACE: Scene = Scene {
    name: "race",
    judges: &[R1, R2, R4, R6, R7, R8, P2, P3, P4, P6, L1, L2, L3],
    stuck: P6,
    play: |stage| {
        stage.spawn_users();
        if stage.nr("brackets") > 0 {
            take(stage, 7);
        }
        stage.finish();
    },
};

/// Two starts over the same page, both of which have to find the device stopped.
pub(super) const EQUAL: Scene = Scene {
    name: "equal",
    judges: &[R1, R2, R3, R4, P2, P5, P6],
    stuck: P6,
    play: |stage| {
        if stage.nr("choice") % 2 == 0 {
            let _is_used = stage.write(0, 0, 1);
        }
        stage.spawn_users();
        if stage.nr("choice") == LATE {
            let pause = stage.rng(8).below(8) * 100;
            sleep("kit.later", LATER_BY + Duration::from_nanos(pause));
        }
        for taker in 0..2 {
            stage.spawn("taker", move |stage| {
                let only = stage.nr("choice") > 2;
                let run = match only {
                    true => page(taker % stage.nr_pages()),
                    false => PageRun::new(0, stage.nr_pages()),
                };
                let ask = Ask::new(run, Event::Clear, Mode::Blockable);
                stage.take_back(ask, Change::Move);
            });
        }
        stage.finish();
    },
};

/// A change of many pages at once, of which the last is used; then many changes of another one.
pub(super) const WIDE: Scene = Scene {
    name: "wide",
    judges: &[R1, R2, R4, R7],
    stuck: P6,
    play: |stage| {
        let last = stage.nr_pages() - 1;
        let mode = Mode::ALL[stage.nr("choice") as usize % 2];
        let _is_used = stage.write(last, 0, 1);
        if stage.nr("choice") < 4 {
            stage.spawn_users();
            let all = PageRun::new(0, stage.nr_pages());
            stage.take_back(Ask::new(all, Event::Clear, mode), Change::Move);
            stage.sim.join_all();
        } else {
            stage.take_back(Ask::new(page(last), Event::Clear, mode), Change::Move);
            for _ in 0..CHANGES {
                let _is_used = stage.read(0, 0);
                stage.take_back(Ask::new(page(0), Event::Clear, mode), Change::Move);
            }
        }
        let _is_used = stage.read(last, 0);
        stage.finish();
    },
};

/// A change, and another one when whoever puts things right after the first one is at it.
pub(super) const LATER: Scene = Scene {
    name: "later",
    judges: &[R1, R2, R4],
    stuck: P6,
    play: |stage| {
        // Or the first use of all is what is put right.
        if stage.nr("uses") > 1 {
            let _is_used = stage.write(0, 0, 1);
            let ask = Ask::new(page(0), Event::Clear, Mode::Blockable);
            stage.take_back(ask, Change::Move);
        }
        stage.spawn("taker", |stage| {
            let choice = u64::from(stage.nr("choice"));
            let pause = LATER_BY + Duration::from_nanos(100 * choice);
            for _ in 0..stage.nr("brackets") {
                sleep("kit.later", pause);
                let ask = Ask::new(page(0), Event::Clear, Mode::Blockable);
                stage.take_back(ask, Change::Move);
            }
        });
        let _is_used = stage.read(0, 0);
        stage.finish();
    },
};

/// Brackets in one task: an inner one that is wider, and two that cross.
pub(super) const NESTED: Scene = Scene {
    name: "nested",
    judges: &[L5, P2, R1, R2],
    stuck: L5,
    play: |stage| {
        stage.spawn_users();
        stage.spawn("nester", |stage| {
            let all = PageRun::new(0, stage.nr_pages());
            let outer = stage.bracket(Ask::new(page(0), Event::Clear, Mode::Blockable));
            let inner = stage.bracket(Ask::new(all, Event::Clear, Mode::Blockable));
            for bracket in [&outer, &inner].into_iter().flatten() {
                bracket.change(Change::Move);
            }
            match stage.nr("choice") > 2 {
                true => drop((outer, inner)),
                false => drop((inner, outer)),
            }
        });
        stage.finish();
    },
};

/// A fault that has to take a frame from another page of the same device, or that moves a page of
/// its own.
pub(super) const SHORT: Scene = Scene {
    name: "short",
    judges: &[P5, L1, L2, R1, R2],
    stuck: P5,
    play: |stage| {
        let last = stage.nr_pages() - 1;
        if stage.nr("choice") % 2 == 0 {
            // Its own page is moved: the first use of it is the fault.
            stage.memory.be_short_of(last, Mode::Blockable);
        }
        let _is_used = stage.write(last, 0, 1);
        if stage.nr("choice") % 2 == 1 {
            stage.memory.be_short_of(last, Mode::NonBlock);
        }
        stage.spawn_users();
        stage.finish();
    },
};

/// Takes pages back in a task of its own.
fn take(stage: &Stage, stream: u64) {
    stage.spawn("taker", move |stage| {
        let mut rng = stage.rng(stream);
        for _ in 0..stage.nr("brackets") {
            let (ask, change) = draw(&mut rng, stage.nr_pages());
            stage.take_back(ask, change);
        }
    });
}
