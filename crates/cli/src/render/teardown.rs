//! The report of a teardown test as a table of 80 columns.

use super::term::{Table, count, time};
use crate::args::Bytes;
use crate::cmd::teardown::report::{Report, Round, Spread};

/// Steps of a timeline that are shown at each end.
const STEPS_SHOWN: usize = 12;
/// Functions of a stack that are shown.
const FUNCTIONS_SHOWN: usize = 6;

/// The report as text that ends in a line feed.
pub(crate) fn table(report: &Report) -> String {
    let mut table = Table::default();
    head(&mut table, report);
    // The worst is what people look for; the last of equals is the freshest.
    if let Some(round) = report.rounds.iter().max_by_key(|round| round.verdict) {
        outcome(&mut table, round);
        evidence(&mut table, round);
        timeline(&mut table, round);
    }
    if report.rounds.len() > 1 {
        rounds(&mut table, report);
    }
    if !report.notes.is_empty() {
        table.rule("notes");
        for note in &report.notes {
            table.wrapped(note);
        }
    }
    table.rule("");
    let verdict = match (report.verdict, report.interrupted) {
        (Some(verdict), false) => format!("verdict: {}", verdict.words()),
        (Some(verdict), true) => format!("ended early by Ctrl-C; so far: {}", verdict.words()),
        (None, _) => "ended by Ctrl-C before there was anything to judge".to_owned(),
    };
    table.line(&verdict);
    table.into_text()
}

/// What was wrong, a line each round.
pub(crate) fn failures(report: &Report) -> Vec<String> {
    let rounds = report.rounds.iter().enumerate();
    let bad = rounds.filter(|(_, round)| !round.verdict.is_good());
    bad.map(|(index, round)| {
        let words = round.verdict.words();
        format!("pinless: round {}: {words}: {}", index + 1, round.why)
    })
    .collect()
}

fn head(table: &mut Table, report: &Report) {
    table.rule("pinless teardown");
    table.row("program", &report.program.join(" "));
    let (limit, swap) = (Bytes(report.limit_bytes), Bytes(report.swap_bytes));
    let cgroup = report.cgroup.unwrap_or("-");
    let when = &report.limit_when;
    let text = format!("{limit} ({when}), swap {swap}, cgroup {cgroup}");
    table.row("limit", &text);
    if report.held {
        table.row(
            "held",
            "the address space, so that the reaper had to free it",
        );
    }
}

fn outcome(table: &mut Table, round: &Round) {
    table.rule("teardown");
    let hit = match round.start_to_kill_us {
        Some(us) => format!("yes, {} after the start", time(us * 1000)),
        None => "no".to_owned(),
    };
    table.row("limit hit", &hit);
    let usage = Bytes(round.usage_at_kill_bytes & !4095);
    for victim in &round.victims {
        let right = if victim.largest {
            "the right one"
        } else {
            "NOT the largest"
        };
        table.row(
            "killed",
            &format!(
                "{} ({}) with {}: {right}",
                victim.name,
                victim.pid,
                Bytes(victim.rss_bytes)
            ),
        );
    }
    let ended = round.exit.as_deref().unwrap_or("NOT ENDED");
    let after = |us: Option<u64>| match us {
        Some(us) => format!("{} after the kill", time(us * 1000)),
        None => "NOT SEEN".to_owned(),
    };
    table.row(
        "program gone",
        &format!("{}, {ended}", after(round.kill_to_exit_us)),
    );
    let back = after(round.kill_to_back_us);
    table.row("memory back", &format!("{back}; {usage} were charged"));
    let left = match round.left_bytes {
        0 => "nothing".to_owned(),
        bytes => format!("{} charged, after the page cache was dropped", Bytes(bytes)),
    };
    table.row("left behind", &left);
    if round.survivors > 0 {
        let text = format!(
            "{} processes of the program, ended by pinless",
            round.survivors
        );
        table.row("went on", &text);
    }
}

