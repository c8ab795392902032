//! What came of a judgement, for people and machines.

use super::judge::{Judged, What};
use crate::args::ConformArgs;
use pinless_devices::zoo::{Home, Origin};
use pinless_devices::{BugInfo, zoo};
use pinless_sim::conformance::{self, Conviction, Invariant};
use serde::Serialize;
use std::collections::BTreeSet;

/// The report.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Whether all came out as it should.
    pub(crate) ok: bool,
    pub(crate) seed: u64,
    pub(crate) schedules: u64,
    /// Runs of the simulator.
    pub(crate) runs: u64,
    pub(crate) zoo: Zoo,
    pub(crate) drivers: Vec<Driver>,
}

/// How the kit does with the zoo.
#[derive(Debug, Serialize)]
pub(crate) struct Zoo {
    /// Faults that were to be accounted for.
    pub(crate) total: usize,
    /// Those that were: found, or shown elsewhere.
    pub(crate) accounted: usize,
    /// Drivers without a fault that were convicted.
    pub(crate) false_convictions: usize,
    /// How long the schedules are that show them.
    pub(crate) lengths: Lengths,
    pub(crate) bugs: Vec<Bug>,
}

/// Steps of the schedules that show faults.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Lengths {
    /// Faults in drivers that are shown by a schedule.
    pub(crate) shown: usize,
    /// Those whose schedule has at most [`STEPS_SHORT`] steps.
    pub(crate) short: usize,
    pub(crate) median: u64,
    pub(crate) longest: u64,
}

/// Steps of a schedule that can be read at a glance.
pub(crate) const STEPS_SHORT: u64 = 60;

/// One fault.
#[derive(Debug, Serialize)]
pub(crate) struct Bug {
    pub(crate) number: u8,
    pub(crate) line: &'static str,
    pub(crate) origin: &'static str,
    pub(crate) breaks: &'static [&'static str],
    pub(crate) accounted: bool,
    /// `kit`, `property test` or `compile-fail test`.
    pub(crate) by: &'static str,
    /// The test, if it was not the kit.
    pub(crate) test: Option<&'static str>,
    /// In which drivers it was looked for.
    pub(crate) verdicts: Vec<Verdict>,
}

/// One fault in one driver.
#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    pub(crate) driver: String,
    /// By which invariant it was found.
    pub(crate) found: Option<Invariant>,
    /// What else was found.
    pub(crate) also: Vec<Invariant>,
    pub(crate) conviction: Option<Conviction>,
}

/// One driver.
#[derive(Debug, Serialize)]
pub(crate) struct Driver {
    pub(crate) name: String,
    pub(crate) pattern: &'static str,
    /// Whether nothing was found in it with all faults off.
    pub(crate) ok: bool,
    pub(crate) report: conformance::Report,
    /// The faults that its kernel has, by number, and what was found with them on.
    pub(crate) shipped: Vec<u8>,
    pub(crate) findings: Vec<Invariant>,
}

impl Report {
    pub(crate) fn new(args: &ConformArgs, judged: Vec<Judged>) -> Self {
        let runs = judged.iter().map(|judged| judged.report.runs).sum();
        let is_whole = args.driver.is_none() && args.bug.is_none();
        let drivers = drivers(args, &judged);
        let false_convictions = drivers.iter().filter(|driver| !driver.ok).count();
        let bugs: Vec<Bug> = zoo()
            .iter()
            .filter_map(|info| bug(args, info, &judged, is_whole))
            .collect();
        let accounted = bugs.iter().filter(|bug| bug.accounted).count();
        Self {
            ok: accounted == bugs.len() && false_convictions == 0,
            seed: args.seed,
            schedules: args.schedules,
            runs,
            zoo: Zoo {
                total: bugs.len(),
                accounted,
                false_convictions,
                lengths: Lengths::of(&bugs),
                bugs,
            },
            drivers,
        }
    }
}

