//! What is left when all is quiet: translations that nobody dropped, and pages that nobody let go.

use super::{Change, Scene, Stage, page};
use crate::conformance::Invariant::{P6, R1, R5, R6, R8};
use crate::conformance::memory::Ask;
use core::time::Duration;
use lockdep::sync::sleep;
use pinless_mm::addr::PageRun;
use pinless_mm::mmu_notifier::{Event, Mode};

/// After this a device has done all that it had to, in virtual time.
const QUIET: Duration = Duration::from_millis(20);

/// Two pages are looked up, and taken away together: neither translation may be used.
pub(super) const COPIES: Scene = Scene {
    name: "copies",
    judges: &[R5],
    stuck: P6,
    play: |stage| {
        for page in [0, stage.nr_pages() - 1] {
            stage.spawn("user", move |stage| {
                let _is_used = stage.read(page, 0);
            });
        }
        let ask = Ask {
            held_to: Some(R5),
            ..Ask::new(all(stage), Event::Clear, Mode::Blockable)
        };
        stage.take_back(ask, Change::Move);
        stage.finish();
    },
};

/// A page is used while it goes; afterwards whoever uses it has the new one.
pub(super) const SETTLED: Scene = Scene {
    name: "settled",
    judges: &[R1, R6],
    stuck: P6,
    play: |stage| {
        let is_write = stage.nr("choice") % 2 == 0;
        let act = move |stage: &Stage| {
            let _is_used = match is_write {
                true => stage.write(0, 0, 1),
                false => stage.read(0, 0),
            };
        };
        if stage.nr("choice") > 3 {
            act(stage);
        }
        stage.spawn("user", act);
        stage.take_back(
            Ask::new(page(0), Event::Unmap, Mode::Blockable),
            Change::Discard,
        );
        stage.settle();
        act(stage);
        stage.finish();
    },
};

/// A device that is idle: all that it knows is pinned once, and nothing else is.
pub(super) const IDLE: Scene = Scene {
    name: "idle",
    judges: &[R8],
    stuck: P6,
    play: |stage| {
        let _is_used = stage.write(0, 0, 1);
        // Whoever frees has had time to; waiting for it would be for ever, if it lost count.
        sleep("kit.idle", QUIET);
        stage.judge_containers();
        stage.finish();
    },
};

/// What was mapped as one goes in two parts, and then nothing of it is left.
pub(super) const SPLIT: Scene = Scene {
    name: "split",
    judges: &[R8],
    stuck: P6,
    play: |stage| {
        stage.register(all(stage));
        for nr in 0..stage.nr_pages() {
            stage.take_back(
                Ask::new(page(nr), Event::Unmap, Mode::Blockable),
                Change::Discard,
            );
        }
        stage.judge_returned();
        stage.finish();
    },
};

fn all(stage: &Stage) -> PageRun {
    PageRun::new(0, stage.nr_pages())
}
