//! What the kit says of a device, as text and as JSON.

use super::scene::Scene;
use super::stage::{BEGIN, Figures, JUDGED, OVER};
use super::{Invariant, Need, Pattern, breach_of};
use crate::scheduler::{End, Run, Step};
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

/// Steps that are shown of a run that does not end.
const STUCK_STEPS_MAX: usize = 60;

/// What was found out about a device.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The name it was judged under.
    pub name: String,
    /// Where chance started.
    pub seed: u64,
    /// Schedules that were to be tried of each scene.
    pub schedules: u64,
    /// Runs that were made.
    pub runs: u64,
    /// Each invariant, with its grade.
    pub grades: BTreeMap<Invariant, Grade>,
    /// Figures, by name.
    pub graded: Vec<Graded>,
    /// What broke.
    pub convictions: Vec<Conviction>,
    #[serde(skip)]
    pattern: Option<Pattern>,
    #[serde(skip)]
    judged: BTreeMap<Invariant, u64>,
}

/// How a device does with one invariant.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// It held in this many runs that could have broken it.
    Pass(u64),
    /// It broke: see the convictions.
    Fail,
    /// The share of cases, in percent, in which the device is worse than it might be.
    Share(f64),
    /// It broke so often, which is no failure for devices of this kind.
    Times(u64),
    /// Not asked of devices of this kind.
    Exempt,
    /// No scene was played that could have broken it.
    Unseen,
}

/// A figure.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Graded {
    /// What is counted.
    pub name: &'static str,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
}

/// An invariant that broke, and how to see it.
#[derive(Clone, Debug, Serialize)]
pub struct Conviction {
    /// Which.
    pub invariant: Invariant,
    /// The guarantee of the memory manager behind it.
    pub guarantee: &'static str,
    /// The scene that it broke in.
    pub scene: &'static str,
    /// What was seen.
    pub what: String,
    /// Steps that are shown, from where the device was set up: before, there is nothing to choose.
    /// A lock that is taken and let go of with nothing between is one step. Where nobody gets any
    /// further, the first ones.
    pub steps: u64,
    /// How often another task went on in it.
    pub switches: usize,
    /// The seed of the run.
    pub seed: u64,
    /// The options that were drawn for it.
    pub options: BTreeMap<&'static str, u64>,
    /// A line for a shell that makes the run again, in a test.
    pub replay: String,
    /// The steps, a column a task.
    pub timeline: String,
    /// Whether nobody got any further.
    pub is_stuck: bool,
}

impl Serialize for Invariant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl Conviction {
    pub(super) fn of(scene: &Scene, run: &Run) -> Self {
        let (invariant, what) = match breach_of(&run.end) {
            Some((invariant, what)) => (invariant, what.to_owned()),
            // A panic of the device, or nobody gets any further.
            None => (scene.stuck, run.end.to_string()),
        };
        let steps = shown(run);
        Self {
            invariant,
            guarantee: invariant.guarantee(),
            scene: scene.name,
            what,
            steps: steps.len() as u64,
            switches: run.nr_switches(),
            seed: run.seed,
            options: run.knobs.iter().copied().collect(),
            replay: run.replay_command().unwrap_or_default(),
            timeline: run.timeline_of(&steps),
            is_stuck: is_stuck(run),
        }
    }
}

fn is_stuck(run: &Run) -> bool {
    !matches!(run.end, End::Panicked { .. })
}

/// The steps of a run that are shown, from where the device was set up.
pub(super) fn shown(run: &Run) -> Vec<Step> {
    let steps = run.steps_after(BEGIN);
    let place = |class| steps.iter().position(|step| step.class == class);
    let nr = match (place(OVER), place(JUDGED)) {
        // What is wrong is what is left: how the device was detached has no part in it.
        (Some(over), Some(_)) => over + 1,
        _ => steps.len(),
    };
    let mut folded = run.folded(&steps[..nr]);
    if is_stuck(run) {
        // What goes round and round is the same from some step on.
        folded.truncate(STUCK_STEPS_MAX);
    }
    folded
}

