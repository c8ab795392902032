//! A report as a table of 80 columns.

use crate::args::Bytes;
use crate::cmd::run::report::{Device, Latency, Report, TenantReport};
use core::fmt::Write;

/// Columns of a terminal that nobody made wider.
const WIDTH: usize = 80;

/// Columns of the names on the left.
const NAME_WIDTH: usize = 14;

/// The report as text that ends in a line feed.
pub(crate) fn table(report: &Report) -> String {
    let mut table = Table::default();
    head(&mut table, report);
    memory(&mut table, report);
    machinery(&mut table, report);
    devices(&mut table, &report.devices);
    tenants(&mut table, &report.tenants);
    if let Some(oom) = &report.oom {
        table.rule("out of memory");
        for line in oom.lines() {
            table.wrapped(&line);
        }
    }
    if !report.notes.is_empty() {
        table.rule("notes");
        for note in &report.notes {
            table.wrapped(note);
        }
    }
    table.rule("");
    let verdict = match (report.ok, report.interrupted) {
        (true, false) => "everything held".to_owned(),
        (true, true) => "ended early by Ctrl-C; what was seen so far held".to_owned(),
        (false, _) => format!("{} things did not hold: see below", report.nr_failures),
    };
    table.line(&verdict);
    table.into_text()
}

/// What did not hold, a line each.
pub(crate) fn failures(report: &Report) -> Vec<String> {
    let told = report.failures.iter();
    let mut lines: Vec<_> = told
        .map(|failure| format!("pinless: failed: {failure}"))
        .collect();
    let untold = report.nr_failures.saturating_sub(lines.len() as u64);
    if untold > 0 {
        lines.push(format!("pinless: and {untold} more"));
    }
    lines
}

fn head(table: &mut Table, report: &Report) {
    table.rule("pinless run");
    let input = &report.input;
    table.row(
        "input",
        &format!(
            "{} files, {} from {}",
            input.files,
            Bytes(input.bytes),
            input.path
        ),
    );
    let managed = Bytes(report.managed_bytes);
    table.row(
        "managed",
        &format!(
            "{managed} in {} tenants, seed {}",
            report.tenants.len(),
            report.seed
        ),
    );
    table.row(
        "work",
        &format!(
            "{} operations in {:.1} s, after {:.1} s of loading",
            count(report.operations),
            report.work_seconds,
            report.load_seconds
        ),
    );
    table.row(
        "verified",
        &format!(
            "{}, {} pages wrong, {} stale DMA",
            Bytes(report.bytes_verified),
            report.hash_mismatches,
            report.stale_dma
        ),
    );
}

fn memory(table: &mut Table, report: &Report) {
    table.rule("memory");
    let of = |peak, bound| format!("peak {} of {}", Bytes(peak), Bytes(bound));
    table.row("frames", &of(report.charge_peak_bytes, report.limit_bytes));
    let zswap = of(report.zswap_peak_bytes, report.zswap_limit_bytes);
    let ratio = report.compression_ratio;
    table.row("compressed", &format!("{zswap}, {ratio:.2} : 1"));
    let (start, end) = (report.rss_other_start_bytes, report.rss_other_end_bytes);
    if end > 0 {
        let text = format!("{} at first, {} before the leak", Bytes(start), Bytes(end));
        table.row("other memory", &text);
    }
}

fn machinery(table: &mut Table, report: &Report) {
    let faults = &report.faults;
    table.rule("faults, evictions and invalidations");
    let latency = |latency: Latency| {
        format!(
            "{:>9}   p50 {:>9}   p99 {:>9}",
            count(latency.count),
            time(latency.p50_ns),
            time(latency.p99_ns)
        )
    };
    table.row("soft faults", &latency(faults.soft));
    table.row("hard faults", &latency(faults.hard));
    let (zero, protect) = (count(faults.zero), count(faults.write_protect));
    let waited = count(faults.waited);
    table.row(
        "other faults",
        &format!("{zero} zero, {protect} write-protected; {waited} waited for a frame"),
    );
    table.row("evictions", &count(report.evictions));
    for event in &report.invalidations.by_event {
        if event.nonblock + event.blockable > 0 {
            let (nonblock, blockable) = (count(event.nonblock), count(event.blockable));
            let text = format!("{nonblock} non-blockable, {blockable} blockable");
            table.row(&format!("told {}", event.event), &text);
        }
    }
    table.row(
        "refused",
        &format!(
            "{}; {} not settled in time",
            count(report.refusals),
            report.stuck
        ),
    );
}

