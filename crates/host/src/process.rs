//! Processes: put into a memory cgroup at birth, watched, killed, and their memory taken back.
//!
//! Linux counterparts: `kernel/pid.c`, `kernel/signal.c`, `process_mrelease` in `mm/oom_kill.c`,
//! `fs/proc/`.

use crate::errno::Errno;
use crate::region::Region;
use crate::uffd::{OpenError, Track, Uffd};
use core::fmt;
use core::time::Duration;
use pinless_mm::addr::PAGE_SIZE;
use pinless_mm::oom::{Process, Release};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::thread::JoinHandle;

/// A process that stays the same one when its number is given to another.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

/// What came of asking the kernel to take a dying process's memory back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mrelease {
    /// All that can be taken back is.
    Released,
    /// An MMU notifier refused, without blocking, a part of it (`EAGAIN`): ask again.
    Refused,
    /// No thread of it has memory any more (`ESRCH`).
    Gone,
    /// It is not dying (`EINVAL`).
    NotDying,
    /// Another answer, `ENOSYS` before Linux 5.15 among them.
    Failed(Errno),
}

impl PidFd {
    /// Opens a process by its number.
    ///
    /// # Errors
    ///
    /// `ESRCH` where there is no such process.
    pub fn open(pid: u32) -> Result<Self, Errno> {
        // SAFETY: two integers go in, a new file descriptor comes out.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = Errno::check(fd)?;
        // SAFETY: the call gave us this descriptor, which nobody else knows.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Sends SIGKILL.
    ///
    /// # Errors
    ///
    /// `ESRCH` when it is gone, `EPERM` when it is not ours to kill.
    pub fn kill(&self) -> Result<(), Errno> {
        // SAFETY: the descriptor is open; no signal information is passed.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                libc::SIGKILL,
                core::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        Errno::check(sent).map(drop)
    }

    /// Waits until it is dead, a zombie at least, or the time is over; tells whether it is dead.
    pub fn wait_dead(&self, at_most: Duration) -> bool {
        let mut poll = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let timeout_ms = i32::try_from(at_most.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one entry, borrowed for the call. An interrupted wait just ends early.
        unsafe { libc::poll(&mut poll, 1, timeout_ms) == 1 }
    }

    /// Has the kernel free the memory of the process, which must have been killed, in this
    /// thread and now, as its OOM reaper would: MMU notifiers are asked without blocking. Waits
    /// for the lock of the address space.
    pub fn mrelease(&self) -> Mrelease {
        // SAFETY: a descriptor and no flags; what is freed belongs to a process that is dying.
        let done = unsafe { libc::syscall(libc::SYS_process_mrelease, self.0.as_raw_fd(), 0_u32) };
        match Errno::check(done) {
            Ok(_) => Mrelease::Released,
            Err(Errno(libc::EAGAIN)) => Mrelease::Refused,
            Err(Errno(libc::ESRCH)) => Mrelease::Gone,
            Err(Errno(libc::EINVAL)) => Mrelease::NotDying,
            Err(errno) => Mrelease::Failed(errno),
        }
    }
}

/// A victim for the policy of `pinless_mm::oom`.
impl Process for PidFd {
    type Error = Errno;

    fn kill(&self) -> Result<(), Errno> {
        Self::kill(self)
    }

    fn release(&self) -> Release {
        match self.mrelease() {
            Mrelease::Released => Release::Released,
            Mrelease::Refused => Release::Refused,
            Mrelease::Gone => Release::Gone,
            Mrelease::NotDying => Release::NotDying,
            Mrelease::Failed(_) => Release::Unsupported,
        }
    }

    fn wait_dead(&self, at_most: Duration) -> bool {
        Self::wait_dead(self, at_most)
    }
}

/// Starts a program that is in a cgroup before its first instruction, and is killed when the
/// thread that calls this ends. `entry` is the group's, see [`crate::memcg::Memcg::entry`].
/// `ready`, if any, stays open in the program, under the same number.
///
/// # Errors
///
/// Those of the system: it cannot be moved into the group, or not be executed.
pub fn spawn_in(command: &mut Command, entry: File, ready: Option<OwnedFd>) -> io::Result<Child> {
    let parent = std::process::id();
    let enter = move || {
        // SAFETY: system calls on integers and on a static string, which may be made between
        // fork and exec. The descriptors are owned by this closure.
        let failed = unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == -1
                || libc::write(entry.as_raw_fd(), c"0".as_ptr().cast(), 1) == -1
                || ready
                    .as_ref()
                    .is_some_and(|fd| libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) == -1)
        };
        if failed {
            return Err(io::Error::last_os_error());
        }
        // Had the parent died before the call above, nobody would send the signal.
        if std::os::unix::process::parent_id() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure only makes system calls: it allocates nothing,
    // takes no lock, and cannot panic. `last_os_error` and `from_raw_os_error` hold an integer.
    unsafe { command.pre_exec(enter) };
    command.spawn()
}

/// What `/proc` tells of a thread or process.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// One letter: R, S, D, Z and so on.
    pub state: char,
    /// Resident memory in bytes; none once it has let go of its memory.
    pub rss: Option<u64>,
    /// The process that it belongs to.
    pub process: u32,
}

