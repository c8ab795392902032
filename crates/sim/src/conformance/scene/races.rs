//! Users beside changes.

use super::{Change, Scene, Stage, draw, page};
use crate::conformance::Invariant::{
    L1, L2, L3, L5, P2, P3, P4, P5, P6, R1, R2, R3, R4, R5, R6, R7, R8,
};
use crate::conformance::memory::Ask;
use pinless_mm::addr::PageRun;
use pinless_mm::mmu_notifier::{Event, Mode};

pub(super) const RACE: Scene = Scene {
    name: "race",
    judges: &[R1, R2, R4, R5, R6, R7, R8, P2, P3, P4, P5, P6, L1, L2, L3],
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
        stage.spawn_users();
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

/// A fault that has to take a frame from another page of the same device.
pub(super) const SHORT: Scene = Scene {
    name: "short",
    judges: &[P5, L1, L2, R1, R2],
    stuck: P5,
    play: |stage| {
        let last = stage.nr_pages() - 1;
        let _is_used = stage.write(last, 0, 1);
        stage.memory.be_short_of(last);
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
