//! Arguments, and what the help says of them.

use clap::{Parser, Subcommand, ValueEnum};
use core::fmt;
use core::str::FromStr;
use pinless::Checks;
use std::ffi::OsString;
use std::path::PathBuf;

/// Memory that devices use, overcommitted: pages move, devices are told.
#[derive(Parser, Debug)]
#[command(name = "pinless", version, about, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What can be done.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run the main job: four times more memory than the limit, used by threads and devices
    Run(RunArgs),
    /// Judge driver models by every invariant, and find the faults of the zoo in them
    Conform(ConformArgs),
    /// Let the kernel OOM-kill a program in a small cgroup, and judge how its memory comes back
    Teardown(TeardownArgs),
    /// Use memory and devices in every way at random, under pressure, until something is wrong
    Torture(TortureArgs),
    /// Takes up memory in the group of a teardown test
    #[command(name = crate::cmd::teardown::press::PART, hide = true)]
    TeardownPress,
}

const CONFORM_HELP: &str = "\
What happens:
  Each driver model is made for a small memory and used, while pages are taken
  away under it in many ways, on simulated threads, under hundreds of schedules.
  What breaks is shown with a schedule made short. Then each fault of the zoo is
  put into the models that can have it: it has to be found. With all faults off
  nothing may be found. `as shipped` is a model with the faults that its kernel
  has.

Examples:
  pinless conform                          everything
  pinless conform radeon                   one driver, in all its variants
  pinless conform kfd-now --bug 10         one fault, with its schedule
  pinless conform --json - | jq .zoo

Exit codes:
  0 all faults found and no driver wrongly convicted, 1 otherwise, 2 it could
  not be judged as asked";

/// Options of `pinless conform`.
#[derive(clap::Args, Debug)]
#[command(after_help = CONFORM_HELP)]
pub(crate) struct ConformArgs {
    /// The driver: `kvm` for all its variants, or `kvm-2018` [default: all]
    #[arg(value_name = "DRIVER")]
    pub(crate) driver: Option<String>,

    /// Only this fault of the zoo, by its number
    #[arg(long, value_name = "N")]
    pub(crate) bug: Option<u8>,

    /// Only this scene
    #[arg(long, value_name = "NAME")]
    pub(crate) scene: Option<String>,

    /// Schedules to try of each scene; of a fault that does not show, up to 16 times more
    #[arg(long, value_name = "N", default_value_t = pinless_sim::conformance::Kit::SCHEDULES,
          value_parser = clap::value_parser!(u64).range(3..=10_000_000))]
    pub(crate) schedules: u64,

    /// Where chance starts
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,

    /// How far the accesses of devices are checked: with less than generations faults are missed
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = Checked::Generation)]
    pub(crate) checks: Checked,

    /// Write the report as JSON to FILE; `-` prints it instead of the table
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// The text below the options of `pinless teardown`.
pub(crate) const TEARDOWN_HELP: &str = "\
What happens:
  The program starts in a memory cgroup of its own. Its limit is set, the
  program hits it, and the kernel's OOM killer takes it. From then on it is
  watched, every 2 ms and through trace events, until the last page is back.
  This is the test for a driver whose MMU notifiers must not block: if one of
  them does, or holds on to pages, it shows here. The group, its processes and
  the tracing are gone again at the end, also after Ctrl-C.

  --hold makes the test strict. A program that can die frees its memory itself,
  and the kernel's reaper has nothing to do. With --hold the address space is
  kept as by a driver that hangs, so the reaper must free it, two seconds after
  the kill, and every notifier is asked without blocking.

  ready-fd: the program writes a line feed to the descriptor whose number is in
  the variable PINLESS_READY_FD, when its memory is in place; then the limit is
  set. Cgroup v1 takes no limit below what is in use: it is set near it, and a
  helper in the group takes up the rest.

Verdicts, from good to bad, with their exit codes (the worst round counts):
  0  clean             all memory came back in time, nobody complained
  3  slow              it came back, but later than --slow
  4  kernel complaint  a WARN, BUG or lockdep splat names the program or driver
  5  stuck             after --stuck seconds something is still there (says where)
  6  reaper gave up    a notifier refused in all ten passes
  7  second victim     another process died before the first one's memory was back

Examples:
  pinless teardown -- ./my-driver-test --all
  pinless teardown --hold --repeat 20 -- ./my-driver-test
  pinless teardown --limit 256M --limit-when rss-stable -- qemu-system-x86_64 ...
  pinless teardown --json - -- ./my-driver-test | jq .rounds[0].timeline

Exit codes:
  0 and 3 to 7 as above, 1 a bug of pinless, 2 it could not be tested (the
  reason is on stderr), 130 ended by Ctrl-C. `exit_code` in the JSON is the same";

