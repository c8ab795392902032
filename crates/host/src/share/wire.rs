//! What two processes say to each other to share memory: a fixed number of bytes and a descriptor,
//! each way.
//!
//! Linux counterpart: `net/core/scm.c`.

use crate::errno::Errno;
use core::mem::{MaybeUninit, size_of, zeroed};
use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// The first word of each message, with the version in its last byte.
const MAGIC: u64 = u64::from_be_bytes(*b"pinless\x01");

/// Bytes of a message: the magic word and a number.
const LEN: usize = 16;

/// Room for one descriptor beside the bytes; the kernel's padding makes it two.
const CONTROL_LEN: usize = 64;

/// Aligned as the kernel's header of such data.
#[repr(align(8))]
struct Control([u8; CONTROL_LEN]);

/// Sends a number and a descriptor.
pub(super) fn send(stream: &UnixStream, value: u64, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut bytes = [0; LEN];
    bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[8..].copy_from_slice(&value.to_le_bytes());
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: LEN,
    };
    let mut control = Control([0; CONTROL_LEN]);
    // SAFETY: 1. Zero is a valid value of the header. 2. The pointers in it are to locals that
    // outlive the call. 3. The control data has room for one header and one descriptor, which the
    // macros place, aligned.
    let sent = unsafe {
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as usize;
        let place = libc::CMSG_DATA(header).cast::<RawFd>();
        place.write_unaligned(fd.as_raw_fd());
        uninterrupted(|| libc::sendmsg(stream.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL))
    };
    match sent? {
        LEN => Ok(()),
        // So few bytes go as a whole, unless the other side has nowhere to put them.
        _ => Err(Errno(libc::EAGAIN)),
    }
}

/// Receives a number and a descriptor. `EPROTO` for anything else.
pub(super) fn receive(mut stream: &UnixStream) -> Result<(u64, OwnedFd), Errno> {
    let mut bytes = [0; LEN];
    let (nr, fds) = receive_some(stream, &mut bytes)?;
    let rest = stream.read_exact(&mut bytes[nr..]);
    rest.map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EPROTO)))?;
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    match <[OwnedFd; 1]>::try_from(fds) {
        Ok([fd]) if word(0) == MAGIC => Ok((word(8), fd)),
        _ => Err(Errno(libc::EPROTO)),
    }
}

/// Receives the first bytes, and the descriptors that come with them: all of them, for they are
/// this process's now, whatever the other one was to send.
fn receive_some(
    stream: &UnixStream,
    bytes: &mut [u8; LEN],
) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: LEN,
    };
    let mut control = Control([0; CONTROL_LEN]);
    let mut message = MaybeUninit::<libc::msghdr>::zeroed();
    // SAFETY: 1. Zero is a valid value of the header. 2. The pointers in it are to locals that
    // outlive the call, and the lengths are theirs. 3. After a good answer the control data is what
    // the kernel wrote, which the macros walk within its length. 4. Each descriptor in it was made
    // for this call and belongs to nobody else.
    unsafe {
        let message = message.assume_init_mut();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as usize;
        let nr = uninterrupted(|| {
            libc::recvmsg(
                stream.as_raw_fd(),
                &raw mut *message,
                libc::MSG_CMSG_CLOEXEC,
            )
        })?;
        let mut fds = Vec::new();
        let mut header = libc::CMSG_FIRSTHDR(&raw const *message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let len = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
                let place = libc::CMSG_DATA(header).cast::<RawFd>();
                for nth in 0..len / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(place.add(nth).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const *message, header);
        }
        Ok((nr, fds))
    }
}

/// A call that a signal may interrupt before it has done anything, as those to a socket with a time
/// limit always can be.
fn uninterrupted(mut call: impl FnMut() -> isize) -> Result<usize, Errno> {
    loop {
        match Errno::check(call() as i64) {
            Err(Errno(libc::EINTR)) => {}
            done => return done.map(|nr| nr as usize),
        }
    }
}
