//! A schedule as segments: who ran for how many steps before somebody else did.
//!
//! A list of choices means nothing once one of them is taken out; a list of segments still does.
//! A [`Script`] follows one as far as it can.

use super::state::TaskId;
use super::timeline::Step;

/// Steps that one task takes without another between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Segment {
    pub(super) task: u16,
    pub(super) nr_steps: u32,
}

/// The segments of a run that was kept.
pub(super) fn of(steps: &[Step]) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    for step in steps {
        push(&mut segments, step.task, 1);
    }
    segments
}

/// Adds steps at the end, to the last segment if they are of the same task.
pub(super) fn push(segments: &mut Vec<Segment>, task: u16, nr_steps: u32) {
    match segments.last_mut() {
        Some(last) if last.task == task => last.nr_steps += nr_steps,
        _ => segments.push(Segment { task, nr_steps }),
    }
}

/// Segments to be followed: one whose task cannot run is left out.
pub(super) struct Script {
    segments: Vec<Segment>,
    at: usize,
}

impl Script {
    pub(super) fn new(segments: Vec<Segment>) -> Self {
        Self { segments, at: 0 }
    }

    /// `me` took a step.
    pub(super) fn step(&mut self, me: TaskId) {
        if let Some(segment) = self.segments.get_mut(self.at)
            && usize::from(segment.task) == me
        {
            segment.nr_steps = segment.nr_steps.saturating_sub(1);
        }
    }

    /// Who has the turn; `None` at the end of the script.
    pub(super) fn pick(&mut self, candidates: &[u16]) -> Option<u16> {
        loop {
            let segment = self.segments.get(self.at)?;
            if segment.nr_steps > 0 && candidates.contains(&segment.task) {
                return Some(segment.task);
            }
            self.at += 1;
        }
    }

    /// Who of `candidates` is woken: the one who is to run first.
    pub(super) fn pick_woken(&self, candidates: &[u16]) -> u16 {
        let rest = self.segments[self.at..].iter().map(|segment| segment.task);
        let first = rest.into_iter().find(|task| candidates.contains(task));
        first.unwrap_or(candidates[0])
    }
}