/// Options of `pinless teardown`.
#[derive(clap::Args, Debug)]
#[command(after_help = TEARDOWN_HELP)]
pub(crate) struct TeardownArgs {
    /// The hard limit of the group: 64M, 1G, ...
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    pub(crate) limit: Bytes,

    /// When the limit is set
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = LimitWhen::Start)]
    pub(crate) limit_when: LimitWhen,

    /// Swap that the group may use beyond it
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub(crate) swap: Bytes,

    /// Keep the address space after the kill, so that the kernel's reaper has to free it
    #[arg(long)]
    pub(crate) hold: bool,

    /// How many times
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) repeat: u32,

    /// Seconds to wait for the limit to be hit
    #[arg(long, value_name = "N", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) patience: u64,

    /// Milliseconds in which memory must be back (with --hold: after the reaper woke up)
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pub(crate) slow: u64,

    /// Seconds after which what is not back is stuck
    #[arg(long, value_name = "N", default_value_t = 20,
          value_parser = clap::value_parser!(u64).range(5..=86_400))]
    pub(crate) stuck: u64,

    /// Make the group in this one [default: the group of this process, or one above it]
    #[arg(long, value_name = "DIR")]
    pub(crate) cgroup: Option<PathBuf>,

    /// Write the report as JSON to FILE; `-` prints it instead of the table
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<OsString>,
}

/// When the limit of a teardown test is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum LimitWhen {
    /// Before the program starts: it runs into the limit while it grows
    Start,
    /// When its memory has not grown for half a second
    RssStable,
    /// When it says so
    ReadyFd,
}

impl fmt::Display for LimitWhen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::RssStable => "rss-stable",
            Self::ReadyFd => "ready-fd",
        })
    }
}

const TORTURE_HELP: &str = "\
What happens:
  Address spaces come and go. In each one threads use memory through addresses
  and guards, map, unmap, pin, lock, page out and give up pages; two driver
  models of the table do DMA, and io_uring writes pages out and reads them back.
  Meanwhile bounds change, address spaces are killed, and the process forks.
  Each byte read is compared with a model, and the lock validator watches. The
  first thing that is wrong ends it, with the command that does the same again.

  The seed decides what each thread does, in which order. How the threads meet
  is the machine's affair: what one run found, the next may need longer for.

Examples:
  pinless torture                            10 s, another seed each time
  pinless torture --seed 7 --seconds 600
  pinless torture --inject skip-notifier     a broken run: must be caught

Exit codes:
  0 everything held, 1 something did not (stderr says what, and how to see it
  again), 2 it could not be run as asked, 130 ended by Ctrl-C before the end";

/// Options of `pinless torture`.
#[derive(clap::Args, Debug)]
#[command(after_help = TORTURE_HELP)]
pub(crate) struct TortureArgs {
    /// What everybody does follows from it [default: from the clock]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// How long it goes on
    #[arg(long, value_name = "N", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub(crate) seconds: u64,

    /// Write the report as JSON to FILE; `-` prints it instead of the table
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Files to fill memory with [default: the repository around the current directory]
    #[arg(long, value_name = "PATH")]
    pub(crate) input: Option<PathBuf>,

    /// Break something on purpose: it must be noticed
    #[arg(long, value_enum, value_name = "FAULT")]
    pub(crate) inject: Option<Injection>,

    /// How far the accesses of devices are checked
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = Checked::Generation)]
    pub(crate) checks: Checked,

    /// Leave io_uring out
    #[arg(long)]
    pub(crate) no_io_uring: bool,
}

const RUN_HELP: &str = "\
What happens:
  Tenants load real files into managed memory through io_uring, four times as
  much as may be resident. Then, all at once: threads read and write it at
  random, two devices do DMA on it without pinning it, and io_uring writes it
  out and reads it back. Each byte read is compared with a model. Pages are
  compressed and brought back throughout. At two thirds of the time one tenant
  starts to leak, while one of its devices hangs, until it is killed for it;
  the others go on. At the end all memory is hashed against the model.

Examples:
  pinless run                                the files around you, 64M, 10 s
  pinless run --input /usr/share/doc --limit 256M --tenants 8 --seconds 60
  pinless run --json - | jq .oom             only the report, as JSON
  pinless run --inject skip-notifier         a broken run: must be caught
  pinless run --scenario oom-2018            who dies when a reaper gives up

Exit codes:
  0 everything held, 1 something did not (stderr says which page, device and
  step), 2 it could not be run as asked, 130 ended by Ctrl-C before the end";

/// Options of `pinless run`.
#[derive(clap::Args, Debug)]
#[command(after_help = RUN_HELP)]
pub(crate) struct RunArgs {
    /// Files to load: a file, or a directory with all below it but .git and target
    /// [default: the repository around the current directory]
    #[arg(long, value_name = "PATH")]
    pub(crate) input: Option<PathBuf>,

