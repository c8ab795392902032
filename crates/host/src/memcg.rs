//! A memory cgroup of our own: made, limited, watched, and gone when dropped.
//!
//! Version 1 and version 2 of the kernel's interface; a machine has the memory controller in one
//! of them. Everything that is made here is unmade by a guard: the group, processes that are still
//! in it, and controllers that had to be switched on for it.
//!
//! Linux counterparts: `mm/memcontrol.c`, `mm/memcontrol-v1.c`, `kernel/cgroup/`.

use core::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a group that is dropped waits for its processes to be gone.
const EMPTY_PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// Which interface the machine's memory controller has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// `memory.limit_in_bytes`. A limit below what is in use is refused.
    V1,
    /// `memory.max`. A limit below what is in use holds, and runs into the OOM killer.
    V2,
}

impl Version {
    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// Why there is no group.
#[derive(Debug)]
pub enum MemcgError {
    /// The machine has no memory controller, or it is not mounted.
    NoController,
    /// The directory that was named is no memory cgroup.
    NotMemcg(PathBuf),
    /// The kernel refused an operation on a file.
    Refused {
        /// Which file or directory.
        path: PathBuf,
        /// Its answer.
        error: io::Error,
    },
    /// The limit is below what is in use, and this version does not take it.
    BelowUsage {
        /// What is in use, in bytes.
        usage_bytes: u64,
    },
}

impl fmt::Display for MemcgError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoController => f.write_str("this machine has no memory cgroup controller"),
            Self::NotMemcg(path) => write!(f, "{} is no memory cgroup", path.display()),
            Self::Refused { path, error } => write!(f, "{}: {error}", path.display()),
            Self::BelowUsage { usage_bytes } => {
                write!(f, "the limit is below the {usage_bytes} bytes in use")
            }
        }
    }
}

impl std::error::Error for MemcgError {}

/// What is charged to a group, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stat {
    /// Anonymous memory.
    pub anon: u64,
    /// Page cache of files, which the kernel can drop.
    pub file: u64,
    /// Shared memory: memfd and tmpfs.
    pub shmem: u64,
    /// The kernel's own memory, page tables among it.
    pub kernel: u64,
}

/// What happened to a group so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Events {
    /// How often the limit was hit.
    pub max: u64,
    /// How many processes the OOM killer has killed.
    pub oom_kill: u64,
}

/// A memory cgroup that is there while this lives.
#[derive(Debug)]
pub struct Memcg {
    path: PathBuf,
    version: Version,
    is_removed: bool,
    /// Dropped after the group: it stands above it.
    _above: Option<Above>,
}

