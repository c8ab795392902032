//! Trace events of the kernel, in a buffer of our own.
//!
//! Events are switched on in an instance of tracefs that nobody else uses, so nobody else's
//! tracing changes; dropping it switches everything off again and removes it.
//!
//! Linux counterpart: `kernel/trace/trace.c`.

use core::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where tracefs is mounted, on machines that have it.
const ROOTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// An event to switch on.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Its subsystem.
    pub system: &'a str,
    /// Its name.
    pub event: &'a str,
    /// What to record, in the kernel's filter language; empty for everything.
    pub filter: &'a str,
}

/// An event that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// When, on the monotonic clock, in nanoseconds (to the microsecond).
    pub at_ns: u64,
    /// The thread in which it happened.
    pub task: u32,
    /// Its name, without the subsystem.
    pub name: String,
    /// Its fields, as the kernel prints them.
    pub fields: String,
}

impl Event {
    /// Takes a line of the kernel's `trace_pipe` apart: `  comm-123  [001] d..1. 14216.150121:
    /// event_name: fields`. None of what tells of no event.
    pub fn parse(line: &str) -> Option<Self> {
        // The name of a task may hold anything, so the line is taken apart from the processor's
        // brackets outwards.
        let mut from = 0;
        let (head, tail) = loop {
            let at = from + line[from..].find(" [")?;
            let tail = &line[at + 2..];
            let (processor, tail) = tail.split_once("] ")?;
            if !processor.is_empty() && processor.bytes().all(|byte| byte.is_ascii_digit()) {
                break (&line[..at], tail);
            }
            from = at + 2;
        };
        let task = head.trim_end().rsplit_once('-')?.1.parse().ok()?;
        let mut words = tail.splitn(3, ": ");
        let time = words.next()?.split_whitespace().next_back()?;
        let name = words.next()?;
        Some(Self {
            at_ns: nanoseconds(time)?,
            task,
            name: name.trim_end_matches(':').to_owned(),
            fields: words.next().unwrap_or_default().trim().to_owned(),
        })
    }

    /// The number in `key=NUMBER`.
    pub fn number(&self, key: &str) -> Option<u64> {
        let value = self.value(key)?;
        let digits = value.trim_end_matches(|c: char| !c.is_ascii_digit());
        digits.parse().ok()
    }

    /// The word in `key=WORD` (or `key:WORD`, as some events have it).
    pub fn value(&self, key: &str) -> Option<&str> {
        let words = self.fields.split_whitespace();
        let mut values = words.filter_map(|word| {
            let rest = word.strip_prefix(key)?;
            rest.strip_prefix('=').or_else(|| rest.strip_prefix(':'))
        });
        values.next()
    }
}

/// Why there is no tracing here.
#[derive(Debug)]
pub enum TraceError {
    /// No tracefs is mounted, or it may not be looked into.
    NoTracefs,
    /// The kernel refused an operation on a file.
    Refused {
        /// Which file.
        path: PathBuf,
        /// Its answer.
        error: io::Error,
    },
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTracefs => f.write_str("no tracefs, or not for this user"),
            Self::Refused { path, error } => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for TraceError {}

/// A trace buffer of our own with events switched on in it.
#[derive(Debug)]
pub struct Trace {
    dir: PathBuf,
    /// Taken out before the instance is removed: an open pipe keeps it busy.
    pipe: Option<File>,
    /// What has been read of a line that is not complete.
    partial: Vec<u8>,
    absent: Vec<String>,
    lost: u64,
}

impl Trace {
    /// Makes an instance `name` and switches the events on that this kernel has; the others are
    /// in [`Trace::absent`].
    ///
    /// # Errors
    ///
    /// Where tracefs is missing or may not be written to.
    pub fn start(name: &str, wanted: &[Wanted<'_>]) -> Result<Self, TraceError> {
        let root = root()?;
        let dir = root.join("instances").join(name);
        fs::create_dir(&dir).map_err(|error| refused(&dir, error))?;
        let mut trace = Self {
            dir,
            pipe: None,
            partial: Vec::new(),
            absent: Vec::new(),
            lost: 0,
        };
        // From here on dropping it cleans up.
        trace.write("trace_clock", "mono")?;
        for wanted in wanted {
            trace.enable(wanted)?;
        }
        let path = trace.dir.join("trace_pipe");
        let pipe = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path);
        trace.pipe = Some(pipe.map_err(|error| refused(&path, error))?);
        Ok(trace)
    }

    /// Events that this kernel does not have, as `system:event`.
    pub fn absent(&self) -> &[String] {
        &self.absent
    }

