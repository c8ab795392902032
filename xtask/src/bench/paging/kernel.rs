//! The peer's side: the kernel's memory cgroup with a hard limit, and compressed swap (zram).
//!
//! Both are the machine's own, so whoever switches them on must switch them off again, however
//! this process ends. A *keeper*, a process in a group of its own that no Ctrl-C reaches, does
//! both: it sets up, says where, waits until its standard input ends, which is when this process
//! has ended in whatever way, and takes down what it set up, and only that.

use super::super::report::BenchError;
use super::program::{LIMIT_BYTES, NR_PAGES, PAGE_BYTES, Region};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const ZRAM_CONTROL: &str = "/sys/class/zram-control";
/// Room for what is swapped, by its size before it is compressed.
const DISK_BYTES: u64 = 2 << 30;
/// How long the keeper waits for who is still in the group, and for a device to come free.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);

/// Ordinary memory of a process.
pub(super) struct Ordinary(Vec<AtomicU64>);

const WORDS: usize = PAGE_BYTES / size_of::<u64>();

impl Ordinary {
    pub(super) fn new() -> Self {
        Self(
            (0..NR_PAGES as usize * WORDS)
                .map(|_| AtomicU64::new(0))
                .collect(),
        )
    }

    fn word(&self, page: u32, word: usize) -> &AtomicU64 {
        &self.0[page as usize * WORDS + word]
    }
}