impl Lengths {
    fn of(bugs: &[Bug]) -> Self {
        let verdicts = bugs.iter().flat_map(|bug| &bug.verdicts);
        let shown = verdicts.filter_map(Verdict::shown);
        let mut steps: Vec<u64> = shown.map(|one| one.steps).collect();
        steps.sort_unstable();
        Self {
            shown: steps.len(),
            short: steps.partition_point(|&nr| nr <= STEPS_SHORT),
            median: steps.get(steps.len() / 2).copied().unwrap_or(0),
            longest: steps.last().copied().unwrap_or(0),
        }
    }
}

impl Verdict {
    /// The conviction, if it is of what was found.
    pub(crate) fn shown(&self) -> Option<&Conviction> {
        let conviction = self.conviction.as_ref();
        conviction.filter(|one| self.found == Some(one.invariant))
    }
}

fn drivers(args: &ConformArgs, judged: &[Judged]) -> Vec<Driver> {
    let mut drivers: Vec<Driver> = Vec::new();
    for Judged {
        job,
        report,
        schedules,
    } in judged
    {
        let model = job.model;
        match job.what {
            What::Fixed => {
                let name = model.full_name();
                let mut report = report.clone();
                for one in &mut report.convictions {
                    one.replay = command(args, &name, *schedules, one);
                }
                drivers.push(Driver {
                    name,
                    pattern: model.pattern.letter(),
                    ok: report.has_passed(),
                    report,
                    shipped: model.shipped.iter().map(|bug| bug.number()).collect(),
                    findings: Vec::new(),
                });
            }
            What::Shipped => {
                let name = model.full_name();
                let driver = drivers.iter_mut().find(|driver| driver.name == name);
                if let Some(driver) = driver {
                    driver.findings = distinct(report.broken());
                }
            }
            What::Bug(_) | What::Core(..) => {}
        }
    }
    drivers
}

fn distinct(all: impl Iterator<Item = Invariant>) -> Vec<Invariant> {
    let set: BTreeSet<Invariant> = all.collect();
    set.into_iter().collect()
}

/// The row of a fault; none if it was not asked for.
fn bug(
    args: &ConformArgs,
    info: &'static BugInfo,
    judged: &[Judged],
    is_whole: bool,
) -> Option<Bug> {
    let is_of_it = |judged: &&Judged| match judged.job.what {
        What::Bug(of) | What::Core(of, _) => of.bug == info.bug,
        _ => false,
    };
    let verdicts: Vec<Verdict> = judged
        .iter()
        .filter(is_of_it)
        .map(|judged| verdict(args, info, judged))
        .collect();
    if verdicts.is_empty() && !is_whole {
        return None;
    }
    let (by, test) = match info.home {
        Home::Model | Home::Core(_) => ("kit", None),
        Home::Inexpressible(test) => ("compile-fail test", Some(test)),
        Home::Property(test) => ("property test", Some(test)),
    };
    let is_found = !verdicts.is_empty() && verdicts.iter().all(|one| one.found.is_some());
    Some(Bug {
        number: info.bug.number(),
        line: info.line,
        origin: match info.origin {
            Origin::Real => "real",
            Origin::Near => "near",
            Origin::Synthetic => "synthetic",
        },
        breaks: info.breaks,
        accounted: test.is_some() || is_found,
        by,
        test,
        verdicts,
    })
}

fn verdict(args: &ConformArgs, info: &BugInfo, judged: &Judged) -> Verdict {
    let found = judged.found();
    let mut conviction = judged
        .report
        .convictions
        .iter()
        .find(|one| Some(one.invariant) == found)
        .or(judged.report.convictions.first())
        .cloned();
    let driver = judged.job.model.full_name();
    let what = format!("{driver} --bug {}", info.bug.number());
    if let Some(one) = &mut conviction {
        one.replay = command(args, &what, judged.schedules, one);
    }
    let also = judged.report.broken().filter(|&one| Some(one) != found);
    Verdict {
        driver,
        found,
        also: distinct(also),
        conviction,
    }
}

/// A line for a shell that shows it again: the command itself, not a test.
fn command(args: &ConformArgs, what: &str, schedules: u64, of: &Conviction) -> String {
    let (scene, seed) = (of.scene, args.seed);
    let checks = args.checks.option();
    format!("pinless conform {what} --scene {scene} --seed {seed} --schedules {schedules}{checks}")
}
