//! The userfaultfd layer: one descriptor, and each of its operations as one call.
//!
//! The numbers and layouts are the kernel's binary interface. They are written down here because
//! the headers and crates of many systems are older than `UFFDIO_MOVE` (Linux 6.8).
//!
//! Linux counterpart: `include/uapi/linux/userfaultfd.h`, `fs/userfaultfd.c`.

use crate::errno::Errno;
use core::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Features of the handshake that are used here.
pub(crate) mod feature {
    pub(crate) const WP: u64 = 1 << 0;
    pub(crate) const SIGBUS: u64 = 1 << 7;
    pub(crate) const THREAD_ID: u64 = 1 << 8;
    pub(crate) const MINOR_SHMEM: u64 = 1 << 10;
    pub(crate) const EXACT_ADDRESS: u64 = 1 << 11;
    pub(crate) const WP_SHMEM: u64 = 1 << 12;
    pub(crate) const POISON: u64 = 1 << 14;
    pub(crate) const MOVE: u64 = 1 << 16;
}

const API: u64 = 0xAA;
const USER_MODE_ONLY: libc::c_int = 1;

const REGISTER_MISSING: u64 = 1 << 0;
const REGISTER_WP: u64 = 1 << 1;
const REGISTER_MINOR: u64 = 1 << 2;
const CONTINUE_WP: u64 = 1 << 1;
const COPY_WP: u64 = 1 << 1;
const MOVE_ALLOW_SRC_HOLES: u64 = 1 << 1;
const WRITEPROTECT_WP: u64 = 1 << 0;

const EVENT_PAGEFAULT: u8 = 0x12;
const PAGEFAULT_FLAG_WRITE: u64 = 1 << 0;
const PAGEFAULT_FLAG_WP: u64 = 1 << 1;

/// Messages taken in one read, into a buffer on the stack.
pub(crate) const MESSAGE_BATCH: usize = 16;

/// An ioctl number: direction (1 = to the kernel, 2 = back), payload and command.
const fn number(direction: u32, command: u32, payload: usize) -> u32 {
    direction << 30 | (payload as u32) << 16 | 0xAA << 8 | command
}

/// `USERFAULTFD_IOC_NEW` on `/dev/userfaultfd`.
const IOC_NEW: u32 = number(0, 0x00, 0);

/// The payload of an operation, and its number.
///
/// # Safety
///
/// `NUMBER` is an operation that reads and writes no memory of this process but `Self` and
/// what the fields of `Self` name.
unsafe trait Payload {
    const NUMBER: u32;
}

macro_rules! payload {
    ($name:ident, $direction:expr, $command:expr, { $($field:ident: $ty:ty),* $(,)? }) => {
        #[repr(C)]
        #[derive(Debug)]
        struct $name { $($field: $ty),* }

        // SAFETY: the layout and number are those of the kernel's header, and the size in the
        // number makes the kernel refuse a payload of another size.
        unsafe impl Payload for $name {
            const NUMBER: u32 = number($direction, $command, size_of::<Self>());
        }
    };
}

payload!(ApiPayload, 3, 0x3F, { api: u64, features: u64, ioctls: u64 });
payload!(RegisterPayload, 3, 0x00, { start: u64, len: u64, mode: u64, ioctls: u64 });
payload!(WakePayload, 2, 0x02, { start: u64, len: u64 });
payload!(CopyPayload, 3, 0x03, { dst: u64, src: u64, len: u64, mode: u64, done: i64 });
payload!(ZeropagePayload, 3, 0x04, { start: u64, len: u64, mode: u64, done: i64 });
payload!(MovePayload, 3, 0x05, { dst: u64, src: u64, len: u64, mode: u64, done: i64 });
payload!(WriteprotectPayload, 3, 0x06, { start: u64, len: u64, mode: u64 });
payload!(ContinuePayload, 3, 0x07, { start: u64, len: u64, mode: u64, mapped: i64 });
payload!(PoisonPayload, 3, 0x08, { start: u64, len: u64, mode: u64, done: i64 });

