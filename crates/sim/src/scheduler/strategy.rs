//! Who runs next: the strategies, and what each of them knows of a run.

use super::segments::Script;
use super::state::TaskId;
use crate::rng::Rng;
use std::fmt;
use std::str::FromStr;

/// How a run is steered where more than one task can run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strategy {
    /// The seed draws a rate for [`Strategy::SwitchOneIn`]: some bugs need many switches, some few.
    Drawn,
    /// At one point in this many, to any task that can run; one means at every point.
    SwitchOneIn(u32),
    /// Probabilistic concurrency testing (Burckhardt, Kothari, Musuvathi, Nagarakatte, ASPLOS
    /// 2010): tasks have random priorities, the highest runs, and at `depth - 1` random steps the
    /// one that runs falls below all others. Of `n` tasks that take `steps` steps together, a bug
    /// that needs `depth` ordering constraints is met with probability `1 / (n * steps^(depth-1))`
    /// or more. An exploration puts the most steps that it has seen so far in place of a zero.
    Pct {
        /// Ordering constraints that a bug is thought to need; at least one.
        depth: u32,
        /// Steps that a run is thought to take.
        steps: u64,
    },
    /// All schedules that take the turn from a task that could go on at most this often, depth
    /// first, each once. A single run with it is the first of them, which never does so.
    Exhaustive {
        /// Switches away from a task that could go on. Others are free.
        preemptions_max: u32,
    },
}

/// One place where more than one task could be chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Choice {
    /// Who was.
    pub(super) chosen: u16,
    /// Who ran before and could have gone on.
    pub(super) current: Option<u16>,
    /// Who could be chosen, a bit for each of the first 64 tasks.
    pub(super) candidates: u64,
}

/// The memory of a strategy during a run.
pub(super) enum Picker {
    Random {
        rng: Rng,
        switch_one_in: u64,
    },
    Pct(Pct),
    /// Whoever runs goes on while it can; then whoever comes next, round and round.
    Steady,
    Script(Script),
}

pub(super) struct Pct {
    rng: Rng,
    priorities: Vec<u64>,
    /// The steps at which the running task falls, and to which priority; the first comes last.
    falls: Vec<(u64, u64)>,
    /// The priority of the next task that spins: below all that have fallen before.
    lowest: u64,
}

/// Priorities from here on are those that tasks begin with.
const FIRST_PRIORITY: u64 = 1 << 63;

impl Picker {
    pub(super) fn new(strategy: Strategy, rng: Rng) -> Self {
        match strategy {
            Strategy::Drawn => Self::random(rng, None),
            Strategy::SwitchOneIn(one_in) => Self::random(rng, Some(one_in)),
            Strategy::Pct { depth, steps } => Self::Pct(Pct::new(rng, depth, steps)),
            Strategy::Exhaustive { .. } => Self::Steady,
        }
    }

    fn random(mut rng: Rng, one_in: Option<u32>) -> Self {
        let switch_one_in = match one_in {
            None => [1, 2, 4, 16, 64][rng.below(5) as usize],
            Some(one_in) => u64::from(one_in.max(1)),
        };
        Self::Random { rng, switch_one_in }
    }

    /// There is another task.
    pub(super) fn add(&mut self) {
        if let Self::Pct(pct) = self {
            let priority = FIRST_PRIORITY | pct.rng.next();
            pct.priorities.push(priority);
        }
    }

    /// `me` took the step with this number; `spins` if it found nothing to do.
    pub(super) fn step(&mut self, me: TaskId, nr_steps: u64, spins: bool) {
        match self {
            Self::Pct(pct) => pct.step(me, nr_steps, spins),
            Self::Script(script) => script.step(me),
            Self::Random { .. } | Self::Steady => {}
        }
    }

