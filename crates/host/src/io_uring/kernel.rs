//! The kernel's side of a ring: every system call, and every use of the shared queues.

use super::error::SetupError;
use super::index::SlotNr;
use super::{ENTRIES_MAX, Kind, SLOTS_MAX};
use crate::errno::Errno;
use io_uring::types::{CancelBuilder, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    /// From a file into memory.
    Read,
    /// From memory to a file.
    Write,
}

/// One transfer as the kernel is told of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    pub(super) direction: Direction,
    pub(super) fd: RawFd,
    pub(super) file_offset: u64,
    pub(super) address: usize,
    pub(super) len: u32,
    pub(super) slot: Option<SlotNr>,
}

/// What a completion is about. It travels through the kernel in 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Token {
    /// The operation with this number in our table.
    Op(u32),
    /// The kernel has let go of what was registered in this slot.
    Released(SlotNr),
    /// Only there to wake whoever waits.
    Kick,
    /// The doorbell rang.
    Doorbell,
    /// The answer to a request to cancel.
    Cancel,
}

impl Token {
    fn to_bits(self) -> u64 {
        let (kind, number) = match self {
            Self::Op(number) => (1, number),
            Self::Released(number) => (2, number),
            Self::Kick => (3, 0),
            Self::Doorbell => (4, 0),
            Self::Cancel => (5, 0),
        };
        kind << 32 | u64::from(number)
    }

    fn from_bits(bits: u64) -> Option<Self> {
        let number = bits as u32;
        match bits >> 32 {
            1 => Some(Self::Op(number)),
            2 => Some(Self::Released(number)),
            3 => Some(Self::Kick),
            4 => Some(Self::Doorbell),
            5 => Some(Self::Cancel),
            _ => None,
        }
    }
}

/// A completion.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    /// `None` for bits that we never sent.
    pub(super) token: Option<Token>,
    pub(super) result: i32,
    /// More completions of the same request follow.
    pub(super) has_more: bool,
}

/// The right to use the queues that are shared with the kernel.
///
/// # Invariants
///
/// There is one for each [`Kernel`], made with it.
#[derive(Debug)]
pub(super) struct Queues(());

/// A ring and its table of buffers.
pub(super) struct Kernel {
    ring: IoUring,
    /// Where other threads ring for the owner of a single-issuer ring.
    doorbell: Option<OwnedFd>,
}

impl Kernel {
    pub(super) fn setup(
        entries: u32,
        nr_slots: u32,
        kind: Kind,
    ) -> Result<(Self, Queues), SetupError> {
        let is_possible =
            (1..=ENTRIES_MAX).contains(&entries) && (1..=SLOTS_MAX).contains(&nr_slots);
        if !is_possible {
            return Err(SetupError::Bounds { entries, nr_slots });
        }
        let failed =
            |operation| move |error: io::Error| SetupError::from_os(operation, errno_of(&error));
        let mut builder = IoUring::builder();
        // Room for every completion that can be outstanding, so that none overflows: one for each
        // operation and each slot, and the odd kick, doorbell and cancellation.
        builder
            .dontfork()
            .setup_cqsize((entries + nr_slots + 8).next_power_of_two());
        if kind == Kind::SingleIssuer {
            builder.setup_single_issuer();
        }
        let ring = builder.build(entries).map_err(failed("io_uring_setup"))?;
        ring.submitter()
            .register_buffers_sparse(nr_slots)
            .map_err(failed("io_uring_register of a sparse buffer table"))?;
        let doorbell = match kind {
            Kind::Shared => None,
            Kind::SingleIssuer => Some(eventfd().map_err(|errno| SetupError::Os {
                operation: "eventfd",
                errno,
            })?),
        };
        // INVARIANT: the only place where `Queues` are made, together with their ring.
        Ok((Self { ring, doorbell }, Queues(())))
    }

