//! `pinless run --scenario`: one story told twice, once as Linux would have had it in 2018.
//!
//! One address space leaks while a device of it hangs; another one asks for a little more when the
//! first has been killed. A reaper that asks each device without blocking takes back all but what
//! the device holds, and the other one lives. A reaper that gives up because a notifier might block
//! takes back nothing, and the other one is killed, too.

use super::RunError;
use super::oom_story::Oom;
use super::rng::Rng;
use crate::args::{Bytes, RunArgs, Scenario};
use crate::exit::{self, Exit};
use crate::render::json::Json;
use crate::render::side_by_side;
use core::time::Duration;
use pinless::oom::Reaping;
use pinless::{Builder, MapOptions, Mapping, OomReport, PAGE_SIZE, Pinless};
use pinless_devices::{DmaDevice, Template};
use serde::Serialize;
use std::sync::Arc;

/// Pages that the device holds when it hangs.
const HELD_PAGES: u32 = 16;

/// How often the reaper is asked whether it is done, and the pause in between: twice the time of
/// its passes.
const LOOKS_MAX: u32 = 400;
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// What one of the reapers made of it.
#[derive(Debug, Serialize)]
pub(crate) struct Story {
    /// Which reaper.
    pub(crate) reaper: &'static str,
    /// Who was killed, in this order.
    pub(crate) kills: Vec<Oom>,
    /// Whether the one that did nothing wrong is alive, with its contents.
    pub(crate) bystander_lives: bool,
}

/// Both stories.
#[derive(Debug, Serialize)]
pub(crate) struct Stories {
    /// Whether each ended as its reaper makes it end.
    pub(crate) ok: bool,
    pub(crate) limit_bytes: u64,
    pub(crate) stories: [Story; 2],
}

/// Tells both, the one that was asked for first.
pub(super) fn main(args: &RunArgs, scenario: Scenario) -> Exit {
    let mut order = [Reaping::Asks, Reaping::GivesUp];
    if scenario == Scenario::Oom2018 {
        order.reverse();
    }
    match tell_and_show(args, order) {
        Ok(stories) if stories.ok => Exit::Held,
        Ok(_) => Exit::Failed,
        Err(error) => exit::bad_use(&error),
    }
}

fn tell_and_show(args: &RunArgs, order: [Reaping; 2]) -> Result<Stories, RunError> {
    let json = Json::open(args.json.as_deref()).map_err(RunError::Json)?;
    let stories = tell_both(args, order)?;
    json.show(&stories, side_by_side::picture)
        .map_err(RunError::Json)?;
    Ok(stories)
}

fn tell_both(args: &RunArgs, order: [Reaping; 2]) -> Result<Stories, RunError> {
    let [first, second] = order;
    let stories = [tell(args.limit, first)?, tell(args.limit, second)?];
    let is_right = |(story, reaping): (&Story, &Reaping)| {
        story.bystander_lives == (*reaping == Reaping::Asks) && !story.kills.is_empty()
    };
    Ok(Stories {
        ok: stories.iter().zip(&order).all(is_right),
        limit_bytes: args.limit.0,
        stories,
    })
}

fn tell(limit: Bytes, reaping: Reaping) -> Result<Story, RunError> {
    let nr_frames = u32::try_from(limit.0 / PAGE_SIZE as u64)
        .ok()
        .filter(|frames| frames.checked_mul(8).is_some())
        .ok_or(RunError::TooLarge { limit })?;
    let needed = Bytes(u64::from(8 * HELD_PAGES) * PAGE_SIZE as u64);
    if limit < needed {
        return Err(RunError::TooSmall {
            limit,
            nr_tenants: 2,
            needed,
        });
    }
    let pinless = Builder::new(limit.0).build().map_err(RunError::Build)?;
    pinless.memcg().set_reaping(reaping);
    let (leaker, bystander) = (pinless.new_mm("leaker"), pinless.new_mm("bystander"));
    let map = |mm, nr_pages| {
        let mapping = pinless.map(mm, MapOptions::of_pages(nr_pages));
        mapping.map_err(RunError::Map)
    };
    // Room for what the store takes when nothing can be compressed, and then some.
    let leaked = map(&leaker, 4 * nr_frames)?;
    let kept = map(&bystander, nr_frames / 2)?;
    let (nic, subscription) = Template::attach(
        leaker.notifiers(),
        Arc::clone(leaked.vma()) as _,
        "leaker/nic",
    );
    let nr_before = nr_frames / 8;
    let mut rng = Rng::new(2018, 0, 0);
    let mut pages: Vec<_> = (0..nr_before).map(|_| noise(&mut rng)).collect();
    fill(&kept, 0, &pages);
    hang(&*nic, &leaked, &mut rng);
    leak(&leaked, &mut rng);
    // More than is free while the leaker has its memory, and little beside what it had.
    pages.extend((nr_before..nr_frames / 4).map(|_| noise(&mut rng)));
    fill(&kept, nr_before, &pages[nr_before as usize..]);
    let bystander_lives = !bystander.is_killed() && holds(&kept, &pages);
    let reports = told(&pinless);
    let story = Story {
        reaper: match reaping {
            Reaping::Asks => "asks without blocking",
            Reaping::GivesUp => "gives up beside a notifier",
        },
        kills: reports.iter().map(Oom::new).collect(),
        bystander_lives,
    };
    nic.hang(false);
    nic.stop();
    drop(subscription);
    drop((leaked, kept));
    drop((leaker, bystander));
    Ok(story)
}

/// The reports, once the reaper is done, or has had the time to be.
fn told(pinless: &Pinless) -> Vec<OomReport> {
    for _ in 0..LOOKS_MAX {
        let reports = pinless.memcg().oom_reports();
        if reports.iter().all(|report| report.done_ns.is_some()) {
            return reports;
        }
        lockdep::sync::sleep("cli.scenario", LOOK_PAUSE);
    }
    pinless.memcg().oom_reports()
}

fn noise(rng: &mut Rng) -> Vec<u8> {
    let mut page = vec![0; PAGE_SIZE];
    rng.fill(&mut page);
    page
}

fn offset(page: u32) -> u64 {
    u64::from(page) * PAGE_SIZE as u64
}

/// Writes pages until that is refused.
fn fill(mapping: &Mapping, first: u32, pages: &[Vec<u8>]) {
    for (page, contents) in (first..).zip(pages) {
        if mapping.write_at(offset(page), contents).is_err() {
            return;
        }
    }
}

/// The device takes translations of the first pages, and then neither works nor lets go.
fn hang(nic: &dyn DmaDevice, leaked: &Mapping, rng: &mut Rng) {
    let pages: Vec<_> = (0..HELD_PAGES).map(|_| noise(rng)).collect();
    fill(leaked, 0, &pages);
    for page in 0..HELD_PAGES {
        // What it cannot have it does not hold.
        let _ = nic.write(page, 0, &[1]);
    }
    nic.hang(true);
}

fn leak(leaked: &Mapping, rng: &mut Rng) {
    let nr_pages = leaked.vma().nr_pages();
    for page in HELD_PAGES..nr_pages {
        if leaked.write_at(offset(page), &noise(rng)).is_err() {
            return;
        }
    }
}

fn holds(mapping: &Mapping, pages: &[Vec<u8>]) -> bool {
    let mut found = vec![0; PAGE_SIZE];
    (0..).zip(pages).all(|(page, contents)| {
        mapping.read_at(offset(page), &mut found).is_ok() && found == *contents
    })
}