fn devices(table: &mut Table, devices: &[Device]) {
    table.rule("devices");
    table.line(&format!(
        "{:22}{:>11}{:>11}{:>12}{:>10}{:>7}{:>7}",
        "", "operations", "verified", "told", "refused", "stale", "errors"
    ));
    for device in devices {
        table.line(&format!(
            "{:22}{:>11}{:>11}{:>12}{:>10}{:>7}{:>7}",
            device.name,
            count(device.operations),
            Bytes(device.bytes_verified).to_string(),
            count(device.invalidations),
            count(device.refusals),
            device.stale,
            device.errors
        ));
    }
}

fn tenants(table: &mut Table, tenants: &[TenantReport]) {
    table.rule("tenants");
    for tenant in tenants {
        let end = match &tenant.memory_hash {
            _ if tenant.killed => "killed".to_owned(),
            _ if tenant.pages_wrong + tenant.pages_unreadable > 0 => {
                let (wrong, lost) = (tenant.pages_wrong, tenant.pages_unreadable);
                format!("{wrong} pages wrong, {lost} lost")
            }
            Some(hash) => format!("hash {hash}"),
            None => "not hashed".to_owned(),
        };
        let (operations, bytes) = (count(tenant.operations), Bytes(tenant.bytes));
        table.row(
            &tenant.name,
            &format!(
                "{:10} {operations:>9} operations, {bytes}: {end}",
                tenant.access
            ),
        );
    }
}

/// Lines, none wider than the table.
#[derive(Debug, Default)]
pub(crate) struct Table {
    text: String,
}

impl Table {
    pub(crate) fn into_text(self) -> String {
        self.text
    }

    pub(crate) fn rule(&mut self, title: &str) {
        let title = match title {
            "" => String::new(),
            title => format!(" {title} "),
        };
        let _ = writeln!(self.text, "--{title:-<78}");
    }

    pub(crate) fn row(&mut self, name: &str, value: &str) {
        self.line(&format!("{name:NAME_WIDTH$} {value}"));
    }

    /// A line; what is too long is cut, in the middle, where paths are least telling.
    pub(crate) fn line(&mut self, line: &str) {
        let nr_chars = line.chars().count();
        if nr_chars <= WIDTH {
            let _ = writeln!(self.text, "{}", line.trim_end());
            return;
        }
        let end = WIDTH / 2 - 2;
        let head: String = line.chars().take(WIDTH - end - 3).collect();
        let tail: String = line.chars().skip(nr_chars - end).collect();
        let _ = writeln!(self.text, "{head}...{tail}");
    }

    /// Lines that break between words.
    pub(crate) fn wrapped(&mut self, text: &str) {
        let mut line = String::new();
        for word in text.split(' ') {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > WIDTH {
                self.line(&line);
                line = " ".to_owned();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.line(&line);
    }
}

/// A number with room between the thousands.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A duration in the unit that suits it.
pub(crate) fn time(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} us", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_for_readers() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(time(999), "999 ns");
        assert_eq!(time(12_345), "12.3 us");
        assert_eq!(time(2_500_000_000), "2.5 s");
    }

    #[test]
    fn no_line_is_wider_than_the_table() {
        let mut table = Table::default();
        table.rule("title");
        table.rule("");
        table.row("name", &"x/".repeat(100));
        table.wrapped(&"some words ".repeat(30));
        for line in table.text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
    }
}
