//! The verdict over a round.

use super::facts::{Blocked, Facts, Reaper};
use super::splat::Complaint;
use crate::args::Bytes;
use crate::exit::Exit;
use serde::Serialize;

/// How the teardown went; the better comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// All memory came back, in time, and nobody complained.
    Clean,
    /// It came back late.
    Slow,
    /// The kernel logged a complaint about the program or its driver.
    Complaint,
    /// It did not come back.
    Stuck,
    /// The kernel's reaper ended without having freed everything.
    ReaperGaveUp,
    /// Another process was killed before the first one's memory was back.
    SecondVictim,
}

impl Verdict {
    pub(crate) fn is_good(self) -> bool {
        self == Self::Clean
    }

    /// The code with which a test ends whose worst round went like this.
    pub(crate) fn exit(self) -> Exit {
        match self {
            Self::Clean => Exit::Held,
            Self::Slow => Exit::Slow,
            Self::Complaint => Exit::Complaint,
            Self::Stuck => Exit::Stuck,
            Self::ReaperGaveUp => Exit::ReaperGaveUp,
            Self::SecondVictim => Exit::SecondVictim,
        }
    }

    /// The words of the table.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Slow => "slow",
            Self::Complaint => "kernel complaint",
            Self::Stuck => "stuck",
            Self::ReaperGaveUp => "reaper gave up",
            Self::SecondVictim => "second victim",
        }
    }
}

/// What a teardown is measured by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measure {
    pub(super) slow_ns: u64,
    /// What may stay charged: the stock of charges that processors keep.
    pub(super) slack_bytes: u64,
    /// Whether the address space was held, so that the reaper had to do it.
    pub(super) is_held: bool,
}

/// Judges a round, and says why in a sentence.
pub(super) fn judge(
    facts: &Facts,
    complaints: &[Complaint],
    measure: Measure,
) -> (Verdict, String) {
    if let Some(why) = second_victim(facts) {
        return (Verdict::SecondVictim, why);
    }
    if let Some(line) = facts.gave_up() {
        let why = format!("the kernel says \"{line}\": a range was refused in every pass");
        return (Verdict::ReaperGaveUp, why);
    }
    if let Some(why) = stuck(facts, measure) {
        return (Verdict::Stuck, why);
    }
    let ours = complaints
        .iter()
        .find(|complaint| complaint.is_about_program);
    if let Some(complaint) = ours {
        let why = format!("the kernel's log says \"{}\"", complaint.lines[0]);
        return (Verdict::Complaint, why);
    }
    if let Some(why) = slow(facts, measure) {
        return (Verdict::Slow, why);
    }
    (Verdict::Clean, "all memory came back in time".to_owned())
}

fn second_victim(facts: &Facts) -> Option<String> {
    let mut earlier: Vec<&super::facts::At<super::facts::Victim>> = Vec::new();
    for victim in &facts.victims {
        let waiting = earlier.iter().find(|first| {
            let is_other = first.what.pid != victim.what.pid;
            is_other && first.what.gone_ns.is_none_or(|gone| gone > victim.ns)
        });
        if let Some(first) = waiting {
            return Some(format!(
                "{} ({}) was killed before the memory of {} ({}) was back",
                victim.what.name, victim.what.pid, first.what.name, first.what.pid
            ));
        }
        earlier.push(victim);
    }
    None
}

fn stuck(facts: &Facts, measure: Measure) -> Option<String> {
    if facts.empty_ns.is_none() {
        let who = facts.blocked.values().max_by_key(|task| task.last_ns);
        return Some(match who {
            Some(task) => format!(
                "{} is in state {} in {}",
                task.name,
                task.state,
                task.place()
            ),
            None => "a process is still there".to_owned(),
        });
    }
    let left = facts.left_bytes;
    // Files in a tmpfs outlive their program, and that is no fault of the teardown.
    let explained = facts.left.shmem + facts.left.file + facts.left.kernel;
    if left.saturating_sub(explained) > measure.slack_bytes {
        return Some(format!(
            "everybody has exited, and {} stay charged: pages are pinned, or the address space \
             is held",
            Bytes(left)
        ));
    }
    facts
        .back_ns
        .is_none()
        .then(|| "memory did not come back".to_owned())
}

