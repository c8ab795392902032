//! Error numbers of system calls.

use core::fmt;

/// An error number as a system call left it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// The error number of the last system call of this thread.
    pub(crate) fn last() -> Self {
        // SAFETY: `__errno_location` returns a valid pointer to this thread's errno for as long as
        // the thread runs, and no reference to it is kept.
        Self(unsafe { *libc::__errno_location() })
    }

    /// Makes this the error number that the thread sees. For signal handlers, which must leave
    /// the error number of the code that they interrupted alone.
    pub(crate) fn restore(self) {
        // SAFETY: as in `last`; the location belongs to this thread alone, so nothing races.
        unsafe { *libc::__errno_location() = self.0 };
    }

    /// The result of a system call that answers -1 for an error.
    pub(crate) fn check(result: i64) -> Result<i64, Self> {
        if result == -1 {
            Err(Self::last())
        } else {
            Ok(result)
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({}: {self})", self.0)
    }
}

impl std::error::Error for Errno {}