/// Which accesses raise a fault that userfaultfd sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Track {
    /// Accesses to absent pages.
    Missing,
    /// Accesses to absent pages, and writes to protected ones.
    MissingAndWrites,
    /// The same, and accesses to pages that are in the file but not in the page table.
    MissingMinorAndWrites,
}

/// What a move does about a source page that is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Holes {
    /// Stops with ENOENT.
    Refuse,
    /// Passes over it, and counts it as done.
    Allow,
}

/// An operation that did not do all it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stopped {
    /// Why. EAGAIN when it got somewhere and should go on from there.
    pub(crate) errno: Errno,
    /// Bytes done, as the kernel counted; not positive when nothing was done.
    pub(crate) done: i64,
}

/// Where a descriptor came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// `/dev/userfaultfd`; faults of the kernel on behalf of the process are served too.
    Device,
    /// `userfaultfd(2)`; faults of the kernel on behalf of the process are served too.
    SystemCall,
    /// `userfaultfd(2)` with `UFFD_USER_MODE_ONLY`: a system call that meets an absent page
    /// gets EFAULT.
    UserModeOnly,
}

impl Source {
    /// The name under which the manuals have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Device => "/dev/userfaultfd",
            Self::SystemCall => "userfaultfd(2)",
            Self::UserModeOnly => "userfaultfd(2) for user mode only",
        }
    }

    /// Whether a system call on an absent page is served like an access of the program.
    pub fn serves_kernel_faults(self) -> bool {
        self != Self::UserModeOnly
    }
}

/// No userfaultfd can be had: what each way of asking for one answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unavailable {
    /// Opening `/dev/userfaultfd`, or asking it for a descriptor.
    pub device: Errno,
    /// `userfaultfd(2)`.
    pub system_call: Errno,
    /// `userfaultfd(2)` with `UFFD_USER_MODE_ONLY`.
    pub user_mode_only: Errno,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no userfaultfd: /dev/userfaultfd: {}; userfaultfd(2): {}; userfaultfd(2) for user \
             mode only: {}. To allow it: Linux 6.8 or newer, and one of: read and write \
             permission on /dev/userfaultfd, sysctl vm.unprivileged_userfaultfd=1, CAP_SYS_PTRACE",
            self.device, self.system_call, self.user_mode_only
        )
    }
}

impl std::error::Error for Unavailable {}

/// What a thread met: one message of a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fault {
    /// The address, to the byte.
    pub(crate) address: usize,
    /// Whether it wanted to write.
    pub(crate) is_write: bool,
    /// The thread, in this process's numbering; zero when the kernel did not say.
    pub(crate) thread: u32,
}

/// A message as the kernel writes it. Its union is that of a page fault.
#[repr(C)]
#[derive(Clone, Copy)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u32,
    padding: u32,
}

/// One userfaultfd, non-blocking, after its handshake.
#[derive(Debug)]
pub(crate) struct Uffd {
    fd: OwnedFd,
    source: Source,
}

impl Uffd {
    /// Opens a descriptor, without the handshake, by the first way that works.
    fn open_raw() -> Result<(OwnedFd, Source), Unavailable> {
        let device = match open_device() {
            Ok(fd) => return Ok((fd, Source::Device)),
            Err(errno) => errno,
        };
        let system_call = match open_system_call(0) {
            Ok(fd) => return Ok((fd, Source::SystemCall)),
            Err(errno) => errno,
        };
        match open_system_call(USER_MODE_ONLY) {
            Ok(fd) => Ok((fd, Source::UserModeOnly)),
            Err(user_mode_only) => Err(Unavailable {
                device,
                system_call,
                user_mode_only,
            }),
        }
    }

    /// The features that the kernel offers, and where descriptors come from.
    pub(crate) fn offered() -> Result<(u64, Source), OpenError> {
        let (fd, source) = Self::open_raw()?;
        let uffd = Self { fd, source };
        let offered = uffd.handshake(0).map_err(OpenError::Handshake)?;
        Ok((offered, source))
    }

    /// Opens a descriptor with `features` in force.
    pub(crate) fn open(features: u64) -> Result<Self, OpenError> {
        let (fd, source) = Self::open_raw()?;
        let uffd = Self { fd, source };
        uffd.handshake(features).map_err(OpenError::Handshake)?;
        Ok(uffd)
    }