    /// The most memory that may be resident (memory.max): 64M, 1G, ...
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    pub(crate) limit: Bytes,

    /// The most compressed memory (memory.zswap.max) [default: twice the limit]
    #[arg(long, value_name = "SIZE")]
    pub(crate) zswap: Option<Bytes>,

    /// Address spaces that share the limit; one of them will leak
    #[arg(long, value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u32).range(2..=64))]
    pub(crate) tenants: u32,

    /// How long the work goes on, loading and the last check not counted
    #[arg(long, value_name = "N", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) seconds: u64,

    /// Write the report as JSON to FILE; `-` prints it instead of the table
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Repeat the choices of an earlier run, as far as threads can [default: from the clock]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// How threads reach memory that is not there
    #[arg(long, value_enum, default_value_t = FaultModes::Mixed)]
    pub(crate) fault_mode: FaultModes,

    /// Break something on purpose: the run must notice, and exit with 1
    #[arg(long, value_enum, value_name = "FAULT")]
    pub(crate) inject: Option<Injection>,

    /// Tell a short story instead of the main job
    #[arg(long, value_enum, conflicts_with_all = ["inject", "input", "tenants", "seconds"])]
    pub(crate) scenario: Option<Scenario>,

    /// Leave io_uring out
    #[arg(long)]
    pub(crate) no_io_uring: bool,
}

/// How the threads of the tenants reach memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum FaultModes {
    /// One after the other, over the tenants
    Mixed,
    /// Service threads resolve the faults
    Service,
    /// The faulting thread resolves them, in its SIGBUS handler
    InThread,
    /// Guards make pages resident before they are used
    Guard,
}

/// A story.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Scenario {
    /// Out of memory beside a device that hangs, with our reaper; beside it, that of 2018
    Oom,
    /// The same, with the reaper first that gives up when a notifier might block
    #[value(name = "oom-2018")]
    Oom2018,
}

/// What is broken on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Injection {
    /// Devices are not told of changes
    SkipNotifier,
    /// Devices are told that a change is over before it is made
    LateEnd,
    /// The compressed store loses a page that it acknowledged
    LostStore,
    /// A bit of the compressed store changes
    CorruptSlot,
}

/// How far the accesses of devices are checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Checked {
    /// The generation of a frame, before each access and after it
    Generation,
    /// Only what is found in the frame, as on hardware
    Poison,
    /// Not at all
    Off,
}

impl Checked {
    pub(crate) const fn level(self) -> Checks {
        match self {
            Self::Generation => Checks::Generation,
            Self::Poison => Checks::Poison,
            Self::Off => Checks::Off,
        }
    }

    /// The end of a command that is to do the same again.
    pub(crate) const fn option(self) -> &'static str {
        match self {
            Self::Generation => "",
            Self::Poison => " --checks poison",
            Self::Off => " --checks off",
        }
    }
}

/// A size on the command line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Bytes(pub(crate) u64);

/// Why a size is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BytesError;

impl fmt::Display for BytesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size is a number with K, M, G or T behind it, like 64M")
    }
}

impl std::error::Error for BytesError {}

impl FromStr for Bytes {
    type Err = BytesError;

    fn from_str(text: &str) -> Result<Self, BytesError> {
        let text = text.trim();
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "" | "B" => 0,
            "K" | "KB" | "KIB" => 10,
            "M" | "MB" | "MIB" => 20,
            "G" | "GB" | "GIB" => 30,
            "T" | "TB" | "TIB" => 40,
            _ => return Err(BytesError),
        };
        let number: u64 = digits.parse().map_err(|_| BytesError)?;
        number.checked_mul(1 << shift).map(Self).ok_or(BytesError)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
        for (shift, unit) in units {
            if self.0 >> shift == 0 {
                continue;
            }
            return if self.0.is_multiple_of(1 << shift) {
                write!(f, "{}{unit}", self.0 >> shift)
            } else {
                write!(f, "{:.1}{unit}", self.0 as f64 / (1_u64 << shift) as f64)
            };
        }
        write!(f, "{} B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, bytes: Option<u64>, shown: &str) {
        let parsed = text.parse::<Bytes>().ok();
        assert_eq!(parsed.map(|bytes| bytes.0), bytes, "{text}");
        if let Some(parsed) = parsed {
            assert_eq!(parsed.to_string(), shown, "{text}");
        }
    }

    #[test]
    fn sizes_are_read_and_shown() {
        check("64M", Some(64 << 20), "64M");
        check("1g", Some(1 << 30), "1G");
        check("1536K", Some(1536 << 10), "1.5M");
        check("4096", Some(4096), "4K");
        check(" 8MiB ", Some(8 << 20), "8M");
        check("0", Some(0), "0 B");
        check("100", Some(100), "100 B");
        for bad in ["", "M", "1.5M", "64X", "-1", "99999999T"] {
            check(bad, None, "");
        }
    }

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