fn slow(facts: &Facts, measure: Measure) -> Option<String> {
    let took = if measure.is_held {
        let since = facts.reaper_ns(Reaper::Woken).or(facts.kill_ns())?;
        let until = facts.reaper_ns(Reaper::Finished).or(facts.back_ns)?;
        until.saturating_sub(since)
    } else {
        // Who was not killed had a right to its memory until it was ended.
        let since = facts.survivors.as_ref().map(|at| at.ns);
        let all = facts.back_ns?.saturating_sub(since.or(facts.kill_ns())?);
        let victims = facts.victims.iter();
        let each = victims.filter_map(|at| Some(at.what.gone_ns?.saturating_sub(at.ns)));
        each.fold(all, u64::max)
    };
    (took > measure.slow_ns).then(|| {
        format!(
            "memory took {} ms to come back, {} are allowed{}",
            took / 1_000_000,
            measure.slow_ns / 1_000_000,
            longest_sleep(facts)
        )
    })
}

/// Who slept longest where its death did not wake it, if anybody did.
fn longest_sleep(facts: &Facts) -> String {
    let slept_ns = |task: &Blocked| task.last_ns - task.first_ns;
    let Some(task) = facts.blocked.values().max_by_key(|task| slept_ns(task)) else {
        return String::new();
    };
    format!(
        "; {} slept for {} ms in {}",
        task.name,
        slept_ns(task) / 1_000_000,
        task.place()
    )
}

#[cfg(test)]
mod tests {
    use super::super::facts::{At, Victim};
    use super::*;
    use pinless_host::memcg::Stat;

    const MS: u64 = 1_000_000;
    const MEASURE: Measure = Measure {
        slow_ns: 1000 * MS,
        slack_bytes: 1 << 20,
        is_held: false,
    };
    const HELD: Measure = Measure {
        is_held: true,
        ..MEASURE
    };

    fn victim(pid: u32, ms: u64, gone_ms: Option<u64>) -> At<Victim> {
        let what = Victim {
            pid,
            name: "leaker".into(),
            rss_bytes: 0,
            is_largest: true,
            gone_ns: gone_ms.map(|ms| ms * MS),
        };
        At { ns: ms * MS, what }
    }