    /// Takes over a descriptor of another process, which it has passed on after its handshake. From
    /// here on it does not block, whatever it was opened with.
    pub(crate) fn adopt(fd: OwnedFd) -> Result<Self, Errno> {
        // SAFETY: the call takes numbers and touches no memory.
        let set = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        Errno::check(set.into())?;
        Ok(Self {
            fd,
            // Which one does not matter here: the process itself knows what it may do.
            source: Source::UserModeOnly,
        })
    }

    fn handshake(&self, features: u64) -> Result<u64, Errno> {
        let mut payload = ApiPayload {
            api: API,
            features,
            ioctls: 0,
        };
        self.ioctl(&mut payload)?;
        Ok(payload.features)
    }

    /// Where the descriptor came from.
    pub(crate) fn source(&self) -> Source {
        self.source
    }

    /// Has faults in the range reported here.
    pub(crate) fn register(&self, start: usize, len: usize, track: Track) -> Result<(), Errno> {
        let mode = match track {
            Track::Missing => REGISTER_MISSING,
            Track::MissingAndWrites => REGISTER_MISSING | REGISTER_WP,
            Track::MissingMinorAndWrites => REGISTER_MISSING | REGISTER_MINOR | REGISTER_WP,
        };
        self.ioctl(&mut RegisterPayload {
            start: start as u64,
            len: len as u64,
            mode,
            ioctls: 0,
        })
    }

    /// Copies pages to absent addresses and wakes whoever waits; with `protect` the first write
    /// traps.
    pub(crate) fn copy(&self, dst: usize, src: &[u8], protect: bool) -> Result<(), Stopped> {
        let mut payload = CopyPayload {
            dst: dst as u64,
            src: src.as_ptr() as u64,
            len: src.len() as u64,
            mode: if protect { COPY_WP } else { 0 },
            done: 0,
        };
        let result = self.ioctl(&mut payload);
        stopped(result, payload.done)
    }

    /// Maps zeros at absent addresses and wakes whoever waits.
    pub(crate) fn zeropage(&self, start: usize, len: usize) -> Result<(), Stopped> {
        let mut payload = ZeropagePayload {
            start: start as u64,
            len: len as u64,
            mode: 0,
            done: 0,
        };
        let result = self.ioctl(&mut payload);
        stopped(result, payload.done)
    }

    /// Moves pages to absent addresses that are registered here, and wakes whoever waits there.
    /// The frames move, their contents are not copied; a write comes before or traps.
    pub(crate) fn move_pages(
        &self,
        dst: usize,
        src: usize,
        len: usize,
        holes: Holes,
    ) -> Result<(), Stopped> {
        let mut payload = MovePayload {
            dst: dst as u64,
            src: src as u64,
            len: len as u64,
            mode: match holes {
                Holes::Refuse => 0,
                Holes::Allow => MOVE_ALLOW_SRC_HOLES,
            },
            done: 0,
        };
        let result = self.ioctl(&mut payload);
        stopped(result, payload.done)
    }

    /// Maps pages that are in the file of a shared mapping at absent addresses, and wakes whoever
    /// waits; with `protect` the first write traps.
    pub(crate) fn map_present(
        &self,
        start: usize,
        len: usize,
        protect: bool,
    ) -> Result<(), Stopped> {
        let mut payload = ContinuePayload {
            start: start as u64,
            len: len as u64,
            mode: if protect { CONTINUE_WP } else { 0 },
            mapped: 0,
        };
        let result = self.ioctl(&mut payload);
        stopped(result, payload.mapped)
    }

    /// Makes writes to present pages trap, or lets them pass and wakes whoever waits.
    pub(crate) fn write_protect(
        &self,
        start: usize,
        len: usize,
        protect: bool,
    ) -> Result<(), Errno> {
        self.ioctl(&mut WriteprotectPayload {
            start: start as u64,
            len: len as u64,
            mode: if protect { WRITEPROTECT_WP } else { 0 },
        })
    }

