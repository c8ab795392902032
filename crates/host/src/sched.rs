//! Where and when threads of this process run: processors, and the class of the scheduler.
//!
//! Linux counterpart: `kernel/sched/syscalls.c`; `sched(7)`.

use crate::errno::Errno;
use core::fmt::{self, Write};
use core::time::Duration;
use std::io::Read;

/// The kernel's number of a thread.
pub(crate) type ThreadId = u32;

/// How the scheduler treats a thread beside others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// As any thread (`SCHED_OTHER`).
    Ordinary,
    /// Only while nobody else wants the processor (`SCHED_IDLE`).
    Idle,
}

impl Class {
    fn number(self) -> i32 {
        match self {
            Self::Ordinary => libc::SCHED_OTHER,
            Self::Idle => libc::SCHED_IDLE,
        }
    }

    /// The class of a thread; `None` for one that has neither, or where there is no such thread.
    pub(crate) fn of(thread: ThreadId) -> Option<Self> {
        // SAFETY: the call takes a number and touches no memory.
        let number = unsafe { libc::sched_getscheduler(thread as libc::pid_t) };
        [Self::Ordinary, Self::Idle]
            .into_iter()
            .find(|class| class.number() == number)
    }

    /// Puts a thread into this class.
    pub(crate) fn set(self, thread: ThreadId) -> Result<(), Errno> {
        // SAFETY: zero is a valid value of the structure.
        let param: libc::sched_param = unsafe { core::mem::zeroed() };
        // SAFETY: `param` is valid and borrowed for the call.
        let set = unsafe {
            libc::sched_setscheduler(thread as libc::pid_t, self.number(), &raw const param)
        };
        Errno::check(set.into()).map(drop)
    }

    /// Whether a thread of this process that became idle may become ordinary again, which takes a
    /// privilege or a limit that allows it. Tried on a thread that ends after that.
    pub(crate) fn can_be_left() -> bool {
        let attempt = || {
            let me = ThreadId::MIN; // This thread, to these calls.
            Self::of(me) == Some(Self::Ordinary)
                && Self::Idle.set(me).is_ok()
                && Self::Ordinary.set(me).is_ok()
        };
        let thread = std::thread::Builder::new().spawn(attempt);
        thread.is_ok_and(|thread| thread.join().unwrap_or(false))
    }
}

/// The time for which a thread of this process has run.
pub(crate) fn run_time(thread: ThreadId) -> Option<Duration> {
    // The kernel's number for the clock of a thread: its own number, and a kind.
    const OF_THREAD: i32 = 0b110;
    let clock = !(thread as libc::pid_t) << 3 | OF_THREAD;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid and borrowed for the call.
    let got = unsafe { libc::clock_gettime(clock, &raw mut time) };
    Errno::check(got.into()).ok()?;
    Some(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// A set of processors.
#[derive(Clone, Copy)]
pub(crate) struct Processors(libc::cpu_set_t);

impl Processors {
    /// The one with this number, if there can be one.
    pub(crate) fn only(number: u32) -> Option<Self> {
        if number >= libc::CPU_SETSIZE as u32 {
            return None;
        }
        // SAFETY: zero is a valid value of a set; the number is inside of it.
        unsafe {
            let mut set: libc::cpu_set_t = core::mem::zeroed();
            libc::CPU_SET(number as usize, &mut set);
            Some(Self(set))
        }
    }

    /// Those on which a thread may run.
    pub(crate) fn of(thread: ThreadId) -> Result<Self, Errno> {
        // SAFETY: zero is a valid value of a set, which is borrowed for the call with its size.
        unsafe {
            let mut set: libc::cpu_set_t = core::mem::zeroed();
            let size = size_of_val(&set);
            let got = libc::sched_getaffinity(thread as libc::pid_t, size, &raw mut set);
            Errno::check(got.into()).map(|_| Self(set))
        }
    }

    /// Has a thread run on these alone.
    pub(crate) fn bind(&self, thread: ThreadId) -> Result<(), Errno> {
        // SAFETY: the set is valid and borrowed for the call, with its size.
        let set = unsafe {
            libc::sched_setaffinity(
                thread as libc::pid_t,
                size_of_val(&self.0),
                &raw const self.0,
            )
        };
        Errno::check(set.into()).map(drop)
    }

    /// How many there are.
    pub(crate) fn nr(&self) -> i32 {
        // SAFETY: the set is valid.
        unsafe { libc::CPU_COUNT(&self.0) }
    }

    /// Whether the one with this number is among them.
    pub(crate) fn contains(&self, number: u32) -> bool {
        // SAFETY: the number is inside of the set.
        number < libc::CPU_SETSIZE as u32 && unsafe { libc::CPU_ISSET(number as usize, &self.0) }
    }
}

impl PartialEq for Processors {
    fn eq(&self, other: &Self) -> bool {
        // SAFETY: both sets are valid.
        unsafe { libc::CPU_EQUAL(&self.0, &other.0) }
    }
}

impl fmt::Debug for Processors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = 0..libc::CPU_SETSIZE as u32;
        f.debug_set()
            .entries(all.filter(|&number| self.contains(number)))
            .finish()
    }
}