    /// A round in which everything went well.
    fn good() -> Facts {
        let mut facts = Facts::default();
        facts.tasks.insert(1);
        facts.victims = vec![victim(1, 100, Some(104))];
        facts.empty_ns = Some(105 * MS);
        facts.back_ns = Some(105 * MS);
        facts
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Facts), measure: Measure, expected: Verdict) {
        let mut facts = good();
        change(&mut facts);
        let (verdict, why) = judge(&facts, &[], measure);
        assert_eq!(verdict, expected, "{why}");
    }

    #[test]
    fn each_way_to_go_wrong_has_its_verdict() {
        check(|_| (), MEASURE, Verdict::Clean);
        let after = |ms: u64| move |facts: &mut Facts| facts.back_ns = Some((100 + ms) * MS);
        check(after(1000), MEASURE, Verdict::Clean);
        check(after(1001), MEASURE, Verdict::Slow);
        check(|facts| facts.back_ns = None, MEASURE, Verdict::Stuck);
        check(|facts| facts.empty_ns = None, MEASURE, Verdict::Stuck);
        check(|facts| facts.left_bytes = 1 << 20, MEASURE, Verdict::Clean);
        check(|facts| facts.left_bytes = 9 << 20, MEASURE, Verdict::Stuck);
        let tmpfs = |facts: &mut Facts| {
            facts.left_bytes = 9 << 20;
            facts.left.shmem = 9 << 20;
        };
        check(tmpfs, MEASURE, Verdict::Clean);
        let line = "oom_reaper: unable to reap pid:1 (leaker)";
        check(
            |facts| facts.log.push(line.into()),
            MEASURE,
            Verdict::ReaperGaveUp,
        );
    }

    /// Scripts go by the codes, and people by the help and the manual: all say the same.
    #[test]
    fn each_verdict_has_its_own_code_and_is_told_with_it() {
        let manual = include_str!("../../../../../docs/teardown.md");
        let mut codes = std::collections::BTreeSet::new();
        for verdict in [
            Verdict::Clean,
            Verdict::Slow,
            Verdict::Complaint,
            Verdict::Stuck,
            Verdict::ReaperGaveUp,
            Verdict::SecondVictim,
        ] {
            let (code, words) = (u8::from(verdict.exit()), verdict.words());
            assert_eq!(code == 0, verdict.is_good(), "{words}");
            assert!(![1, 2, 130].contains(&code), "{words} has a code of others");
            assert!(codes.insert(code), "{words} has the code of another one");
            let row = format!("\n| {words} | {code} | ");
            assert!(manual.contains(&row), "{row} is not in docs/teardown.md");
            let line = format!("\n  {code}  {words:16}  ");
            assert!(crate::args::TEARDOWN_HELP.contains(&line), "{line}");
        }
        assert_eq!(codes.into_iter().collect::<Vec<_>>(), [0, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn a_second_victim_is_one_only_before_the_first_is_gone() {
        let second =
            |ms: u64| move |facts: &mut Facts| facts.victims.push(victim(2, ms, Some(200)));
        check(second(103), MEASURE, Verdict::SecondVictim);
        check(second(110), MEASURE, Verdict::Clean);
        // The kernel marks each thread that asks, so the same one may be marked twice.
        let again = |facts: &mut Facts| facts.victims.push(victim(1, 101, Some(104)));
        check(again, MEASURE, Verdict::Clean);
    }

    #[test]
    fn who_is_held_is_measured_from_the_reaper_on() {
        let reaped = |took: u64| {
            move |facts: &mut Facts| {
                let step = |ms: u64, step| At {
                    ns: ms * MS,
                    what: (step, 1),
                };
                facts.reaper = vec![
                    step(2100, Reaper::Woken),
                    step(2101, Reaper::Started),
                    step(2100 + took, Reaper::Finished),
                ];
                facts.back_ns = Some((2200 + took) * MS);
            }
        };
        check(reaped(5), HELD, Verdict::Clean);
        check(reaped(5), MEASURE, Verdict::Slow);
        check(reaped(1500), HELD, Verdict::Slow);
    }

    #[test]
    fn who_is_stuck_is_named_with_the_place() {
        let mut facts = good();
        facts.empty_ns = None;
        facts.left = Stat::default();
        let task = Blocked {
            name: "leaker".into(),
            state: 'D',
            wchan: Some("dma_fence_default_wait".into()),
            stack: Vec::new(),
            first_ns: 0,
            last_ns: 1,
        };
        facts.blocked.insert(1, task);
        let (verdict, why) = judge(&facts, &[], MEASURE);
        assert_eq!(verdict, Verdict::Stuck);
        assert_eq!(why, "leaker is in state D in dma_fence_default_wait");
    }

    #[test]
    fn a_complaint_counts_when_it_is_about_the_program() {
        let complaint = |is_about_program| Complaint {
            is_about_program,
            lines: vec!["WARNING: x".into()],
        };
        let facts = good();
        let ours = judge(&facts, &[complaint(false), complaint(true)], MEASURE);
        assert_eq!(ours.0, Verdict::Complaint);
        let other = judge(&facts, &[complaint(false)], MEASURE);
        assert_eq!(other.0, Verdict::Clean);
    }
}