impl Memcg {
    /// Makes a group `name` in `parent`; without one, in the group of this process, or the next
    /// one above it in which that is possible.
    ///
    /// # Errors
    ///
    /// No controller, or nowhere may a group be made: the refusal of the first place tried.
    pub fn create(parent: Option<&Path>, name: &str) -> Result<Self, MemcgError> {
        if let Some(parent) = parent {
            let version = version_of(parent)?;
            return Self::create_in(parent, version, name);
        }
        let home = Home::find()?;
        let mut first = None;
        let places = home.own.ancestors();
        for parent in places.take_while(|place| place.starts_with(&home.mount)) {
            match Self::create_in(parent, home.version, name) {
                Ok(memcg) => return Ok(memcg),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or(MemcgError::NoController))
    }

    fn create_in(parent: &Path, version: Version, name: &str) -> Result<Self, MemcgError> {
        let path = parent.join(name);
        fs::create_dir(&path).map_err(|error| refused(&path, error))?;
        let mut memcg = Self {
            path,
            version,
            is_removed: false,
            _above: None,
        };
        // From here on dropping it cleans up.
        if !memcg.path.join(memcg.limit_file()).exists() {
            memcg._above = Some(Above::enable(parent, name)?);
        }
        Ok(memcg)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its interface.
    pub fn version(&self) -> Version {
        self.version
    }

    /// A file that takes in the process that writes `0` to it.
    ///
    /// # Errors
    ///
    /// The kernel's, where processes may not be moved into this group.
    pub fn entry(&self) -> Result<File, MemcgError> {
        let path = self.path.join("cgroup.procs");
        let file = OpenOptions::new().write(true).open(&path);
        file.map_err(|error| refused(&path, error))
    }

    /// Sets the hard limit, in bytes.
    ///
    /// # Errors
    ///
    /// [`MemcgError::BelowUsage`] from version 1 only; otherwise what the kernel answers.
    pub fn set_max(&self, bytes: u64) -> Result<(), MemcgError> {
        let set = self.write(self.limit_file(), &bytes.to_string());
        set.map_err(|error| below(error, self.usage()))
    }

    /// Sets the hard limit in a thread of its own. Version 2 answers only when what is above the
    /// limit is gone, and whoever waits for that cannot look at what happens meanwhile.
    pub fn begin_set_max(&self, bytes: u64) -> JoinHandle<Result<(), MemcgError>> {
        let path = self.path.join(self.limit_file());
        std::thread::spawn(move || write(&path, &bytes.to_string()))
    }

    /// Bounds swap to `swap_bytes`, given the hard limit that is in force.
    ///
    /// # Errors
    ///
    /// Where the kernel does not account swap, or what it answers. Version 1 bounds the sum of
    /// memory and swap, and answers with [`MemcgError::BelowUsage`] when more of both is in use.
    pub fn set_swap_max(&self, max_bytes: u64, swap_bytes: u64) -> Result<(), MemcgError> {
        match self.version {
            Version::V1 => {
                let sum = max_bytes.saturating_add(swap_bytes).to_string();
                let set = self.write("memory.memsw.limit_in_bytes", &sum);
                set.map_err(|error| below(error, self.usage_with_swap()))
            }
            Version::V2 => self.write("memory.swap.max", &swap_bytes.to_string()),
        }
    }

    /// Keeps the kernel from making room in the group by swap. Version 1 would lower a limit below
    /// what is in use in that way, before swap can be bounded; version 2 bounds swap first.
    ///
    /// # Errors
    ///
    /// What the kernel answers.
    pub fn forbid_swap(&self) -> Result<(), MemcgError> {
        match self.version {
            Version::V1 => self.write("memory.swappiness", "0"),
            Version::V2 => self.set_swap_max(0, 0),
        }
    }

    /// What is charged now, in bytes; zero if it cannot be read.
    pub fn usage(&self) -> u64 {
        self.number(match self.version {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        })
    }

    /// What is charged now in memory and in swap, in bytes; without swap where the kernel does not
    /// account it.
    pub fn usage_with_swap(&self) -> u64 {
        let usage = self.usage();
        match self.version {
            Version::V1 => self.number("memory.memsw.usage_in_bytes").max(usage),
            Version::V2 => self.number("memory.swap.current") + usage,
        }
    }

    /// The most that was ever charged, in bytes; zero where the kernel does not say.
    pub fn peak(&self) -> u64 {
        self.number(match self.version {
            Version::V1 => "memory.max_usage_in_bytes",
            Version::V2 => "memory.peak",
        })
    }

    /// What the charge consists of. The kernel sums this up lazily, so it may lag by some pages
    /// for each processor.
    pub fn stat(&self) -> Stat {
        let text = self.read("memory.stat");
        let get = |key| value(&text, key);
        match self.version {
            Version::V1 => Stat {
                anon: get("rss"),
                file: get("cache").saturating_sub(get("shmem")),
                shmem: get("shmem"),
                kernel: self.number("memory.kmem.usage_in_bytes"),
            },
            Version::V2 => Stat {
                anon: get("anon"),
                file: get("file").saturating_sub(get("shmem")),
                shmem: get("shmem"),
                kernel: get("kernel"),
            },
        }
    }

    /// What happened so far.
    pub fn events(&self) -> Events {
        match self.version {
            Version::V1 => Events {
                // With no swap the two limits are the same, and either may be hit first.
                max: self.number("memory.failcnt") + self.number("memory.memsw.failcnt"),
                oom_kill: value(&self.read("memory.oom_control"), "oom_kill"),
            },
            Version::V2 => {
                let text = self.read("memory.events");
                Events {
                    max: value(&text, "max"),
                    oom_kill: value(&text, "oom_kill"),
                }
            }
        }
    }

    /// The file that tells the pressure of this group, where the kernel has one.
    pub fn pressure_file(&self) -> Option<PathBuf> {
        Some(self.path.join("memory.pressure")).filter(|path| path.exists())
    }

    /// The processes in the group. A zombie is among them until its parent has taken its status.
    pub fn processes(&self) -> Vec<u32> {
        numbers(&self.read("cgroup.procs"))
    }

    /// The threads in the group.
    pub fn threads(&self) -> Vec<u32> {
        numbers(&self.read(match self.version {
            Version::V1 => "tasks",
            Version::V2 => "cgroup.threads",
        }))
    }

    /// Sends SIGKILL to every process in the group.
    pub fn kill_all(&self) {
        if self.version == Version::V2 && self.write("cgroup.kill", "1").is_ok() {
            return;
        }
        for pid in self.processes() {
            let Ok(pidfd) = crate::process::PidFd::open(pid) else {
                continue;
            };
            // Between reading the list and opening it, the number may have gone to somebody else.
            if self.processes().contains(&pid) {
                let _ = pidfd.kill();
            }
        }
    }

    /// Has the kernel drop what it can of the group's charge: page cache, and charges that
    /// processors keep in stock.
    pub fn reclaim(&self) {
        // Less than asked is an error to the kernel, but as much as there was.
        let _ = match self.version {
            Version::V1 => self.write("memory.force_empty", "0"),
            Version::V2 => self.write("memory.reclaim", &self.usage().max(1).to_string()),
        };
    }

    /// Kills who is left, and removes the group.
    ///
    /// # Errors
    ///
    /// When a process does not go within ten seconds: the group is left behind with it.
    pub fn remove(mut self) -> Result<(), MemcgError> {
        self.remove_once()
    }

    fn remove_once(&mut self) -> Result<(), MemcgError> {
        self.is_removed = true;
        let begun = Instant::now();
        loop {
            self.kill_all();
            match fs::remove_dir(&self.path) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(_) if begun.elapsed() < EMPTY_PATIENCE => std::thread::sleep(PAUSE),
                Err(error) => return Err(refused(&self.path, error)),
            }
        }
    }

    fn limit_file(&self) -> &'static str {
        match self.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path.join(name)).unwrap_or_default()
    }

    fn number(&self, name: &str) -> u64 {
        self.read(name).trim().parse().unwrap_or(0)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), MemcgError> {
        write(&self.path.join(name), text)
    }
}