    /// Who of `candidates`, which are two at least and ascend, has the turn. `current` is the one
    /// of them that has it now.
    pub(super) fn pick(&mut self, me: TaskId, current: Option<u16>, candidates: &[u16]) -> u16 {
        let steady = || current.unwrap_or_else(|| next_after(me, candidates));
        match self {
            Self::Random { rng, switch_one_in } => match current {
                Some(current) if *switch_one_in > 1 && !rng.one_in(*switch_one_in) => current,
                _ => candidates[rng.below(candidates.len() as u64) as usize],
            },
            Self::Pct(pct) => pct.highest(candidates),
            Self::Steady => steady(),
            Self::Script(script) => script.pick(candidates).unwrap_or_else(steady),
        }
    }

    /// Who of `candidates` is woken.
    pub(super) fn pick_woken(&mut self, candidates: &[u16]) -> u16 {
        match self {
            Self::Random { rng, .. } | Self::Pct(Pct { rng, .. }) => {
                candidates[rng.below(candidates.len() as u64) as usize]
            }
            Self::Steady => candidates[0],
            Self::Script(script) => script.pick_woken(candidates),
        }
    }
}

/// Round and round, so that two tasks that spin do not keep a third from what they wait for.
fn next_after(me: TaskId, candidates: &[u16]) -> u16 {
    let later = candidates.iter().find(|&&id| usize::from(id) > me);
    *later.unwrap_or(&candidates[0])
}

impl Pct {
    fn new(mut rng: Rng, depth: u32, steps: u64) -> Self {
        let nr_falls = if steps == 0 {
            0
        } else {
            u64::from(depth.max(1)) - 1
        };
        let fall = |nth| (1 + rng.below(steps), FIRST_PRIORITY / 2 + nth);
        let mut falls: Vec<_> = (0..nr_falls).map(fall).collect();
        falls.sort_unstable_by(|a, b| b.cmp(a));
        Self {
            rng,
            priorities: Vec::with_capacity(8),
            falls,
            lowest: FIRST_PRIORITY / 2,
        }
    }

    fn step(&mut self, me: TaskId, nr_steps: u64, spins: bool) {
        while let Some(&(at, priority)) = self.falls.last() {
            if at > nr_steps {
                break;
            }
            self.priorities[me] = priority;
            self.falls.pop();
        }
        if spins {
            // Its priority would keep those from running for whom it waits.
            self.lowest -= 1;
            self.priorities[me] = self.lowest;
        }
    }

    fn highest(&self, candidates: &[u16]) -> u16 {
        let highest = candidates
            .iter()
            .max_by_key(|&&id| self.priorities[usize::from(id)]);
        *highest.expect("there are two candidates at least")
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Drawn => f.write_str("drawn"),
            Self::SwitchOneIn(one_in) => write!(f, "random:{one_in}"),
            Self::Pct { depth, steps } => write!(f, "pct:{depth}:{steps}"),
            Self::Exhaustive { preemptions_max } => write!(f, "exhaustive:{preemptions_max}"),
        }
    }
}

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(text: &str) -> Result<Self, UnknownStrategy> {
        let mut parts = text.split(':');
        let name = parts.next();
        let mut number = || {
            parts
                .next()
                .map(|part| part.parse().map_err(|_| UnknownStrategy))
        };
        let number_or = |number: Option<Result<u32, _>>, default| number.unwrap_or(Ok(default));
        let strategy = match name {
            Some("drawn") => Self::Drawn,
            Some("random") => Self::SwitchOneIn(number_or(number(), 1)?),
            Some("pct") => Self::Pct {
                depth: number_or(number(), 3)?,
                steps: u64::from(number_or(number(), 0)?),
            },
            Some("exhaustive") => Self::Exhaustive {
                preemptions_max: number_or(number(), 2)?,
            },
            _ => return Err(UnknownStrategy),
        };
        if parts.next().is_some() {
            return Err(UnknownStrategy);
        }
        Ok(strategy)
    }
}

/// A text that names no strategy.
///
/// Those that do: `drawn`, `random:ONE_IN`, `pct:DEPTH:STEPS` and `exhaustive:PREEMPTIONS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownStrategy;

impl fmt::Display for UnknownStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no strategy: drawn, random:ONE_IN, pct:DEPTH:STEPS, exhaustive:PREEMPTIONS")
    }
}

impl core::error::Error for UnknownStrategy {}