fn evidence(table: &mut Table, round: &Round) {
    let reaper = &round.reaper;
    let text = match (round.traced, reaper.woken, reaper.passes) {
        (false, ..) => "unknown, without trace events".to_owned(),
        (true, 0, 0) => "not needed: the program freed its memory itself".to_owned(),
        (true, woken, passes) => {
            let took = reaper.wake_to_finish_us.map_or(String::new(), |us| {
                format!(", done {} after it was woken", time(us * 1000))
            });
            let freed = reaper.freed_bytes.map_or(String::new(), |bytes| {
                format!(", freed {}", Bytes(bytes & !4095))
            });
            let gave_up = if reaper.gave_up { ", GAVE UP" } else { "" };
            format!("woken {woken}, {passes} passes{took}{freed}{gave_up}")
        }
    };
    table.row("reaper", &text);
    let told = &round.mmu_notifiers;
    let text = match (told.kvm_unmap_hva_range, told.kvm_unmap_hva_range_by_reaper) {
        (Some(program), Some(reaper)) => format!(
            "{} kvm_unmap_hva_range by the program, {} by the reaper",
            count(program),
            count(reaper)
        ),
        _ => "unknown, without trace events".to_owned(),
    };
    table.row("MMU notifiers", &text);
    if !round.devices.is_empty() {
        table.row("devices", &round.devices.join(", "));
    }
    if let (Some(some), Some(full)) = (round.stalled_some_us, round.stalled_full_us) {
        let (some, full) = (time(some * 1000), time(full * 1000));
        table.row("pressure", &format!("{some} some, {full} full"));
    }
    for task in &round.blocked {
        let at = task.wchan.as_deref().unwrap_or("an unknown place");
        let stack: Vec<&str> = task.stack.iter().map(String::as_str).collect();
        let shown = &stack[..stack.len().min(FUNCTIONS_SHOWN)];
        let long = time(task.seen_for_us * 1000);
        let text = format!("{} ({}) for {long} in {at}", task.name, task.task);
        table.row("slept", &text);
        if !shown.is_empty() {
            table.wrapped(&format!("  {}", shown.join(" < ")));
        }
    }
    if let Some(answer) = &round.mrelease {
        table.row("asked", answer);
    }
    complaints(table, round);
    if round.lost_events > 0 {
        table.row(
            "lost",
            &format!("{} trace events", count(round.lost_events)),
        );
    }
}

fn complaints(table: &mut Table, round: &Round) {
    let Some(complaints) = &round.complaints else {
        table.row("kernel log", "unknown, it cannot be read");
        return;
    };
    let ours = complaints.iter().filter(|it| it.is_about_program);
    let nr_ours = ours.clone().count();
    let text = match (nr_ours, complaints.len() - nr_ours) {
        (0, 0) => "no complaint".to_owned(),
        (ours, others) => format!("{ours} complaints about it, {others} about others"),
    };
    table.row("kernel log", &text);
    for complaint in ours {
        table.wrapped(&complaint.lines[0]);
    }
}

fn timeline(table: &mut Table, round: &Round) {
    table.rule("timeline, from the kill");
    let nr = round.timeline.len();
    for (index, step) in round.timeline.iter().enumerate() {
        let is_shown = index < STEPS_SHOWN || index + STEPS_SHOWN >= nr;
        if is_shown {
            let at = step.since_kill_us as f64 / 1e3;
            table.line(&format!("{at:>+12.3} ms  {}", step.what));
        } else if index == STEPS_SHOWN {
            table.line(&format!("{:>15}  {} more", "...", nr - 2 * STEPS_SHOWN));
        }
    }
}

fn rounds(table: &mut Table, report: &Report) {
    table.rule(&format!("{} rounds", report.rounds.len()));
    let good = report.rounds.iter().filter(|round| round.verdict.is_good());
    let text = format!("{} clean of {}", good.count(), report.rounds.len());
    table.row("verdicts", &text);
    let mut row = |name, spread: Option<Spread>, show: fn(u64) -> String| {
        if let Some(spread) = spread {
            let [min, median, max] = [spread.min, spread.median, spread.max].map(show);
            table.row(name, &format!("min {min}, median {median}, max {max}"));
        }
    };
    row("program gone", report.kill_to_exit, |us| time(us * 1000));
    row("memory back", report.kill_to_back, |us| time(us * 1000));
    row("KVM unmaps", report.kvm_unmap_hva_range, count);
}
