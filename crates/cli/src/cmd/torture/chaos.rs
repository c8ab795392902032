//! What comes over the lives from outside: other bounds, kills, forks.

use super::plan::CHAOS;
use super::report::Did;
use super::stage::Stage;
use crate::cmd::run::rng::Rng;
use core::time::Duration;
use pinless_mm::memcg::{Knob, SetLimitError};
use pinless_sim::checker::Bounds;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

/// The longest pause between two strokes, in microseconds.
const PAUSE_US: u64 = 30_000;

/// Of so many strokes...
const STROKES: u64 = 32;
/// ...these are kills...
const KILLS: u64 = 3;
/// ...and these are forks. The others change bounds.
const FORKS: u64 = 2;

/// A reaper that takes longer is taken to hang. Its victims are small.
const REAP_MAX: Duration = Duration::from_secs(60);

const KNOBS: [Knob; 4] = [Knob::Max, Knob::High, Knob::SwapMax, Knob::ZswapMax];

/// Strikes until everybody stops.
pub(super) fn run(stage: &Stage) {
    let mut rng = stage.plan.rng(CHAOS);
    while !stage.judge.is_stopped() {
        let pause = Duration::from_micros(rng.below(PAUSE_US));
        lockdep::sync::sleep("cli.chaos", pause);
        match rng.below(STROKES) {
            0..KILLS => kill(stage, &mut rng),
            stroke if stroke < KILLS + FORKS => fork(stage),
            _ => change_bound(stage, &mut rng),
        }
    }
}

/// Kills an address space, and waits until the reaper is done with it: G8.
fn kill(stage: &Stage, rng: &mut Rng) {
    let slot = rng.below(stage.slots.len() as u64) as usize;
    let memcg = stage.pinless.memcg();
    {
        let living = stage.slots[slot].lock();
        let is_killed = living.as_ref().is_some_and(|mm| memcg.kill(mm));
        if !is_killed {
            return;
        }
    }
    stage.did.note(Did::Kill);
    let began = Instant::now();
    let is_reaped = || {
        memcg
            .oom_reports()
            .iter()
            .all(|told| told.done_ns.is_some())
    };
    while !is_reaped() {
        if began.elapsed() > REAP_MAX {
            let what = "G8: the reaper has not come to an end with a victim";
            return stage.judge.fail_all("kill", what);
        }
        lockdep::sync::sleep("cli.chaos", Duration::from_millis(1));
    }
}

/// Sets a bound anywhere between half of what it was at first and that: G6.
fn change_bound(stage: &Stage, rng: &mut Rng) {
    let memcg = stage.pinless.memcg();
    let knob = KNOBS[rng.below(KNOBS.len() as u64) as usize];
    let (most, counter) = match knob {
        Knob::ZswapMax => (stage.plan.zswap_bytes(), Some(memcg.zswap_bytes())),
        Knob::SwapMax => (2 * stage.plan.zswap_bytes(), Some(memcg.swap())),
        Knob::Max => (stage.plan.limit_bytes, Some(memcg.frames())),
        _ => (stage.plan.limit_bytes, None),
    };
    let wanted = most / 2 + rng.below(most / 2 + 1);
    match memcg.set_limit(knob, wanted) {
        Ok(()) => stage.did.note(Did::Bound),
        Err(SetLimitError::InUse { .. } | SetLimitError::Changing) => {
            stage.did.note(Did::BoundRefused);
            return;
        }
        Err(error) => stage.judge.fail_all("change a bound", &error.to_string()),
    }
    // Nobody else changes it: what is charged now is not above what was just set.
    if let Some(counter) = counter {
        let mut bounds = Bounds::new("units of a bound that was lowered", counter.max());
        if let Err(breach) = bounds.charged(counter.usage()) {
            stage
                .judge
                .fail_all("change a bound", &format!("{knob:?}: {breach}"));
        }
    }
}

/// A child with a copy of everything but managed memory, which is another program at once.
fn fork(stage: &Stage) {
    let child = std::env::current_exe().and_then(|program| {
        // A child that is to change its group is forked; others share the memory until they
        // are another program.
        let own = std::fs::metadata("/proc/self")?.gid();
        Command::new(program)
            .arg("--version")
            .gid(own)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
    });
    match child {
        Ok(status) if status.success() => stage.did.note(Did::Fork),
        Ok(status) => stage
            .judge
            .fail_all("fork", &format!("the child ended with {status}")),
        // No room for a child now: the machine's affair.
        Err(_) => stage.did.note(Did::ForkRefused),
    }
}
