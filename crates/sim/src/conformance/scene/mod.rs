//! The scenes: short plays, each of which puts a driver where some of the invariants can break.

mod answers;
mod ends;
mod races;
mod rests;
mod spy;

use super::Invariant;
use super::books::Change;
use super::memory::Ask;
use super::stage::Stage;
use crate::{Knob, Rng};
use core::ops::RangeInclusive;
use pinless_mm::addr::PageRun;
use pinless_mm::mmu_notifier::{Event, Mode};

/// A scene.
pub(super) struct Scene {
    /// By which it is asked for.
    pub(super) name: &'static str,
    /// What it can find.
    pub(super) judges: &'static [Invariant],
    /// What it means when nobody gets any further.
    pub(super) stuck: Invariant,
    /// The play.
    pub(super) play: fn(&Stage),
}

/// The scenes, the plainest first.
pub(super) static SCENES: &[Scene] = &[
    races::RACE,
    races::EQUAL,
    races::WIDE,
    races::LATER,
    races::NESTED,
    races::SHORT,
    answers::UNRELATED,
    answers::STALL,
    answers::REFUSED,
    answers::WOKEN,
    answers::HUNG,
    ends::EVENTS,
    ends::FORK,
    ends::LATE,
    ends::RELEASE,
    ends::GIVEN_UP,
    ends::TOO_LATE,
    ends::LIFE,
    rests::COPIES,
    rests::SETTLED,
    rests::IDLE,
    rests::SPLIT,
];

/// Pages of a mapping that is wide.
const PAGES_WIDE: u64 = 12;

/// How much happens in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Size {
    /// One use, and no bracket where there need be none.
    Tiny,
    /// One user, two uses, one bracket.
    Small,
    /// Two users, three brackets.
    Grown,
}

/// The options that say how much happens, and the least of each.
pub(super) const COUNTS: [(&str, u64); 4] =
    [("users", 1), ("ops", 1), ("brackets", 0), ("uses", 1)];

/// What a scene turns on may be one of these.
pub(super) const CHOICES: RangeInclusive<u64> = 0..=5;

/// What is drawn for each run.
pub(super) fn knobs(scene: u64, size: Size) -> [Knob; 7] {
    let (is_tiny, is_grown) = (size == Size::Tiny, size == Size::Grown);
    let up_to = |grown: u64, else_to: u64| if is_grown { grown } else { else_to };
    [
        Knob::number("scene", scene, scene),
        pages(scene, size),
        Knob::number("users", 1, up_to(2, 1)),
        Knob::number("ops", 1, up_to(2, 1)),
        Knob::number("uses", 1, if is_tiny { 1 } else { 2 }),
        Knob::number(
            "brackets",
            u64::from(!is_tiny),
            up_to(3, u64::from(!is_tiny)),
        ),
        Knob::number("choice", *CHOICES.start(), *CHOICES.end()),
    ]
}

/// More pages than a device drops with one command, in the scene that is about that.
fn pages(scene: u64, size: Size) -> Knob {
    let is_wide = SCENES[scene as usize].name == races::WIDE.name;
    match (is_wide, size) {
        (true, _) => Knob::number("pages", PAGES_WIDE, PAGES_WIDE),
        (false, Size::Grown) => Knob::number("pages", 2, 3),
        (false, Size::Tiny | Size::Small) => Knob::number("pages", 2, 2),
    }
}

impl Stage {
    fn nr(&self, knob: &str) -> u32 {
        self.sim.knob(knob) as u32
    }

    /// Starts users, each with a byte of its own.
    fn spawn_users(&self) {
        for user in 0..self.nr("users") {
            self.spawn("user", move |stage| {
                let mut rng = stage.rng(u64::from(user));
                for op in 0..stage.nr("ops") {
                    let page = rng.below(u64::from(stage.nr_pages())) as u32;
                    stage.use_page(page, user as usize, op as u8 + 1);
                }
            });
        }
    }

    /// Uses a page, perhaps twice: reads, writes, or first this and then that.
    fn use_page(&self, page: u32, byte: usize, value: u8) {
        let choice = self.sim.knob("choice") % 4;
        let uses = [matches!(choice, 1 | 2), choice % 2 == 1];
        for is_write in uses.into_iter().take(self.nr("uses") as usize) {
            let _is_used = match is_write {
                true => self.write(page, byte, value),
                false => self.read(page, byte),
            };
        }
    }

    /// Opens a bracket, changes what it is about, and closes it.
    fn take_back(&self, ask: Ask, change: Change) {
        if let Some(bracket) = self.bracket(ask) {
            bracket.change(change);
        }
        self.judge_noted();
    }
}

fn page(nr: u32) -> PageRun {
    PageRun::single(nr)
}

/// A run of pages, an event, a mode, and what becomes of the pages.
fn draw(rng: &mut Rng, nr_pages: u32) -> (Ask, Change) {
    let first = rng.below(u64::from(nr_pages)) as u32;
    let nr = 1 + rng.below(u64::from(nr_pages - first)) as u32;
    let mode = Mode::ALL[rng.below(2) as usize];
    let (event, change) = match rng.below(4) {
        0 => (Event::Unmap, Change::Discard),
        1 => (Event::ProtectionPage, Change::Protect),
        2 => (Event::Clear, Change::Discard),
        _ => (Event::Clear, Change::Move),
    };
    (Ask::new(PageRun::new(first, nr), event, mode), change)
}