    /// Registers memory in a slot that is empty. The kernel pins the pages, for writing, whatever
    /// they will be used for (`FOLL_WRITE | FOLL_LONGTERM`).
    ///
    /// # Safety
    ///
    /// Until `Token::Released(slot)` has come, `address..address + len` is mapped, or the slot is
    /// not used; and no Rust reference to these bytes exists.
    pub(super) unsafe fn install(
        &self,
        slot: SlotNr,
        address: usize,
        len: usize,
    ) -> Result<(), Errno> {
        let buffer = libc::iovec {
            iov_base: address as *mut libc::c_void,
            iov_len: len,
        };
        let tag = Token::Released(slot).to_bits();
        // SAFETY: the kernel reads the two arrays during the call. That the memory behind them
        // stays fit to be written is the caller's promise.
        unsafe {
            self.ring
                .submitter()
                .register_buffers_update(slot, &[buffer], Some(&[tag]))
        }
        .map_err(|error| errno_of(&error))
    }

    /// Empties a slot. `Token::Released(slot)` comes when the kernel has let go: at once, or when
    /// the last operation that uses the slot ends. Does not wait for it, and allocates nothing. It
    /// takes the kernel's lock of this ring, which is held for bounded work: ours is held around
    /// each submission, so what is left is the kernel's own finishing of operations.
    pub(super) fn clear(&self, slot: SlotNr) -> Result<(), Errno> {
        let nothing = libc::iovec {
            iov_base: core::ptr::null_mut(),
            iov_len: 0,
        };
        // SAFETY: an empty entry names no memory.
        unsafe {
            self.ring
                .submitter()
                .register_buffers_update(slot, &[nothing], None)
        }
        .map_err(|error| errno_of(&error))
    }

    /// Queues a transfer; false when the queue is full.
    ///
    /// # Safety
    ///
    /// Until the completion of `Token::Op(op)` has come, and `Token::Released` after it if the
    /// slot was cleared meanwhile, the bytes at the transfer's address stay mapped and no Rust
    /// reference to them exists. If it has a slot, the slot holds them.
    pub(super) unsafe fn push_transfer(
        &self,
        queues: &mut Queues,
        op: u32,
        transfer: &Transfer,
    ) -> bool {
        let Transfer {
            fd,
            file_offset,
            len,
            ..
        } = *transfer;
        let (fd, at) = (Fd(fd), transfer.address as *mut u8);
        let entry = match (transfer.direction, transfer.slot) {
            (Direction::Read, Some(slot)) => opcode::ReadFixed::new(fd, at, len, slot as u16)
                .offset(file_offset)
                .build(),
            (Direction::Write, Some(slot)) => opcode::WriteFixed::new(fd, at, len, slot as u16)
                .offset(file_offset)
                .build(),
            (Direction::Read, None) => opcode::Read::new(fd, at, len).offset(file_offset).build(),
            (Direction::Write, None) => opcode::Write::new(fd, at, len).offset(file_offset).build(),
        };
        // SAFETY: the entry names no memory but that of the transfer, for which the caller vouches.
        unsafe { self.push(queues, entry, Token::Op(op)) }
    }

    /// Queues a completion that comes at once.
    pub(super) fn push_kick(&self, queues: &mut Queues) -> bool {
        // SAFETY: the request names no memory.
        unsafe { self.push(queues, opcode::Nop::new().build(), Token::Kick) }
    }

    /// Queues a request to cancel one operation.
    pub(super) fn push_cancel(&self, queues: &mut Queues, op: u32) -> bool {
        let entry = opcode::AsyncCancel::new(Token::Op(op).to_bits()).build();
        // SAFETY: the request names no memory.
        unsafe { self.push(queues, entry, Token::Cancel) }
    }

    /// Queues a request to cancel everything.
    pub(super) fn push_cancel_all(&self, queues: &mut Queues) -> bool {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
        // SAFETY: the request names no memory.
        unsafe { self.push(queues, entry, Token::Cancel) }
    }