    /// How many events were overwritten before they were read.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// What happened since the last call.
    pub fn drain(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let Some(pipe) = &mut self.pipe else {
            return events;
        };
        let mut chunk = [0; 16 * 1024];
        // Nothing to read (EAGAIN) is the usual end.
        while let Ok(len @ 1..) = pipe.read(&mut chunk) {
            self.partial.extend_from_slice(&chunk[..len]);
        }
        let Some(end) = self.partial.iter().rposition(|&byte| byte == b'\n') else {
            return events;
        };
        let rest = self.partial.split_off(end + 1);
        let text = core::mem::replace(&mut self.partial, rest);
        for line in String::from_utf8_lossy(&text).lines() {
            self.lost += lost(line);
            events.extend(Event::parse(line));
        }
        events
    }

    fn enable(&mut self, wanted: &Wanted<'_>) -> Result<(), TraceError> {
        let event = Path::new("events").join(wanted.system).join(wanted.event);
        if !self.dir.join(&event).exists() {
            self.absent
                .push(format!("{}:{}", wanted.system, wanted.event));
            return Ok(());
        }
        if !wanted.filter.is_empty() {
            self.write(event.join("filter"), wanted.filter)?;
        }
        self.write(event.join("enable"), "1")
    }

    fn write(&self, name: impl AsRef<Path>, text: &str) -> Result<(), TraceError> {
        let path = self.dir.join(name);
        let file = OpenOptions::new().write(true).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| refused(&path, error))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        drop(self.pipe.take());
        // Removing an instance switches off what was on in it. Should that fail, at least nothing
        // is recorded any more.
        let _ = self.write("events/enable", "0");
        let _ = fs::remove_dir(&self.dir);
    }
}

/// Removes instances that processes left behind which could not clean up: those whose name is
/// `prefix` and the number of a process that is no more.
pub fn sweep(prefix: &str) {
    let Ok(root) = root() else { return };
    for dir in crate::memcg::abandoned(&root.join("instances"), prefix) {
        let _ = fs::remove_dir(dir);
    }
}

fn root() -> Result<&'static Path, TraceError> {
    let mut roots = ROOTS.iter().map(Path::new);
    roots
        .find(|root| root.join("instances").is_dir())
        .ok_or(TraceError::NoTracefs)
}

fn refused(path: &Path, error: io::Error) -> TraceError {
    TraceError::Refused {
        path: path.to_owned(),
        error,
    }
}

/// `CPU:1 [LOST 123 EVENTS]`
fn lost(line: &str) -> u64 {
    let told = line.split_once("[LOST ");
    let number = told.and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    number.unwrap_or(0)
}

/// Seconds with a decimal point, without rounding.
fn nanoseconds(time: &str) -> Option<u64> {
    let (seconds, fraction) = time.split_once('.')?;
    let seconds: u64 = seconds.parse().ok()?;
    let digits = u32::try_from(fraction.len()).ok().filter(|&len| len <= 9)?;
    let fraction: u64 = fraction.parse().ok()?;
    Some(seconds * 1_000_000_000 + fraction * 10_u64.pow(9 - digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: Option<(u64, u32, &str, &str)>) {
        let parsed = Event::parse(line);
        let seen = parsed.as_ref().map(|event| {
            let (name, fields) = (event.name.as_str(), event.fields.as_str());
            (event.at_ns, event.task, name, fields)
        });
        assert_eq!(seen, expected, "{line}");
    }

    #[test]
    fn lines_of_a_trace_are_taken_apart() {
        check(
            "           rustc-23626   [000] ..... 14216.340690: sched_process_exit: comm=a b pid=7",
            Some((
                14_216_340_690_000,
                23626,
                "sched_process_exit",
                "comm=a b pid=7",
            )),
        );
        check(
            "  <...>-12 [127] d..1. 1.5: kvm_unmap_hva_range: mmu notifier unmap range: 0x1 -- 0x2",
            Some((
                1_500_000_000,
                12,
                "kvm_unmap_hva_range",
                "mmu notifier unmap range: 0x1 -- 0x2",
            )),
        );
        // A task may be named like a processor, or like anything else.
        check(
            " a [x] b-1-9   [001] ..... 2.000001: wake_reaper: pid=9",
            Some((2_000_001_000, 9, "wake_reaper", "pid=9")),
        );
        check("CPU:1 [LOST 123 EVENTS]", None);
        check("# tracer: nop", None);
        check("", None);
        assert_eq!(lost("CPU:1 [LOST 123 EVENTS]"), 123);
        assert_eq!(lost("a line"), 0);
    }

    #[test]
    fn fields_are_found_by_name() {
        let event = Event {
            at_ns: 0,
            task: 1,
            name: "mark_victim".into(),
            fields: "pid=12 comm=leak anon-rss=100kB file-rss:20kB".into(),
        };
        assert_eq!(event.number("pid"), Some(12));
        assert_eq!(event.number("anon-rss"), Some(100));
        assert_eq!(event.number("file-rss"), Some(20));
        assert_eq!(event.number("rss"), None);
        assert_eq!(event.value("comm"), Some("leak"));
        assert_eq!(event.number("comm"), None);
    }
}