impl Status {
    /// Reads it; `None` when the process is gone.
    pub fn read(pid: u32) -> Option<Self> {
        Some(Self::parse(&proc_file(pid, "status")?))
    }

    fn parse(text: &str) -> Self {
        let get = |key: &str| {
            let mut lines = text.lines();
            let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            value.map(str::trim)
        };
        let kib = get("VmRSS").and_then(|value| value.split(' ').next()?.parse::<u64>().ok());
        Self {
            name: get("Name").unwrap_or_default().to_owned(),
            state: get("State")
                .and_then(|state| state.chars().next())
                .unwrap_or('?'),
            rss: kib.map(|kib| kib << 10),
            process: get("Tgid").and_then(|tgid| tgid.parse().ok()).unwrap_or(0),
        }
    }
}

/// The kernel function in which a thread waits; `None` where it does not, or is not told.
pub fn wchan(pid: u32) -> Option<String> {
    proc_file(pid, "wchan").filter(|name| name != "0" && !name.is_empty())
}

/// The kernel's functions on a thread's stack, innermost first; empty where they are not told
/// (only the superuser may read them).
pub fn stack(pid: u32) -> Vec<String> {
    let text = proc_file(pid, "stack").unwrap_or_default();
    let functions = text.lines().filter_map(|line| {
        let name = line.split_whitespace().nth(1)?;
        Some(name.split('+').next().unwrap_or(name).to_owned())
    });
    functions.collect()
}

/// The devices that a process has open, by the names of their files: `kvm`, `dri/card0`, and those
/// of the objects without a file that drivers hand out, such as `kvm-vm`.
pub fn devices(pid: u32) -> Vec<String> {
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let targets = fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    let mut names: Vec<String> = targets
        .filter_map(|target| device_name(target.to_str()?).map(str::to_owned))
        .collect();
    names.sort();
    names.dedup();
    names
}

fn device_name(target: &str) -> Option<&str> {
    const PLAIN: [&str; 6] = ["null", "zero", "full", "random", "urandom", "console"];
    const PLAIN_BEGINNINGS: [&str; 3] = ["pts/", "shm/", "tty"];
    const PLAIN_OBJECTS: [&str; 6] = [
        "[eventfd]",
        "[eventpoll]",
        "[pidfd]",
        "[signalfd]",
        "[timerfd]",
        "inotify",
    ];
    if let Some(object) = target.strip_prefix("anon_inode:") {
        let is_plain = PLAIN_OBJECTS.contains(&object);
        return (!is_plain).then(|| object.trim_matches(['[', ']']));
    }
    let name = target.strip_prefix("/dev/")?;
    let has_beginning = |beginning: &&str| name.starts_with(*beginning);
    let is_plain = PLAIN.contains(&name) || PLAIN_BEGINNINGS.iter().any(has_beginning);
    (!is_plain).then_some(name)
}

fn proc_file(pid: u32, name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/{name}")).ok()
}

/// Why an address space cannot be held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HoldError {
    /// No userfaultfd that stops system calls.
    NoUserfaultfd,
    /// No memory of the process can be read: it is gone, or not ours to look into.
    Unreadable,
    /// A system call that failed.
    System(Errno),
}

impl fmt::Display for HoldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUserfaultfd => f.write_str("no userfaultfd that stops system calls"),
            Self::Unreadable => f.write_str("the memory of the process cannot be read"),
            Self::System(errno) => errno.fmt(f),
        }
    }
}

impl std::error::Error for HoldError {}