/// What a refused limit means when so much is in use.
fn below(error: MemcgError, usage_bytes: u64) -> MemcgError {
    match error {
        MemcgError::Refused { error, .. } if is_busy(&error) => {
            MemcgError::BelowUsage { usage_bytes }
        }
        other => other,
    }
}

impl Drop for Memcg {
    fn drop(&mut self) {
        if !self.is_removed {
            let _ = self.remove_once();
        }
    }
}

/// What had to be changed above a group of version 2 for it to have the memory controller.
#[derive(Debug)]
struct Above {
    parent: PathBuf,
    /// A group that this process was moved to: no group may have both processes and controllers.
    leaf: Option<PathBuf>,
}

impl Above {
    /// Switches the controller on for the children of `parent`.
    fn enable(parent: &Path, name: &str) -> Result<Self, MemcgError> {
        let control = parent.join("cgroup.subtree_control");
        let first = write(&control, "+memory");
        let mut above = Self {
            parent: parent.to_owned(),
            leaf: None,
        };
        let Err(MemcgError::Refused { error, .. }) = &first else {
            return first.map(|()| above);
        };
        if !is_busy(error) {
            return first.map(|()| above);
        }
        let leaf = parent.join(format!("{name}-self"));
        fs::create_dir(&leaf).map_err(|error| refused(&leaf, error))?;
        let procs = leaf.join("cgroup.procs");
        above.leaf = Some(leaf);
        write(&procs, "0")?;
        write(&control, "+memory")?;
        Ok(above)
    }
}

impl Drop for Above {
    fn drop(&mut self) {
        // As far as the kernel lets it: others may have come to use the controller by now.
        let _ = write(&self.parent.join("cgroup.subtree_control"), "-memory");
        if let Some(leaf) = &self.leaf {
            let _ = write(&self.parent.join("cgroup.procs"), "0");
            let _ = fs::remove_dir(leaf);
        }
    }
}

