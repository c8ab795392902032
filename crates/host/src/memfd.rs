//! A file in memory, as large as a mapping: what is in it is a page, what is not is a hole.
//!
//! Linux counterpart: `mm/memfd.c`, `mm/shmem.c`.

use crate::errno::Errno;
use pinless_mm::addr::{PAGE_SIZE, PageIndex, PageRun};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A sealed memfd of fixed size.
///
/// The descriptor is given to no one but who maps it through this crate: a read through it shows a
/// hole as zeros, and a write fills one, and no userfaultfd hears of either.
#[derive(Debug)]
pub(crate) struct Memfd {
    fd: OwnedFd,
    nr_pages: u32,
}

impl Memfd {
    /// Makes a file of `nr_pages` holes.
    pub(crate) fn create(nr_pages: u32) -> Result<Self, Errno> {
        // SAFETY: the name is a C string; the call has no other requirement.
        let fd = unsafe {
            libc::memfd_create(
                c"pinless".as_ptr(),
                libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
            )
        };
        Errno::check(fd.into())?;
        // SAFETY: the descriptor was made above and is owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let len = i64::from(nr_pages) * PAGE_SIZE as i64;
        // SAFETY: the call takes numbers and touches no memory.
        Errno::check(unsafe { libc::ftruncate(fd.as_raw_fd(), len) }.into())?;
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: as above.
        Errno::check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) }.into())?;
        Ok(Self { fd, nr_pages })
    }

    /// Takes over a file that was passed on, of at least `nr_pages` pages that nobody can take
    /// away from its end.
    pub(crate) fn adopt(fd: OwnedFd, nr_pages: u32) -> Result<Self, Errno> {
        // SAFETY: the call takes numbers and touches no memory.
        let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
        let seals = Errno::check(seals.into())? as i32;
        // SAFETY: as above.
        let len = Errno::check(unsafe { libc::lseek(fd.as_raw_fd(), 0, libc::SEEK_END) })?;
        let is_fit =
            seals & libc::F_SEAL_SHRINK != 0 && len >= i64::from(nr_pages) * PAGE_SIZE as i64;
        if is_fit {
            Ok(Self { fd, nr_pages })
        } else {
            Err(Errno(libc::EINVAL))
        }
    }

    /// How many pages it may have.
    pub(crate) fn nr_pages(&self) -> u32 {
        self.nr_pages
    }

    /// Gives the frames of a run back to the machine: it is unmapped wherever it is mapped, also
    /// in other processes, and a hole from then on.
    pub(crate) fn punch(&self, run: PageRun) -> Result<(), Errno> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (offset, len) = (offset(run.first), run.len_bytes() as i64);
        loop {
            // SAFETY: the call takes numbers. What the frames hold is the caller's, and no Rust
            // reference into a mapping of the file exists.
            let done = unsafe { libc::fallocate(self.fd.as_raw_fd(), mode, offset, len) };
            match Errno::check(done.into()) {
                Err(Errno(libc::EINTR)) => {}
                done => return done.map(drop),
            }
        }
    }

    /// Whether there is a page, and not a hole.
    pub(crate) fn has(&self, page: PageIndex) -> Result<bool, Errno> {
        Ok(self.next(page, libc::SEEK_DATA)? == page)
    }

    /// Tells `each` of the pages of `run`, in order, whether there is one.
    pub(crate) fn pages_of(
        &self,
        run: PageRun,
        mut each: impl FnMut(PageIndex, bool),
    ) -> Result<(), Errno> {
        let mut first = run.first;
        while first < run.end() {
            let data = self.next(first, libc::SEEK_DATA)?.min(run.end());
            (first..data).for_each(|page| each(page, false));
            first = data;
            if first < run.end() {
                let hole = self.next(first, libc::SEEK_HOLE)?.min(run.end());
                (first..hole).for_each(|page| each(page, true));
                first = hole;
            }
        }
        Ok(())
    }

    /// The first page from `page` on that is data, or a hole; the end of the file if there is
    /// none. Pages that the kernel has swapped out are data.
    fn next(&self, page: PageIndex, whence: i32) -> Result<PageIndex, Errno> {
        // SAFETY: the call takes numbers and touches no memory; nobody uses the file's position.
        let found = unsafe { libc::lseek(self.fd.as_raw_fd(), offset(page), whence) };
        match Errno::check(found) {
            Ok(found) => Ok((found / PAGE_SIZE as i64) as PageIndex),
            Err(Errno(libc::ENXIO)) => Ok(self.nr_pages),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for Memfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn offset(page: PageIndex) -> i64 {
    i64::from(page) * PAGE_SIZE as i64
}