impl Report {
    pub(super) fn new(name: &str, seed: u64, schedules: u64, pattern: Option<Pattern>) -> Self {
        Self {
            name: name.to_owned(),
            seed,
            schedules,
            runs: 0,
            grades: BTreeMap::new(),
            graded: Vec::new(),
            convictions: Vec::new(),
            pattern,
            judged: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self, scene: &Scene, nr_runs: u64, found: Option<Conviction>) {
        self.runs += nr_runs;
        for &invariant in scene.judges {
            *self.judged.entry(invariant).or_default() += nr_runs;
        }
        self.convictions.extend(found);
    }

    /// Whether one of `wanted` has broken.
    pub fn convicts(&self, wanted: &[Invariant]) -> bool {
        let is_wanted = |conviction: &Conviction| wanted.contains(&conviction.invariant);
        self.convictions.iter().any(is_wanted)
    }

    /// Whether nothing broke.
    pub fn has_passed(&self) -> bool {
        self.convictions.is_empty()
    }

    /// The invariants that broke.
    pub fn broken(&self) -> impl Iterator<Item = Invariant> {
        self.convictions
            .iter()
            .map(|conviction| conviction.invariant)
    }

    /// The report as JSON.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report is numbers and strings")
    }

    pub(super) fn close(&mut self, figures: &Figures) {
        let refused = share(&figures.unrelated_refused, &figures.unrelated);
        let stalled = share(&figures.beside_stalled, &figures.beside);
        for invariant in Invariant::ALL {
            let need = self
                .pattern
                .map_or(Need::Must, |pattern| pattern.need(invariant));
            let nr_runs = self.judged.get(&invariant).copied().unwrap_or(0);
            let grade = match need {
                _ if self.convicts(&[invariant]) => Grade::Fail,
                Need::Nothing => Grade::Exempt,
                _ if nr_runs == 0 => Grade::Unseen,
                Need::Graded if invariant == Invariant::P8 => Grade::Share(stalled),
                Need::Graded => match figures.graded[invariant as usize].load(Relaxed) {
                    0 => Grade::Pass(nr_runs),
                    times => Grade::Times(times),
                },
                Need::Must => Grade::Pass(nr_runs),
            };
            self.grades.insert(invariant, grade);
        }
        let ns = |figure: &AtomicU64| figure.load(Relaxed) as f64;
        let graded = |name, value, unit| Graded { name, value, unit };
        self.graded = vec![
            graded("unrelated ranges refused", refused, "%"),
            graded("users stalled by unrelated ranges", stalled, "%"),
            graded(
                "longest non-blockable start",
                ns(&figures.start_ns_max),
                "virtual ns",
            ),
            graded("pages freed late", ns(&figures.late_ns_max), "virtual ns"),
        ];
    }
}

fn share(part: &AtomicU64, whole: &AtomicU64) -> f64 {
    let whole = whole.load(Relaxed).max(1);
    100.0 * part.load(Relaxed) as f64 / whole as f64
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, runs, seed) = (&self.name, self.runs, self.seed);
        writeln!(f, "{name}: {runs} runs from seed {seed}")?;
        for (invariant, grade) in &self.grades {
            let text = invariant.text();
            writeln!(f, "  {:4} {:8} {text}", invariant.name(), grade.to_string())?;
        }
        for Graded { name, value, unit } in &self.graded {
            writeln!(f, "  {name}: {value:.0} {unit}")?;
        }
        self.convictions
            .iter()
            .try_for_each(|one| write!(f, "{one}"))
    }
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass(_) => f.pad("pass"),
            Self::Fail => f.pad("FAIL"),
            Self::Share(share) => f.pad(&format!("{share:.0} %")),
            Self::Times(times) => f.pad(&format!("{times} x")),
            Self::Exempt => f.pad("-"),
            Self::Unseen => f.pad("unseen"),
        }
    }
}

impl fmt::Display for Conviction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (invariant, scene, what) = (self.invariant, self.scene, &self.what);
        writeln!(
            f,
            "{invariant} ({}) broke in the scene `{scene}`:",
            self.guarantee
        )?;
        writeln!(f, "  owed: {}", invariant.text())?;
        writeln!(f, "  seen: {what}")?;
        writeln!(f, "{}", self.timeline)?;
        let (steps, switches) = (self.steps, self.switches);
        writeln!(f, "{steps} steps with {switches} switches of tasks")?;
        writeln!(f, "to see it again: {}", self.replay)
    }
}