/// The processor on which a thread of this process runs, or ran last. Allocates nothing; takes
/// some microseconds.
pub(crate) fn processor_of(thread: ThreadId) -> Option<u32> {
    let mut path = Text::<48>::default();
    write!(path, "/proc/self/task/{thread}/stat\0").ok()?;
    let path = core::ffi::CStr::from_bytes_with_nul(path.bytes()).ok()?;
    // SAFETY: the path is a C string; the call has no other requirement.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    let fd = Errno::check(fd.into()).ok()?;
    // SAFETY: the descriptor was opened above and belongs to nobody else.
    let mut file: std::fs::File = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd as i32) };
    // A name of 64 bytes at most, and 51 numbers.
    let mut line = [0; 1280];
    let len = file.read(&mut line).ok()?;
    processor_in(&line[..len])
}

/// The processor that a line of `/proc/.../stat` names: its 39th field. The second, the name of the
/// program in parentheses, may hold anything.
fn processor_in(line: &[u8]) -> Option<u32> {
    const NAME: usize = 2;
    const PROCESSOR: usize = 39;
    let name_end = line.iter().rposition(|&byte| byte == b')')?;
    let rest = core::str::from_utf8(&line[name_end + 1..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    fields.nth(PROCESSOR - NAME - 1)?.parse().ok()
}

/// Text in a buffer of its own.
struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }
}

impl<const N: usize> Text<N> {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let place = self.bytes[self.len..].get_mut(..text.len());
        place.ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, processor: Option<u32>) {
        assert_eq!(processor_in(line.as_bytes()), processor, "{line}");
    }

    #[test]
    fn the_processor_is_the_39th_field_whatever_the_name_is() {
        let numbers: Vec<String> = (4..=52)
            .map(|field: u32| (field * 100).to_string())
            .collect();
        let rest = numbers.join(" ");
        check(&format!("7 (cat) S {rest}\n"), Some(3900));
        check(&format!("7 (a) b) (c 1 2 3) R {rest}\n"), Some(3900));
        check(&format!("7 (cat) S {}", numbers[..30].join(" ")), None);
        check("", None);
    }

    #[test]
    fn a_thread_runs_where_it_was_bound() {
        // SAFETY: the call takes nothing and touches no memory.
        let me = unsafe { libc::gettid() } as ThreadId;
        let before = Processors::of(me).expect("of this thread");
        let all = 0..libc::CPU_SETSIZE as u32;
        let last = all.rev().find(|&number| before.contains(number));
        let last = last.expect("it runs somewhere");
        let only = Processors::only(last).expect("a small number");
        only.bind(me).expect("it may run there");
        assert_eq!(Processors::of(me), Ok(only));
        assert_eq!((only.nr(), processor_of(me)), (1, Some(last)));
        let ran = run_time(me).expect("of this thread");
        assert!(ran > Duration::ZERO && run_time(me) >= Some(ran));
        before.bind(me).expect("it ran there");
        assert_eq!(Processors::of(me), Ok(before));
        let nobody = ThreadId::MAX >> 4;
        assert_eq!((processor_of(nobody), run_time(nobody)), (None, None));
    }
}
