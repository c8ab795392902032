//! Events of each kind, forks, and the end of memory and of devices.

use super::spy::{SLOW, Spy};
use super::{Change, Scene, page};
use crate::conformance::Invariant::{E1, E2, E3, L2, L4, L6, P5, P6, P7, P10, R1, R2, R4, R8};
use crate::conformance::books::NR_BYTES;
use crate::conformance::memory::Ask;
use crate::conformance::stage::Stage;
use pinless_mm::addr::PageRun;
use pinless_mm::mmu_notifier::{Event, Mode, Owner};

/// Somebody: no device's own.
const OWNER: Owner = Owner(0x5eed);

/// Each event, also those that a device may be left out of when it began them itself.
pub(super) const EVENTS: Scene = Scene {
    name: "events",
    judges: &[E1, E2, R1, R4],
    stuck: P6,
    play: |stage| {
        let events = [
            Event::Clear,
            Event::Protection,
            Event::ProtectionPage,
            Event::SoftDirty,
            Event::Migrate,
            Event::Exclusive,
        ];
        let event = events[stage.nr("choice") as usize];
        let is_owned = event.leaves_out_owner();
        let _is_used = stage.write(0, 0, 1);
        let ask = Ask {
            owner: is_owned.then_some(OWNER),
            held_to: Some(if is_owned { E1 } else { E2 }),
            ..Ask::new(page(0), event, Mode::Blockable)
        };
        let change = match event.keeps_pages() {
            true => Change::Protect,
            false => Change::Move,
        };
        stage.take_back(ask, change);
        let _is_used = stage.write(0, 0, 2);
        let _is_used = stage.read(0, 0);
        stage.finish();
    },
};

/// A fork: every page may be written no more until it is faulted again.
pub(super) const FORK: Scene = Scene {
    name: "fork",
    judges: &[E3],
    stuck: P6,
    play: |stage| {
        let _is_used = stage.write(0, 0, 1);
        stage.spawn_users();
        stage.spawn("forker", |stage| {
            let all = PageRun::new(0, stage.nr_pages());
            let ask = Ask {
                held_to: Some(E3),
                ..Ask::new(all, Event::ProtectionPage, Mode::Blockable)
            };
            stage.take_back(ask, Change::Protect);
        });
        stage.finish();
    },
};

/// What is unmapped comes back, once nobody uses it.
pub(super) const LATE: Scene = Scene {
    name: "late",
    judges: &[P7, R8],
    stuck: P7,
    play: |stage| {
        let _is_used = stage.write(0, 0, 1);
        stage.spawn_users();
        let mode = Mode::ALL[stage.nr("choice") as usize % 2];
        stage.take_back(Ask::new(page(0), Event::Unmap, mode), Change::Discard);
        stage.sim.join_all();
        stage.wait_until_freed();
        stage.finish();
    },
};

/// The memory goes while devices use it, or begin to.
pub(super) const RELEASE: Scene = Scene {
    name: "release",
    judges: &[P10, R8],
    stuck: P10,
    play: |stage| {
        use_every_other_time(stage);
        stage.excuse(true);
        stage.spawn_users();
        if stage.nr("choice") > 2 {
            stage.spawn("taker", |stage| {
                stage.take_back(
                    Ask::new(page(0), Event::Clear, Mode::Blockable),
                    Change::Move,
                );
            });
        }
        stage.memory.release();
        stage.sim.join_all();
        let _is_refused = stage.read(0, 0);
        stage.finish();
    },
};

/// What was registered is given up in the middle of its use: others go on, and so does whoever
/// registers it again. Each has a byte of its own.
pub(super) const GIVEN_UP: Scene = Scene {
    name: "given-up",
    judges: &[P5, R2, R4, R8],
    stuck: P5,
    play: |stage| {
        let last = stage.nr_pages() - 1;
        for nr in 0..=last {
            stage.register(page(nr));
        }
        use_every_other_time(stage);
        stage.spawn_users();
        stage.unregister(page(0));
        if stage.nr("choice") > 2 {
            let ask = Ask::new(page(0), Event::Clear, Mode::Blockable);
            stage.take_back(ask, Change::Move);
        }
        let _is_used = stage.read(last, NR_BYTES - 1);
        stage.finish();
    },
};

/// Somebody registers while the device is detached, and is served or refused, as it comes. When
/// both are over nothing is left of it, neither pages nor somebody who hears of their changes.
pub(super) const TOO_LATE: Scene = Scene {
    name: "too-late",
    judges: &[P10, R8],
    stuck: P10,
    play: |stage| {
        use_every_other_time(stage);
        stage.excuse(true);
        stage.spawn("user", |stage| {
            stage.register(page(0));
            let _may_be_refused = stage.write(0, 0, 2);
        });
        stage.detach();
        stage.sim.join_all();
        stage.judge_deaf();
        stage.finish();
    },
};

/// Devices come and go while memory changes, also while a bracket is being opened.
pub(super) const LIFE: Scene = Scene {
    name: "life",
    judges: &[L2, L4, L6, R2, R8],
    stuck: L4,
    play: |stage| {
        // Where a device joins, the bracket that it joins in may take its time.
        let _slow = (stage.nr("choice") == 5).then(|| Spy::slow(stage));
        stage.spawn("taker", |stage| {
            for _ in 0..stage.nr("brackets") {
                let all = PageRun::new(0, stage.nr_pages());
                stage.take_back(Ask::new(all, Event::Clear, Mode::Blockable), Change::Move);
            }
        });
        match stage.nr("choice") {
            0 | 1 => {
                let _is_used = stage.write(0, 0, 1);
                stage.detach();
            }
            2 | 3 => {
                // In the middle of its work: who uses it is told, and starts go on as ever.
                stage.excuse_accesses(true);
                stage.spawn_users();
                stage.detach();
            }
            4 => stage.use_another(None),
            _ => stage.use_another(Some(SLOW)),
        }
        stage.finish();
    },
};

/// The first page is used before it begins, in every other run.
fn use_every_other_time(stage: &Stage) {
    if stage.nr("choice").is_multiple_of(2) {
        let _is_used = stage.write(0, 0, 1);
    }
}
