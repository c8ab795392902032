//! Who switches on the limit and the swap of the peer, and off again.
//!
//! Both are the machine's own, so whoever switches them on must switch them off again, however
//! the benchmark ends. A *keeper*, a process in a group of its own that no Ctrl-C reaches, does
//! both: it sets up, says where, waits until its standard input ends, which is when the benchmark
//! has ended in whatever way, and takes down what it set up. Where the keeper was killed as well,
//! the next one takes that down first: the group and the swap bear its number.

use super::super::report::BenchError;
use super::program::LIMIT_BYTES;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ZRAM_CONTROL: &str = "/sys/class/zram-control";
/// Room for what is swapped, by its size before it is compressed.
const DISK_BYTES: u64 = 2 << 30;
/// How long the keeper waits for who is still in the group, and for a device to come free.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);

/// What the names of groups and of swap areas begin with; the number of the keeper follows. The
/// name of a swap area has 16 bytes.
const NAME: &str = "pinless-";
/// Where a swap area has its name: behind the boot block, three words and an identifier of 16 bytes
/// (`union swap_header`).
const SWAP_NAME_AT: u64 = 1024 + 3 * 4 + 16;
const SWAP_NAME_LEN: usize = 16;

/// What the keeper has set up.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct SetUp {
    pub(super) group: PathBuf,
    /// Where the kernel says how much memory the group has used at most; reset by writing.
    pub(super) peak: String,
    pub(super) zram: PathBuf,
    pub(super) swappiness: String,
}

/// The keeper's first line.
#[derive(Serialize, Deserialize)]
pub(super) enum Answer {
    Ready(SetUp),
    Refused(String),
}

/// The life of a keeper.
pub(super) fn keep() -> Result<(), BenchError> {
    let mut undo = Undo::default();
    let answer = match sweep_and_set_up(&mut undo) {
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

pub(super) fn write(path: &Path, text: &str) -> Result<(), BenchError> {
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

/// One keeper at a time: what one takes down, another could be given meanwhile.
fn sweep_and_set_up(undo: &mut Undo) -> Result<SetUp, BenchError> {
    let one = File::open(ZRAM_CONTROL).and_then(|control| control.lock().map(|()| control));
    let _one = one.map_err(|error| BenchError(format!("no zram: {ZRAM_CONTROL}: {error}")))?;
    sweep();
    set_up(undo)
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
    let (root, limit, peak) = group_root()?;
    let group = root.join(own_name());
    fs::create_dir(&group)
        .map_err(|error| BenchError(format!("no memory cgroup: {}: {error}", group.display())))?;
    undo.group = Some(group.clone());
    write(&group.join(limit), &LIMIT_BYTES.to_string())?;
    let swappiness = fs::read_to_string(group.join("memory.swappiness"))
        .or_else(|_| fs::read_to_string("/proc/sys/vm/swappiness"))
        .unwrap_or_else(|_| "unknown".into());
    Ok((group, peak, swappiness.trim().to_owned()))
}

/// What this keeper sets up is called so.
fn own_name() -> String {
    format!("{NAME}{}", std::process::id())
}

/// Where groups are made, and the files with the limit and with the peak.
fn group_root() -> Result<(&'static Path, &'static str, &'static str), BenchError> {
    let first = Path::new("/sys/fs/cgroup/memory");
    let unified = Path::new("/sys/fs/cgroup");
    if first.join("memory.limit_in_bytes").exists() {
        return Ok((first, "memory.limit_in_bytes", "memory.max_usage_in_bytes"));
    }
    let on = fs::read_to_string(unified.join("cgroup.subtree_control")).unwrap_or_default();
    if !on
        .split_whitespace()
        .any(|controller| controller == "memory")
    {
        return Err(BenchError("no memory cgroup can be made here".into()));
    }
    Ok((unified, "memory.max", "memory.peak"))
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
    command("mkswap", &["--label", &own_name(), &device])?;
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

/// Takes down what dead keepers left. What cannot be taken down is told and stays: it spoils
/// figures, and that is to be seen.
fn sweep() {
    let groups = group_root().map(|(root, ..)| names_in(root).map(|name| root.join(name)));
    let groups = groups.into_iter().flatten().filter(|group| {
        let name = group.file_name().unwrap_or_default();
        is_of_the_dead(&name.to_string_lossy())
    });
    // A group goes after its swap is off; whatever is told, is told by the one that is dropped.
    let mut left: Vec<Undo> = zrams_of_the_dead().collect();
    left.extend(groups.map(|group| Undo {
        group: Some(group),
        zram: None,
        swap: None,
    }));
    drop(left);
}

fn names_in(folder: &Path) -> impl Iterator<Item = OsString> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.flatten().map(|entry| entry.file_name())
}

/// Whether somebody has this name who is a keeper no more. This one has nothing yet: what bears its
/// number was another's.
fn is_of_the_dead(name: &str) -> bool {
    let number = name.strip_prefix(NAME);
    let keeper = number.and_then(|number| number.parse::<u32>().ok());
    keeper.is_some_and(|keeper| {
        if keeper == std::process::id() {
            return true;
        }
        let command = fs::read(format!("/proc/{keeper}/cmdline")).unwrap_or_default();
        !String::from_utf8_lossy(&command).contains(super::KEEPER)
    })
}

fn zrams_of_the_dead() -> impl Iterator<Item = Undo> {
    let numbers = names_in(Path::new("/sys/block")).filter_map(|name| {
        let name = name.into_string().ok()?;
        name.strip_prefix("zram").map(str::to_owned)
    });
    numbers.filter_map(|number| {
        let device = format!("/dev/zram{number}");
        is_of_the_dead(&swap_name(&device).ok()?).then(|| Undo {
            zram: Some(number),
            swap: Some(device),
            group: None,
        })
    })
}

/// The name of a swap area.
fn swap_name(device: &str) -> io::Result<String> {
    let mut file = File::open(device)?;
    file.seek(SeekFrom::Start(SWAP_NAME_AT))?;
    let mut name = [0; SWAP_NAME_LEN];
    file.read_exact(&mut name)?;
    let text = String::from_utf8_lossy(&name);
    Ok(text.trim_end_matches('\0').to_owned())
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
