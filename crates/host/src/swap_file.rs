//! A file under the compressed store, through io_uring: staging buffers that are registered once,
//! and transfers that pass by the page cache.
//!
//! Each buffer has a ring of its own, in which one operation at most is under way. So whoever waits
//! for an operation is told of that one and no other, and takes no lock that anybody else waits
//! for. Only these buffers are ever pinned, never a page of a program.
//!
//! Linux counterpart: `io_uring/rsrc.c` (registered buffers), `mm/page_io.c`.

use crate::errno::Errno;
use crate::lock_order;
use crate::region::Region;
use core::fmt;
use core::ops::RangeInclusive;
use io_uring::{IoUring, opcode, types};
use lockdep::sync::Mutex;
use pinless_mm::addr::PAGE_SIZE;
use pinless_mm::swap::{BackingFile, Buffer, CLUSTER_BYTES, FileError, FileOp};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// How many staging buffers a file may have.
const BUFFERS: RangeInclusive<u32> = 3..=64;

/// How often an operation is handed over that the kernel has no memory for at the moment.
const SUBMITS_MAX: u32 = 64;

/// Where the file and the buffer are in their ring.
const FILE: types::Fixed = types::Fixed(0);
const BUFFER: u16 = 0;

/// Why there is no file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SwapFileError {
    /// A file has from 3 to 64 staging buffers.
    Buffers {
        /// How many were asked for.
        nr_buffers: u32,
    },
    /// The folder's file system cannot make a file without a name that is read and written past
    /// the page cache (`O_TMPFILE | O_DIRECT`), or cannot make one as large.
    Open(Errno),
    /// The machine gives no ring, or pins no buffers; EPERM and ENOMEM speak of its limits
    /// (`kernel.io_uring_disabled`, `ulimit -l`).
    Ring(Errno),
}

impl fmt::Display for SwapFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Buffers { nr_buffers } => write!(
                f,
                "a file under the store has from {} to {} staging buffers, not {nr_buffers}",
                BUFFERS.start(),
                BUFFERS.end()
            ),
            Self::Open(errno) => write!(
                f,
                "no file for the store can be made there: {errno}; take a folder of a file system \
                 with O_TMPFILE and O_DIRECT, and with room"
            ),
            Self::Ring(errno) => write!(
                f,
                "no io_uring with staging buffers: {errno}; look at kernel.io_uring_disabled and \
                 at the limit on locked memory (ulimit -l)"
            ),
        }
    }
}

impl std::error::Error for SwapFileError {}

/// A file without a name, which is gone when the process is.
pub struct SwapFile {
    lanes: Box<[Mutex<Lane>]>,
    nr_clusters: u32,
}

/// A buffer and its ring.
///
/// # Invariants
///
/// The buffer is registered with the ring, and outlives it. While an operation is under way nobody
/// but the kernel accesses the buffer.
struct Lane {
    // The ring goes before the memory.
    ring: IoUring,
    buffer: Region,
    file: Arc<OwnedFd>,
    state: State,
}

/// What is going on in a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Idle,
    /// An operation of so many bytes is under way.
    Busy {
        len: u32,
    },
    /// The kernel did not take an operation, which waits in the ring.
    Refused {
        errno: Errno,
    },
    /// The same, and whoever began it was told.
    Left,
}

impl fmt::Debug for SwapFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwapFile")
            .field("nr_clusters", &self.nr_clusters)
            .field("nr_buffers", &self.lanes.len())
            .finish_non_exhaustive()
    }
}

impl SwapFile {
    /// Makes a file with room for `nr_clusters` clusters in a folder. It takes room on the device
    /// as it is written.
    ///
    /// # Errors
    ///
    /// See [`SwapFileError`].
    pub fn create_in(
        folder: &Path,
        nr_clusters: u32,
        nr_buffers: u32,
    ) -> Result<Self, SwapFileError> {
        lock_order::prime();
        if !BUFFERS.contains(&nr_buffers) {
            return Err(SwapFileError::Buffers { nr_buffers });
        }
        let file = open_in(folder, nr_clusters).map_err(SwapFileError::Open)?;
        let file = Arc::new(file);
        let lanes: Result<_, Errno> = (0..nr_buffers).map(|_| Lane::new(&file)).collect();
        Ok(Self {
            lanes: lanes.map_err(SwapFileError::Ring)?,
            nr_clusters,
        })
    }
}