impl Region for Ordinary {
    fn fill(&self, page: u32, contents: &[u8; PAGE_BYTES]) -> Result<(), BenchError> {
        for (at, bytes) in contents.as_chunks().0.iter().enumerate() {
            self.word(page, at)
                .store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        Ok(())
    }

    fn read(&self, page: u32, word: usize) -> Result<u64, BenchError> {
        Ok(self.word(page, word).load(Ordering::Relaxed))
    }

    fn write(&self, page: u32, word: usize, value: u64) -> Result<(), BenchError> {
        self.word(page, word).store(value, Ordering::Relaxed);
        Ok(())
    }

    fn attached(&self, body: &mut dyn FnMut() -> Result<(), BenchError>) -> Result<(), BenchError> {
        body()
    }

    fn peak_bytes(&self) -> Option<u64> {
        None
    }
}

/// What the keeper has set up.
#[derive(Clone, Serialize, Deserialize)]
struct SetUp {
    group: PathBuf,
    /// Where the kernel says how much memory the group has used at most; reset by writing.
    peak: String,
    zram: PathBuf,
    swappiness: String,
}

/// The keeper's first line.
#[derive(Serialize, Deserialize)]
enum Answer {
    Ready(SetUp),
    Refused(String),
}

/// A limit and compressed swap that are there while this lives.
pub(super) struct Peer {
    set_up: SetUp,
    keeper: Child,
}

impl Peer {
    /// Sets both up; the error says why this machine cannot.
    pub(super) fn start() -> Result<Self, BenchError> {
        let own = |error: io::Error| BenchError(format!("cannot start the keeper: {error}"));
        let program = std::env::current_exe().map_err(own)?;
        let mut keeper = Command::new(program)
            .args([super::PART, super::KEEPER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(own)?;
        let mut line = String::new();
        if let Some(stdout) = keeper.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(own)?;
        }
        match serde_json::from_str(&line) {
            Ok(Answer::Ready(set_up)) => Ok(Self { set_up, keeper }),
            Ok(Answer::Refused(why)) => {
                let _ = keeper.wait();
                Err(BenchError(why))
            }
            Err(error) => {
                let _ = keeper.wait();
                Err(BenchError(format!("the keeper answered nonsense: {error}")))
            }
        }
    }

    /// Puts a process into the group, and starts counting anew.
    pub(super) fn admit(&self, process: u32) -> Result<(), BenchError> {
        // Old kernels let the peak of a group not be reset: then it is that of all runs.
        let _ = fs::write(self.set_up.group.join(&self.set_up.peak), "0");
        write(&self.set_up.zram.join("mem_used_max"), "0")?;
        write(
            &self.set_up.group.join("cgroup.procs"),
            &process.to_string(),
        )
    }

    /// The most memory that the process took since: in the group, and in the compressed swap.
    pub(super) fn peak_bytes(&self) -> Option<u64> {
        let frames = fs::read_to_string(self.set_up.group.join(&self.set_up.peak)).ok()?;
        let frames: u64 = frames.trim().parse().ok()?;
        let pool = fs::read_to_string(self.set_up.zram.join("mm_stat")).ok()?;
        // orig_data_size compr_data_size mem_used_total mem_limit mem_used_max ...
        let pool: u64 = pool.split_whitespace().nth(4)?.parse().ok()?;
        Some(frames.min(LIMIT_BYTES) + pool)
    }

    /// Under which conditions it was measured.
    pub(super) fn about(&self) -> String {
        format!(
            "peer: memory cgroup {} with zram (lz4) swap, swappiness {}",
            self.set_up.group.display(),
            self.set_up.swappiness
        )
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let is_clean = self.keeper.wait().is_ok_and(|status| status.success());
        if !is_clean {
            eprintln!("the limit or the swap of the peer could not be switched off, see above");
        }
    }
}

/// The life of a keeper.
pub(super) fn keep() -> Result<(), BenchError> {
    let mut undo = Undo::default();
    let answer = match set_up(&mut undo) {
        Ok(set_up) => Answer::Ready(set_up),
        Err(BenchError(why)) => Answer::Refused(why),
    };
    let is_ready = matches!(answer, Answer::Ready(_));
    let line = serde_json::to_string(&answer).map_err(|error| BenchError(error.to_string()))?;
    // Whoever started the keeper may be gone already, and then the input has ended, too.
    let _ = writeln!(io::stdout(), "{line}");
    if is_ready {
        let _ = io::stdin().read_to_end(&mut Vec::new());
    }
    undo.all()
}

fn write(path: &Path, text: &str) -> Result<(), BenchError> {
    fs::write(path, text)
        .map_err(|error| BenchError(format!("cannot write {}: {error}", path.display())))
}

fn command(name: &str, args: &[&str]) -> Result<(), BenchError> {
    let output = Command::new(name).args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|error| BenchError(format!("cannot run {name}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(BenchError(format!("{name} failed: {}", said.trim())))
}

fn set_up(undo: &mut Undo) -> Result<SetUp, BenchError> {
    let (group, peak, swappiness) = set_up_group(undo)?;
    let zram = set_up_swap(undo)?;
    Ok(SetUp {
        group,
        peak: peak.into(),
        zram,
        swappiness,
    })
}

/// A memory cgroup with the limit, of the version that the machine has.
fn set_up_group(undo: &mut Undo) -> Result<(PathBuf, &'static str, String), BenchError> {
    let name = format!("pinless-bench-{}", std::process::id());
    let first = Path::new("/sys/fs/cgroup/memory");
    let unified = Path::new("/sys/fs/cgroup");
    let (root, limit, peak) = if first.join("memory.limit_in_bytes").exists() {
        (first, "memory.limit_in_bytes", "memory.max_usage_in_bytes")
    } else {
        let on = fs::read_to_string(unified.join("cgroup.subtree_control")).unwrap_or_default();
        if !on
            .split_whitespace()
            .any(|controller| controller == "memory")
        {
            return Err(BenchError("no memory cgroup can be made here".into()));
        }
        (unified, "memory.max", "memory.peak")
    };
    let group = root.join(name);
    fs::create_dir(&group)
        .map_err(|error| BenchError(format!("no memory cgroup: {}: {error}", group.display())))?;
    undo.group = Some(group.clone());
    write(&group.join(limit), &LIMIT_BYTES.to_string())?;
    let swappiness = fs::read_to_string(group.join("memory.swappiness"))
        .or_else(|_| fs::read_to_string("/proc/sys/vm/swappiness"))
        .unwrap_or_else(|_| "unknown".into());
    Ok((group, peak, swappiness.trim().to_owned()))
}

/// A new zram device, in use as swap before any other.
fn set_up_swap(undo: &mut Undo) -> Result<PathBuf, BenchError> {
    let control = Path::new(ZRAM_CONTROL);
    // To read it is to make a device.
    let number = fs::read_to_string(control.join("hot_add"))
        .map_err(|error| BenchError(format!("no zram: {}/hot_add: {error}", control.display())))?;
    let number = number.trim();
    undo.zram = Some(number.to_owned());
    let zram = PathBuf::from(format!("/sys/block/zram{number}"));
    write(&zram.join("comp_algorithm"), "lz4")?;
    write(&zram.join("disksize"), &DISK_BYTES.to_string())?;
    let device = format!("/dev/zram{number}");
    command("mkswap", &[&device])?;
    // Set before it is true, so that it is tried whatever happens.
    undo.swap = Some(device.clone());
    command("swapon", &["--priority", "32767", &device])?;
    Ok(zram)
}

/// What was switched on; switched off again by [`Undo::all`], or when dropped.
#[derive(Default)]
struct Undo {
    group: Option<PathBuf>,
    zram: Option<String>,
    swap: Option<String>,
}

impl Undo {
    fn all(&mut self) -> Result<(), BenchError> {
        let group = self.group.take();
        let emptied = group.as_deref().map_or(Ok(()), wait_until_empty);
        let swap = self.swap.take().filter(|device| is_swapped_on(device));
        let off = swap.map_or(Ok(()), |device| command("swapoff", &[&device]));
        let removed = self
            .zram
            .take()
            .map_or(Ok(()), |number| remove_zram(&number));
        let gone = group.map_or(Ok(()), |group| {
            patiently(|| fs::remove_dir(&group))
                .map_err(|error| BenchError(format!("cannot remove {}: {error}", group.display())))
        });
        emptied.and(off).and(removed).and(gone)
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Err(error) = self.all() {
            eprintln!("keeper: {error}");
        }
    }
}

/// Repeats what fails while the kernel still holds on to something.
fn patiently(mut attempt: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Err(_) if begun.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
}

/// Runs end by themselves when who started them has gone.
fn wait_until_empty(group: &Path) -> Result<(), BenchError> {
    patiently(|| match fs::read_to_string(group.join("cgroup.procs"))? {
        text if text.is_empty() => Ok(()),
        _ => Err(io::ErrorKind::ResourceBusy.into()),
    })
    .map_err(|error| BenchError(format!("{} does not get empty: {error}", group.display())))
}

fn is_swapped_on(device: &str) -> bool {
    // When it cannot be known, it is tried.
    fs::read_to_string("/proc/swaps").map_or(true, |text| {
        text.lines()
            .any(|line| line.split_whitespace().next() == Some(device))
    })
}

fn remove_zram(number: &str) -> Result<(), BenchError> {
    let reset = PathBuf::from(format!("/sys/block/zram{number}/reset"));
    let remove = Path::new(ZRAM_CONTROL).join("hot_remove");
    patiently(|| fs::write(&reset, "1"))
        .and_then(|()| patiently(|| fs::write(&remove, number)))
        .map_err(|error| BenchError(format!("cannot remove zram{number}: {error}")))
}