/// A reference to the address space of a process: while this lives, the death of the process does
/// not free its memory, as when a driver that hangs keeps it.
///
/// A thread of ours stands in the middle of reading the process's memory, because the page that
/// it reads into never comes: for that long the kernel keeps the address space. The lock of
/// the address space is not held.
#[derive(Debug)]
pub struct Hold {
    uffd: Uffd,
    window: Region,
    reader: Option<JoinHandle<()>>,
}

impl Hold {
    /// Holds the address space that the process has now; until it executes another program.
    ///
    /// # Errors
    ///
    /// See [`HoldError`].
    pub fn of(pid: u32) -> Result<Self, HoldError> {
        let uffd = Uffd::open(0).map_err(|error| match error {
            OpenError::Handshake(errno) => HoldError::System(errno),
            OpenError::Unavailable(_) => HoldError::NoUserfaultfd,
        })?;
        if !uffd.source().serves_kernel_faults() {
            return Err(HoldError::NoUserfaultfd);
        }
        let window = Region::reserve(1).map_err(HoldError::System)?;
        uffd.register(window.base(), window.len(), Track::Missing)
            .map_err(HoldError::System)?;
        let from = readable_address(pid).ok_or(HoldError::Unreadable)?;
        let into = window.base();
        let reader = std::thread::spawn(move || read_memory(pid, from, into));
        let hold = Self {
            uffd,
            window,
            reader: Some(reader),
        };
        // Dropped on the way out, it lets go again.
        hold.wait_until_it_stands()?;
        Ok(hold)
    }

    /// The message of the fault says that the reader stands.
    fn wait_until_it_stands(&self) -> Result<(), HoldError> {
        loop {
            let mut stands = false;
            let read = self.uffd.read_faults(|_| stands = true);
            if stands {
                return Ok(());
            }
            if self.reader.as_ref().is_none_or(JoinHandle::is_finished) {
                return Err(HoldError::Unreadable);
            }
            match read {
                Ok(_) | Err(Errno(libc::EAGAIN | libc::EINTR)) => std::thread::yield_now(),
                Err(errno) => return Err(HoldError::System(errno)),
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // EEXIST is as good: then the page is there. Whether or not the reader waits already, it
        // finds the page now, or is woken by its coming.
        let _ = self.uffd.zeropage(self.window.base(), self.window.len());
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// The first page of a process that can be read: in most, the head of its program.
fn readable_address(pid: u32) -> Option<usize> {
    let maps = proc_file(pid, "maps")?;
    let mut starts = maps.lines().filter_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let is_readable = rest.starts_with('r');
        let start = usize::from_str_radix(range.split_once('-')?.0, 16).ok()?;
        is_readable.then_some(start)
    });
    starts.next()
}

/// Reads a page of a process into the window, whose memory nobody else touches.
fn read_memory(pid: u32, from: usize, into: usize) {
    let local = libc::iovec {
        iov_base: into as *mut libc::c_void,
        iov_len: PAGE_SIZE,
    };
    let remote = libc::iovec {
        iov_base: from as *mut libc::c_void,
        iov_len: PAGE_SIZE,
    };
    // SAFETY: the kernel writes to the window alone, a page that its `Hold` maps until this
    // thread has been joined, and to which no reference exists. That the process may be gone is
    // an error of the call.
    unsafe { libc::process_vm_readv(pid as i32, &local, 1, &remote, 1, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_with_and_without_memory() {
        let text = "Name:\ta b\nState:\tD (disk sleep)\nTgid:\t12\nVmRSS:\t   1024 kB\n";
        let status = Status::parse(text);
        assert_eq!((status.name.as_str(), status.state), ("a b", 'D'));
        assert_eq!((status.rss, status.process), (Some(1 << 20), 12));
        let zombie = Status::parse("Name:\tx\nState:\tZ (zombie)\nTgid:\t3\n");
        assert_eq!((zombie.state, zombie.rss), ('Z', None));
    }

    #[test]
    fn devices_are_told_from_plain_files() {
        for (target, name) in [
            ("/dev/kvm", Some("kvm")),
            ("/dev/infiniband/uverbs0", Some("infiniband/uverbs0")),
            ("anon_inode:kvm-vm", Some("kvm-vm")),
            ("anon_inode:[io_uring]", Some("io_uring")),
            ("anon_inode:[eventfd]", None),
            ("/dev/null", None),
            ("/dev/pts/3", None),
            ("/dev/ttyS0", None),
            ("/tmp/file", None),
            ("socket:[12]", None),
        ] {
            assert_eq!(device_name(target), name, "{target}");
        }
    }
}