/// Removes groups that processes left behind which could not clean up: empty ones beside the
/// group of this process and above it, whose name is `prefix` and the number of a process that is
/// no more.
pub fn sweep(parent: Option<&Path>, prefix: &str) {
    let places: Vec<PathBuf> = match (parent, Home::find()) {
        (Some(parent), _) => vec![parent.to_owned()],
        (None, Ok(home)) => {
            let above = home.own.ancestors().map(Path::to_owned);
            above.take_while(|at| at.starts_with(&home.mount)).collect()
        }
        (None, Err(_)) => return,
    };
    for place in places {
        for dir in abandoned(&place, prefix) {
            // The kernel refuses it for a group with a process in it.
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Directories in `place` named `prefix` and the number of a process that is no more; what follows
/// after a further `-` does not matter.
pub(crate) fn abandoned(place: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(place) else {
        return Vec::new();
    };
    let is_abandoned = |name: &str| {
        let rest = name.strip_prefix(prefix)?;
        let pid: u32 = rest.split('-').next()?.parse().ok()?;
        Some(!Path::new("/proc").join(pid.to_string()).exists())
    };
    let entries = entries.flatten().filter(|entry| {
        let name = entry.file_name();
        name.to_str().and_then(is_abandoned).unwrap_or(false)
    });
    entries.map(|entry| entry.path()).collect()
}

/// Where this process is in the hierarchy of the memory controller.
#[derive(PartialEq, Eq, Debug)]
struct Home {
    version: Version,
    mount: PathBuf,
    own: PathBuf,
}

impl Home {
    fn find() -> Result<Self, MemcgError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::parse(&mounts, &groups).ok_or(MemcgError::NoController)
    }

    fn parse(mounts: &str, groups: &str) -> Option<Self> {
        // id parent device root mount options [optional]... - type source super-options
        let of_version = |version| {
            mounts.lines().find_map(|line| {
                let (head, tail) = line.split_once(" - ")?;
                let mut tail = tail.split(' ');
                let (kind, options) = (tail.next()?, tail.nth(1)?);
                let is_it = match version {
                    Version::V1 => kind == "cgroup" && options.split(',').any(|o| o == "memory"),
                    Version::V2 => kind == "cgroup2",
                };
                let mut head = head.split(' ').skip(3);
                is_it.then_some((version, head.next()?, head.next()?))
            })
        };
        let found = of_version(Version::V1).or_else(|| of_version(Version::V2));
        let (version, root, mount) = found?;
        // number:controllers:path
        let own = groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let is_it = match version {
                Version::V1 => controllers.split(',').any(|name| name == "memory"),
                Version::V2 => controllers.is_empty(),
            };
            is_it.then_some(path)
        })?;
        // A container sees a part of the hierarchy, mounted as if it were all.
        let below = own.strip_prefix(root).unwrap_or(own);
        let mount = PathBuf::from(mount);
        let own = mount.join(below.trim_start_matches('/'));
        Some(Self {
            version,
            mount,
            own,
        })
    }
}

fn version_of(group: &Path) -> Result<Version, MemcgError> {
    if group.join("memory.limit_in_bytes").exists() {
        Ok(Version::V1)
    } else if group.join("cgroup.subtree_control").exists() {
        Ok(Version::V2)
    } else {
        Err(MemcgError::NotMemcg(group.to_owned()))
    }
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBUSY)
}

fn refused(path: &Path, error: io::Error) -> MemcgError {
    MemcgError::Refused {
        path: path.to_owned(),
        error,
    }
}

fn write(path: &Path, text: &str) -> Result<(), MemcgError> {
    // Not `fs::write`: it would make a file where none should be made.
    let file = OpenOptions::new().write(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| refused(path, error))
}

/// The number behind a key, in lines of a key and a number; zero without it.
fn value(text: &str, key: &str) -> u64 {
    let mut values = text.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    });
    values.next().unwrap_or(0)
}

fn numbers(text: &str) -> Vec<u32> {
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(mounts: &str, groups: &str, expected: Option<(Version, &str)>) {
        let home = Home::parse(mounts, groups);
        let seen = home.map(|home| (home.version, home.own));
        let expected = expected.map(|(version, own)| (version, PathBuf::from(own)));
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_group_of_this_process_is_found_on_every_kind_of_machine() {
        const V1: &str = "30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        const OTHER: &str = "29 24 0:25 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        const V2: &str =
            "25 23 0:22 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        const INSIDE: &str =
            "30 24 0:26 /box/1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let both = format!("{OTHER}{V2}{V1}");
        let first = Some((Version::V1, "/sys/fs/cgroup/memory/a/b"));
        check(V1, "4:memory:/a/b\n0::/c\n", first);
        check(&both, "4:memory:/a/b\n0::/c\n", first);
        let unified = Some((Version::V2, "/sys/fs/cgroup/user.slice/x:y"));
        check(V2, "0::/user.slice/x:y\n", unified);
        let boxed = Some((Version::V1, "/sys/fs/cgroup/memory/b"));
        check(INSIDE, "4:memory:/box/1/b\n", boxed);
        check(V2, "0::/\n", Some((Version::V2, "/sys/fs/cgroup/")));
        check(OTHER, "3:cpu:/\n", None);
        check("", "", None);
    }

    #[test]
    fn keys_are_whole_words() {
        let text = "rss_huge 7\nrss 42\ntotal_rss 9\n";
        assert_eq!(value(text, "rss"), 42);
        assert_eq!(value(text, "huge"), 0);
    }
}
