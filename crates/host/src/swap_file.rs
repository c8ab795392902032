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
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How many staging buffers a file may have.
const BUFFERS: RangeInclusive<u32> = 2..=64;

/// Where the file and the buffer are in their ring.
const FILE: types::Fixed = types::Fixed(0);
const BUFFER: u16 = 0;

/// Why there is no file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SwapFileError {
    /// A file has from 2 to 64 staging buffers.
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

fn errno_of(error: &std::io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

impl Lane {
    fn new(file: &OwnedFd) -> Result<Mutex<Self>, Errno> {
        let buffer = Region::reserve((CLUSTER_BYTES / PAGE_SIZE) as u32)?;
        let ring = IoUring::new(1).map_err(|error| errno_of(&error))?;
        let part = libc::iovec {
            iov_base: buffer.base() as *mut libc::c_void,
            iov_len: CLUSTER_BYTES,
        };
        let submitter = ring.submitter();
        // SAFETY: the buffer is a mapping that outlives the ring (fields drop in order), is not
        // handed to anybody else, and is accessed only while nothing is under way in it.
        unsafe { submitter.register_buffers(&[part]) }.map_err(|error| errno_of(&error))?;
        let registered = submitter.register_files(&[file.as_raw_fd()]);
        registered.map_err(|error| errno_of(&error))?;
        // INVARIANT: registered above.
        let lane = Self {
            ring,
            buffer,
            state: State::Idle,
        };
        Ok(Mutex::new("host.swap_file.lane", lane))
    }

    /// The bytes of the buffer, in which nothing is under way.
    fn bytes(&mut self) -> &mut [u8] {
        assert_eq!(self.state, State::Idle, "the buffer is the kernel's now");
        // SAFETY: the buffer is a readable and writable mapping of that length, which lives as long
        // as `self`; `self` is borrowed mutably, and nothing is under way in it (assertion), so
        // nobody else accesses it (type invariant). Bytes may have any value.
        unsafe { core::slice::from_raw_parts_mut(self.buffer.base() as *mut u8, CLUSTER_BYTES) }
    }

    fn submit(&mut self, op: FileOp) {
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
        self.enter(0);
        self.state = State::Busy { len };
    }

    /// Hands over what was pushed, and waits for `nr_wanted` completions.
    fn enter(&self, nr_wanted: usize) {
        while let Err(error) = self.ring.submit_and_wait(nr_wanted) {
            // A signal came, or the kernel is short of memory at the moment. What else this call
            // answers speaks of rings that are not as this one was made.
            let passes = [libc::EINTR, libc::EAGAIN, libc::EBUSY];
            assert!(
                passes.contains(&errno_of(&error).0),
                "io_uring_enter: {error}"
            );
        }
    }

    fn wait(&mut self) -> Result<(), FileError> {
        let State::Busy { len } = self.state else {
            panic!("waited for an operation that was not begun");
        };
        let done = loop {
            if let Some(completion) = self.ring.completion().next() {
                break completion.result();
            }
            self.enter(1);
        };
        self.state = State::Idle;
        match u32::try_from(done) {
            Ok(bytes) if bytes == len => Ok(()),
            Ok(bytes) => Err(FileError::Short { bytes }),
            Err(_) => Err(error_of(Errno(-done))),
        }
    }
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
