//! Complaints in the kernel's log: which lines are one, and whether they are about the program.

use serde::Serialize;

/// How a complaint of the kernel begins. An OOM kill also dumps a stack; it is none of these.
const HEADERS: [&str; 12] = [
    "WARNING: ",
    "BUG: ",
    "kernel BUG at ",
    "Oops: ",
    "general protection fault",
    "INFO: task ",
    "INFO: rcu",
    "watchdog: ",
    "UBSAN: ",
    "KFENCE: ",
    "unregister_netdevice: waiting",
    "refcount_t: ",
];

/// Lines of one complaint that are kept.
const LINES_MAX: usize = 60;

/// A complaint of the kernel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Complaint {
    /// Whether it names the program, the reaper, or a device that the program had open.
    pub(crate) is_about_program: bool,
    pub(crate) lines: Vec<String>,
}

/// The complaints among the lines of the log; `words` are the names that make one ours.
pub(super) fn complaints(log: &[String], words: &[String]) -> Vec<Complaint> {
    let mut complaints: Vec<Complaint> = Vec::new();
    let mut is_open = false;
    for line in log {
        if HEADERS.iter().any(|header| line.contains(header)) {
            is_open = true;
            complaints.push(Complaint {
                is_about_program: false,
                lines: Vec::new(),
            });
        }
        let Some(complaint) = complaints.last_mut().filter(|_| is_open) else {
            continue;
        };
        complaint.is_about_program |= words.iter().any(|word| line.contains(word.as_str()));
        complaint.lines.push(line.clone());
        is_open = complaint.lines.len() < LINES_MAX && !line.starts_with("---[ end trace");
    }
    complaints
}

/// The words that name a program and its devices in a complaint.
pub(super) fn words<'a>(
    names: impl Iterator<Item = &'a String>,
    tasks: impl Iterator<Item = &'a u32>,
    devices: impl Iterator<Item = &'a String>,
) -> Vec<String> {
    let mut words = vec!["oom_reaper".to_owned()];
    words.extend(names.map(|name| format!("Comm: {name}")));
    words.extend(tasks.map(|task| format!("PID: {task} ")));
    for device in devices {
        // The functions of a driver begin with its name: kvm-vm and kvm-vcpu:0 are kvm.
        let parts = device.split(|c: char| !c.is_ascii_alphabetic());
        words.extend(
            parts
                .take(1)
                .filter(|part| part.len() >= 3)
                .map(str::to_owned),
        );
    }
    words.sort();
    words.dedup();
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(log: &[&str], expected: &[(bool, usize)]) {
        let names = ["leaker".to_owned()];
        let devices = ["kvm-vm".to_owned(), "tun".to_owned()];
        let words = words(names.iter(), [42].iter(), devices.iter());
        let log: Vec<String> = log.iter().map(|&line| line.to_owned()).collect();
        let found = complaints(&log, &words);
        let seen: Vec<(bool, usize)> = found
            .iter()
            .map(|complaint| (complaint.is_about_program, complaint.lines.len()))
            .collect();
        assert_eq!(seen, expected, "{log:?}");
    }

    #[test]
    fn complaints_are_told_from_an_ordinary_kill() {
        check(
            &[
                "leaker invoked oom-killer: gfp_mask=0xcc0, order=0",
                "CPU: 1 UID: 0 PID: 42 Comm: leaker Not tainted 6.18.0",
                "Call Trace:",
                "Memory cgroup out of memory: Killed process 42 (leaker)",
                "leaker[42]: segfault at 0",
            ],
            &[],
        );
        check(
            &[
                "WARNING: CPU: 1 PID: 42 at mm/driver.c:1 f+0x1",
                "CPU: 1 UID: 0 PID: 42 Comm: leaker Not tainted",
                "---[ end trace 0000000000000000 ]---",
                "something else",
            ],
            &[(true, 3)],
        );
        check(
            &["WARNING: CPU: 0 PID: 7 at net/x.c:1", " f+0x1"],
            &[(false, 2)],
        );
        check(
            &["BUG: sleeping function called", " kvm_mmu_notifier_x+0x1"],
            &[(true, 2)],
        );
        check(
            &["INFO: task oom_reaper:60 blocked for more than 120 seconds."],
            &[(true, 1)],
        );
    }
}