    /// Has a completion come whenever the doorbell rings.
    pub(super) fn push_doorbell(&self, queues: &mut Queues) -> bool {
        let Some(doorbell) = &self.doorbell else {
            return true;
        };
        let entry = opcode::PollAdd::new(Fd(doorbell.as_raw_fd()), libc::POLLIN as u32)
            .multi(true)
            .build();
        // SAFETY: the request names no memory.
        unsafe { self.push(queues, entry, Token::Doorbell) }
    }

    /// Wakes the owner if it waits for completions. Callable from any thread; never waits.
    pub(super) fn ring_doorbell(&self) {
        let Some(doorbell) = &self.doorbell else {
            return;
        };
        let one = 1_u64;
        // SAFETY: eight bytes are read from `one`. It can only fail when the counter is at its
        // end, and then the doorbell is ringing already.
        unsafe {
            libc::write(
                doorbell.as_raw_fd(),
                (&raw const one).cast(),
                size_of::<u64>(),
            )
        };
    }

    /// Hands what is queued to the kernel; false when part of it stays queued, for want of memory.
    pub(super) fn submit(&self, queues: &mut Queues) -> bool {
        loop {
            let nr = self.nr_queued(queues);
            if nr == 0 {
                return true;
            }
            // SAFETY: no argument but numbers. The caller holds the queues, so `nr` is exact.
            match unsafe { self.ring.submitter().enter::<()>(nr, 0, 0, None) } {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(taken) if taken > 0 => {}
                Ok(_) | Err(_) => return false,
            }
        }
    }

    /// The next completion that has come.
    pub(super) fn next(&self, queues: &mut Queues) -> Option<Completion> {
        let Queues(()) = queues;
        // SAFETY: the one `Queues` of this ring is borrowed exclusively (its invariant), so nobody
        // else has a view of the completion queue while this one lives.
        let entry = unsafe { self.ring.completion_shared() }.next()?;
        Some(Completion {
            token: Token::from_bits(entry.user_data()),
            result: entry.result(),
            has_more: cqueue::more(entry.flags()),
        })
    }

    /// Waits until a completion is in the queue. Touches no shared queue, so it needs no lock. May
    /// return without.
    pub(super) fn wait(&self) {
        const GETEVENTS: u32 = 1;
        // SAFETY: no argument but numbers. An error is a wait that ended early: a signal.
        let _ = unsafe { self.ring.submitter().enter::<()>(0, 1, GETEVENTS, None) };
    }

    /// Lets the kernel finish what it can finish now for this thread.
    pub(super) fn run_task_work(&self) {
        const GETEVENTS: u32 = 1;
        // SAFETY: as in `wait`.
        let _ = unsafe { self.ring.submitter().enter::<()>(0, 0, GETEVENTS, None) };
    }

    fn nr_queued(&self, queues: &mut Queues) -> u32 {
        let Queues(()) = queues;
        // SAFETY: as in `next`, for the submission queue.
        unsafe { self.ring.submission_shared() }.len() as u32
    }

    /// # Safety
    ///
    /// The memory that `entry` names is fit for the kernel until its completion has come.
    unsafe fn push(&self, queues: &mut Queues, entry: squeue::Entry, token: Token) -> bool {
        let Queues(()) = queues;
        let entry = entry.user_data(token.to_bits());
        // SAFETY: 1. as in `next`, for the submission queue. 2. the caller vouches for the memory.
        unsafe { self.ring.submission_shared().push(&entry) }.is_ok()
    }
}

fn errno_of(error: &io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

fn eventfd() -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes two numbers and answers a descriptor or -1.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    let fd = Errno::check(fd.into())? as RawFd;
    // SAFETY: the descriptor was made above, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for token in [
            Token::Op(0),
            Token::Op(u32::MAX),
            Token::Released(0),
            Token::Released(16383),
            Token::Kick,
            Token::Doorbell,
            Token::Cancel,
        ] {
            assert_eq!(Token::from_bits(token.to_bits()), Some(token));
        }
        assert_eq!(Token::from_bits(0), None);
    }
}
