//! What comes over the tenants: other bounds, gluttons beside them, and kills.

use super::super::JobError;
use super::super::contents::{PAGE_BYTES, Rng};
use super::tree::{BOUNDS, Bound, GLUTTON_BYTES, Level, MAX, NARROW_MAX_BYTES, Size};
use super::{NR_TENANTS, Stage};
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use pinless::{
    AccessError, Clock, FaultError, FaultMode, MapOptions, Mm, MonotonicClock, OomReport,
    attach_thread,
};
use std::sync::Arc;
use std::time::Instant;

/// The longest pause between two strokes, in microseconds.
const PAUSE_US: u64 = 60_000;

/// Of so many strokes one kills, and one feeds a glutton; the others change bounds.
const RARE_ONE_IN: u64 = 128;

/// How often a bound was changed, and how often that was refused.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) set: AtomicU64,
    pub(super) refused: AtomicU64,
}

/// A time in which a memory cgroup had to hold more than its bounds allow. On the clock of reports.
pub(super) struct Glut {
    /// The name of the memory cgroup, and of all address spaces in it.
    name: String,
    from_ns: u64,
    until_ns: u64,
}

impl Glut {
    /// Whether somebody had to be killed, and it was one of those who could.
    pub(super) fn explains(&self, report: &OomReport) -> bool {
        let (_, frames_max) = report.frames;
        *report.victim == *self.name
            && (self.from_ns..=self.until_ns).contains(&report.killed_at_ns)
            && frames_max == NARROW_MAX_BYTES / PAGE_BYTES as u64
    }
}

/// Strikes until it is over.
pub(super) fn run(stage: &Stage) {
    let attached = attach_thread();
    if let Err(error) = &attached {
        return stage.fail(JobError::of("attach a thread", error));
    }
    let mut rng = Rng(stage.seed ^ 0xc4a0_5000);
    while !stage.is_over() {
        std::thread::sleep(Duration::from_micros(rng.below(PAUSE_US)));
        match rng.below(RARE_ONE_IN) {
            0 => kill(stage, &mut rng),
            1 => {
                if let Err(error) = feed_glutton(stage, &mut rng) {
                    return stage.fail(error);
                }
            }
            _ => change_bound(stage, &mut rng),
        }
    }
}

fn kill(stage: &Stage, rng: &mut Rng) {
    let index = rng.below(u64::from(NR_TENANTS)) as usize;
    let living = stage.living[index].lock().clone();
    if living.is_some_and(|mm| mm.memcg().kill(&mm)) {
        stage.nr_kills.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sets a bound of a memory cgroup anywhere in its range. What cannot be had now is refused.
fn change_bound(stage: &Stage, rng: &mut Rng) {
    let level = &stage.levels[rng.below(stage.levels.len() as u64) as usize];
    let nth = rng.below(BOUNDS.len() as u64) as usize;
    let bound = &BOUNDS[nth];
    let bytes = within(bound, level, rng);
    let changes = &stage.changes[nth][usize::from(level.size != Size::All)];
    let counter = match level.memcg.set_limit(bound.knob, bytes) {
        Ok(()) => &changes.set,
        Err(_) => &changes.refused,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

fn within(bound: &Bound, level: &Level, rng: &mut Rng) -> u64 {
    let (least, most) = bound.range(level.size);
    least + rng.below(most - least)
}

/// Two tenants get a third beside them that takes more than the three may have: until it is killed,
/// alone or with all in its memory cgroup.
fn feed_glutton(stage: &Stage, rng: &mut Rng) -> Result<(), JobError> {
    let leaves = stage.levels.iter().filter(|level| level.size == Size::Two);
    let leaves: Vec<_> = leaves.collect();
    let level = leaves[rng.below(leaves.len() as u64) as usize];
    // Or it would take from the others what they cannot do without.
    let narrowed = level.memcg.set_limit(MAX.knob, NARROW_MAX_BYTES);
    if narrowed.is_err() {
        return Ok(());
    }
    let now_ns = || MonotonicClock.now_ns();
    stage.gluts.lock().push(Glut {
        name: level.name().into(),
        from_ns: now_ns(),
        until_ns: u64::MAX,
    });
    let nr_groups = level.memcg.stat().oom_group_kill;
    let others = those_in(stage, level);
    let is_killed = gorge(stage, level)?;
    // Behind the decision, and all that it takes along.
    let _ = level.memcg.oom_reports();
    if is_killed && level.is_group {
        if level.memcg.stat().oom_group_kill == nr_groups {
            return Err(JobError::of("a group was not killed", level.name()));
        }
        if others.iter().any(|mm| !mm.is_killed() && !mm.is_exited()) {
            return Err(JobError::of("somebody outlived its group", level.name()));
        }
    }
    if let Some(glut) = stage.gluts.lock().last_mut() {
        glut.until_ns = now_ns();
    }
    let (_, most_bytes) = MAX.range(level.size);
    let restored = level.memcg.set_limit(MAX.knob, most_bytes);
    restored.map_err(|error| JobError::of("raise a bound", error))
}

/// The address spaces of tenants in `level` that have memory.
fn those_in(stage: &Stage, level: &Level) -> Vec<Arc<Mm>> {
    let living = stage
        .living
        .iter()
        .filter_map(|living| living.lock().clone());
    let is_in = |mm: &Arc<Mm>| Arc::ptr_eq(mm.memcg(), &level.memcg) && mm.nr_frames() > 0;
    living.filter(is_in).collect()
}

/// Writes page after page until it is killed for that; false when it is over before.
fn gorge(stage: &Stage, level: &Level) -> Result<bool, JobError> {
    let mm = stage.pinless.new_mm_in(&level.memcg, level.name());
    let nr_pages = (GLUTTON_BYTES / PAGE_BYTES as u64) as u32;
    // Not in a service thread, where it would hold up tenants that are none of its business.
    let options = MapOptions::of_pages(nr_pages).fault_mode(FaultMode::InThread);
    let mapped = stage.pinless.map(&mm, options);
    let mapping = mapped.map_err(|error| JobError::of("map for a glutton", error))?;
    for page in 0..u64::from(nr_pages) {
        if stage.is_over() {
            return Ok(false);
        }
        let began = Instant::now();
        match mapping.store_u64(page * PAGE_BYTES as u64, page + 1) {
            Ok(()) => {}
            Err(AccessError::Fault {
                error: FaultError::Killed,
                ..
            }) => {
                let took_ns = began.elapsed().as_nanos() as u64;
                stage.gluttons_took_ns.record(took_ns);
                return Ok(true);
            }
            Err(error) => return Err(JobError::of("a glutton failed", error)),
        }
    }
    Err(JobError::of(
        "more than there are bounds for fit into",
        level.name(),
    ))
}