fn open_in(folder: &Path, nr_clusters: u32) -> Result<OwnedFd, Errno> {
    let folder = CString::new(folder.as_os_str().as_bytes()).map_err(|_| Errno(libc::EINVAL))?;
    let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_DIRECT | libc::O_CLOEXEC;
    // SAFETY: the path is a C string; the call has no other requirement.
    let file = unsafe { libc::open(folder.as_ptr(), flags, 0o600) };
    Errno::check(file.into())?;
    // SAFETY: the descriptor was opened above and is owned by nobody else.
    let file = unsafe { OwnedFd::from_raw_fd(file) };
    let len = i64::from(nr_clusters) * CLUSTER_BYTES as i64;
    // SAFETY: the call takes numbers and touches no memory.
    Errno::check(unsafe { libc::ftruncate(file.as_raw_fd(), len) }.into())?;
    Ok(file)
}

fn errno_of(error: &io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

/// A ring with the file and the buffer in their places.
fn ring_over(file: &OwnedFd, buffer: &Region) -> Result<IoUring, Errno> {
    let ring = IoUring::new(1).map_err(|error| errno_of(&error))?;
    let part = libc::iovec {
        iov_base: buffer.base() as *mut libc::c_void,
        iov_len: CLUSTER_BYTES,
    };
    let submitter = ring.submitter();
    // SAFETY: the buffer is a mapping that outlives the ring (fields of a lane drop in order, and
    // one ring takes the place of another), is not handed to anybody else, and is accessed only
    // while nothing is under way in it.
    unsafe { submitter.register_buffers(&[part]) }.map_err(|error| errno_of(&error))?;
    let registered = submitter.register_files(&[file.as_raw_fd()]);
    registered.map_err(|error| errno_of(&error))?;
    Ok(ring)
}

impl Lane {
    fn new(file: &Arc<OwnedFd>) -> Result<Mutex<Self>, Errno> {
        let buffer = Region::reserve((CLUSTER_BYTES / PAGE_SIZE) as u32)?;
        // INVARIANT: registered with it.
        let lane = Self {
            ring: ring_over(file, &buffer)?,
            buffer,
            file: Arc::clone(file),
            state: State::Idle,
        };
        Ok(Mutex::new("host.swap_file.lane", lane))
    }

    /// The bytes of the buffer, in which nothing is under way.
    fn bytes(&mut self) -> &mut [u8] {
        let is_ours = matches!(self.state, State::Idle | State::Left);
        assert!(is_ours, "the buffer is the kernel's now");
        // SAFETY: the buffer is a readable and writable mapping of that length, which lives as long
        // as `self`; `self` is borrowed mutably, and nothing is under way in it (assertion), so
        // nobody else accesses it (type invariant). Bytes may have any value.
        unsafe { core::slice::from_raw_parts_mut(self.buffer.base() as *mut u8, CLUSTER_BYTES) }
    }

    fn submit(&mut self, op: FileOp) {
        if self.state == State::Left
            && let Err(errno) = self.renew()
        {
            self.state = State::Refused { errno };
            return;
        }
        assert_eq!(self.state, State::Idle, "two operations in one buffer");
        let at = |cluster: u32| u64::from(cluster) * CLUSTER_BYTES as u64;
        let start = self.buffer.base() as *mut u8;
        let (entry, len) = match op {
            FileOp::Write { cluster } => {
                let len = CLUSTER_BYTES as u32;
                let write = opcode::WriteFixed::new(FILE, start, len, BUFFER);
                (write.offset(at(cluster)).build(), len)
            }
            FileOp::Read {
                cluster,
                offset,
                len,
            } => {
                let is_inside = offset as usize + len as usize <= CLUSTER_BYTES;
                assert!(is_inside, "a read leaves its cluster");
                let start = start.wrapping_add(offset as usize);
                let read = opcode::ReadFixed::new(FILE, start, len, BUFFER);
                (read.offset(at(cluster) + u64::from(offset)).build(), len)
            }
        };
        // SAFETY: the entry names the registered buffer, a part that lies inside it (assertion),
        // and the registered file, all of which stay until the ring goes.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("room for the one operation that is ever under way");
        self.state = match hand_over(|| self.ring.submit()) {
            Ok(()) => State::Busy { len },
            Err(errno) => State::Refused { errno },
        };
    }

    /// Gets rid of an operation that the kernel did not take: it goes with its ring.
    fn renew(&mut self) -> Result<(), Errno> {
        self.ring = ring_over(&self.file, &self.buffer)?;
        self.state = State::Idle;
        Ok(())
    }

    fn wait(&mut self) -> Result<(), FileError> {
        let len = match self.state {
            State::Busy { len } => len,
            State::Refused { errno } => {
                self.state = State::Left;
                return Err(error_of(errno));
            }
            State::Idle | State::Left => panic!("waited for an operation that was not begun"),
        };
        let done = loop {
            if let Some(completion) = self.ring.completion().next() {
                break completion.result();
            }
            // The buffer is the kernel's until the device is done. An error says that a signal came
            // first: whatever it is, there is nothing to do but to wait on.
            let _ = self.ring.submit_and_wait(1);
        };
        self.state = State::Idle;
        match u32::try_from(done) {
            Ok(bytes) if bytes == len => Ok(()),
            Ok(bytes) => Err(FileError::Short { bytes }),
            Err(_) => Err(error_of(Errno(-done))),
        }
    }
}

/// Hands an operation over, for as often as the kernel says that it may be asked again.
fn hand_over(mut submit: impl FnMut() -> io::Result<usize>) -> Result<(), Errno> {
    let mut refused = Errno(libc::EAGAIN);
    for _ in 0..SUBMITS_MAX {
        match submit() {
            Ok(_) => return Ok(()),
            Err(error) => refused = errno_of(&error),
        }
        // A signal came, or the kernel is short of memory at the moment.
        if ![libc::EINTR, libc::EAGAIN, libc::EBUSY].contains(&refused.0) {
            break;
        }
        std::thread::yield_now();
    }
    Err(refused)
}

fn error_of(errno: Errno) -> FileError {
    match errno.0 {
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => FileError::Full,
        errno => FileError::Device { errno },
    }
}

impl BackingFile for SwapFile {
    fn nr_clusters(&self) -> u32 {
        self.nr_clusters
    }

    fn nr_buffers(&self) -> u32 {
        self.lanes.len() as u32
    }

    fn with_buffer(&self, buffer: Buffer, work: &mut dyn FnMut(&mut [u8])) {
        work(self.lanes[buffer as usize].lock().bytes());
    }

    fn submit(&self, buffer: Buffer, op: FileOp) {
        self.lanes[buffer as usize].lock().submit(op);
    }

    fn wait(&self, buffer: Buffer) -> Result<(), FileError> {
        self.lanes[buffer as usize].lock().wait()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel answers `answers` and then takes the operation: how often it was asked, and how
    /// that ended.
    #[track_caller]
    fn check(answers: &[i32], nr_asked: u32, ended: Result<(), Errno>) {
        let mut nr = 0;
        let result = hand_over(|| {
            nr += 1;
            match answers.get(nr as usize - 1) {
                Some(&errno) => Err(io::Error::from_raw_os_error(errno)),
                None => Ok(1),
            }
        });
        assert_eq!((nr, result), (nr_asked, ended));
    }

    #[test]
    fn an_operation_is_handed_over_a_bounded_number_of_times() {
        check(&[], 1, Ok(()));
        check(&[libc::EINTR, libc::EAGAIN, libc::EBUSY], 4, Ok(()));
        check(&[libc::EINTR, libc::EBADF], 2, Err(Errno(libc::EBADF)));
        let busy = [libc::EAGAIN; 1000];
        check(&busy, SUBMITS_MAX, Err(Errno(libc::EAGAIN)));
    }
}