    /// Marks absent pages so that an access ends in SIGBUS, and wakes whoever waits.
    pub(crate) fn poison(&self, start: usize, len: usize) -> Result<(), Stopped> {
        let mut payload = PoisonPayload {
            start: start as u64,
            len: len as u64,
            mode: 0,
            done: 0,
        };
        let result = self.ioctl(&mut payload);
        stopped(result, payload.done)
    }

    /// Wakes whoever waits for a page of the range; they try again.
    pub(crate) fn wake(&self, start: usize, len: usize) -> Result<(), Errno> {
        self.ioctl(&mut WakePayload {
            start: start as u64,
            len: len as u64,
        })
    }

    /// Takes the faults that wait, up to a batch, and gives them to `each`. Returns how many
    /// there were: fewer than [`MESSAGE_BATCH`] means that none is left.
    pub(crate) fn read_faults(&self, mut each: impl FnMut(Fault)) -> Result<usize, Errno> {
        const EMPTY: Message = Message {
            event: 0,
            reserved: [0; 7],
            flags: 0,
            address: 0,
            thread: 0,
            padding: 0,
        };
        let mut messages = [EMPTY; MESSAGE_BATCH];
        // SAFETY: the buffer is an array of plain integers, valid for any bit pattern, borrowed
        // for the call, and its exact size is given.
        let bytes = unsafe {
            libc::read(
                self.fd.as_raw_fd(),
                messages.as_mut_ptr().cast(),
                size_of_val(&messages),
            )
        };
        let bytes = match Errno::check(bytes as i64) {
            Ok(bytes) => bytes as usize,
            Err(Errno(libc::EAGAIN)) => 0,
            Err(errno) => return Err(errno),
        };
        let nr = bytes / size_of::<Message>();
        let faults = messages[..nr].iter();
        for message in faults.filter(|message| message.event == EVENT_PAGEFAULT) {
            each(Fault {
                address: message.address as usize,
                is_write: message.flags & (PAGEFAULT_FLAG_WRITE | PAGEFAULT_FLAG_WP) != 0,
                thread: message.thread,
            });
        }
        Ok(nr)
    }

    fn ioctl<P: Payload>(&self, payload: &mut P) -> Result<(), Errno> {
        // SAFETY: 1. `payload` is the type that belongs to the number (`Payload`), borrowed
        // mutably for the call. 2. Other memory that an operation changes is the page tables of
        // ranges that `HostMmu`, `Client`, `Hold` and the probe own, to which no Rust reference
        // exists, or those of another process that handed its descriptor over for that; the source
        // of a copy is a slice that the caller borrows.
        let result = unsafe {
            libc::ioctl(
                self.fd.as_raw_fd(),
                P::NUMBER as libc::Ioctl,
                core::ptr::from_mut(payload),
            )
        };
        Errno::check(result.into()).map(drop)
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Uffd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Why a descriptor could not be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OpenError {
    /// There is none to be had.
    Unavailable(Unavailable),
    /// There is one, but it lacks a feature.
    Handshake(Errno),
}

impl From<Unavailable> for OpenError {
    fn from(unavailable: Unavailable) -> Self {
        Self::Unavailable(unavailable)
    }
}

fn stopped(result: Result<(), Errno>, done: i64) -> Result<(), Stopped> {
    result.map_err(|errno| Stopped { errno, done })
}

fn open_device() -> Result<OwnedFd, Errno> {
    // SAFETY: the path is a C string; the call has no other requirement.
    let device =
        unsafe { libc::open(c"/dev/userfaultfd".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    Errno::check(device.into())?;
    // SAFETY: the descriptor was opened above and is owned by nobody else.
    let device = unsafe { OwnedFd::from_raw_fd(device) };
    // SAFETY: this operation takes flags by value and touches no memory.
    let fd = unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            IOC_NEW as libc::Ioctl,
            libc::O_CLOEXEC | libc::O_NONBLOCK,
        )
    };
    Errno::check(fd.into())?;
    // SAFETY: the kernel made the descriptor for this call.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn open_system_call(flags: libc::c_int) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes flags by value and touches no memory.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_userfaultfd,
            libc::O_CLOEXEC | libc::O_NONBLOCK | flags,
        )
    };
    let fd = Errno::check(fd)?;
    // SAFETY: the kernel made the descriptor for this call.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
