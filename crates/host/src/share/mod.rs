//! Memory that another process maps too.
//!
//! The owner sends the file; the other process, a [`Client`], maps it, has a userfaultfd report the
//! faults of its mapping, and sends that and the address back. From then on the owner resolves the
//! client's faults ([`Peer`]), and keeps it from writing to pages that it takes away. None of that
//! needs an answer of the client: a client that hangs holds up nobody, and keeps no memory.
//!
//! The file is not handed to anybody else, because the kernel fills a hole with zeros for whoever
//! maps the file without a userfaultfd: the process would read zeros where contents are stored, and
//! the owner would find a page where it left none.
//!
//! A client keeps its own userfaultfd open, so that its faults wait even when the owner has died;
//! its watcher sees that the connection has ended, and then every access ends in SIGBUS.
//!
//! Linux counterpart: the vhost-user protocol does the same for postcopy.

mod client;
mod wire;

pub use client::Client;

use crate::errno::Errno;
use crate::fault_thread::{FaultService, FaultSide, Service};
use crate::fork::is_forked_child;
use crate::mapping::HostMapping;
use crate::primary_mmu::{CreateError, is_nobodys, write_protect};
use crate::uffd::Uffd;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use pinless_mm::addr::{PAGE_SIZE, PageIndex, PageRun};
use pinless_mm::fault::FaultError;
use pinless_mm::primary_mmu::Access;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};

/// Processes that a mapping can be shared with in its life.
const NR_PEERS_MAX: usize = 64;

/// How often a peer's page table that is being changed is tried again.
const NR_RETRIES_MAX: u32 = 64;

/// Faults of a peer in a row that find no frame, each after all the time that one may wait for it,
/// after which the access ends.
const NR_STARVED_MAX: u32 = 4;

/// Why memory is not shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ShareError {
    /// The mapping was not made with [`HostMapping::create_shared`].
    NotShareable,
    /// Nobody resolves the faults of the mapping yet.
    NotAttached,
    /// It has been shared with as many processes as it can be.
    TooMany,
    /// The other process said something else than expected.
    Nonsense,
    /// The memory cannot be mapped, or this process is the child of a fork.
    Create(CreateError),
    /// A system call failed.
    Os {
        /// The call.
        operation: &'static str,
        /// Its error number; EAGAIN when the connection's own time limit passed.
        errno: Errno,
    },
}

impl fmt::Display for ShareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotShareable => f.write_str("the mapping is of private memory"),
            Self::NotAttached => f.write_str("nobody resolves the faults of the mapping yet"),
            Self::TooMany => {
                write!(
                    f,
                    "a mapping can be shared {NR_PEERS_MAX} times in its life"
                )
            }
            Self::Nonsense => f.write_str("the other process does not speak this protocol"),
            Self::Create(error) => error.fmt(f),
            Self::Os { operation, errno } => write!(f, "{operation} failed: {errno}"),
        }
    }
}

impl std::error::Error for ShareError {}

impl ShareError {
    fn os(operation: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| match errno.0 {
            libc::EPROTO => Self::Nonsense,
            _ => Self::Os { operation, errno },
        }
    }
}

/// Memory is shared with a process, until this is dropped: from then on its accesses end in SIGBUS.
#[derive(Debug)]
#[must_use = "the other process loses the memory when this is dropped"]
pub struct Share {
    // First no fault of the peer reaches the handler, then it is told.
    service: Option<Service>,
    peer: Arc<Peer>,
    stream: UnixStream,
}

impl HostMapping {
    /// Lets the process at the other end of `stream`, which calls [`Client::join`], map the memory.
    /// Its faults are resolved by `service`, whoever resolves those of this process. A fault of it
    /// that finds no frame in time is tried again; any other that fails ends in SIGBUS for good.
    ///
    /// Waits for the other process; a limit for that is set on the stream
    /// ([`UnixStream::set_read_timeout`]). The process is trusted to map the memory in no other
    /// way.
    ///
    /// # Errors
    ///
    /// See [`ShareError`].
    pub fn share(
        &self,
        stream: UnixStream,
        service: &Arc<FaultService>,
    ) -> Result<Share, ShareError> {
        if is_forked_child() {
            return Err(ShareError::Create(CreateError::ForkedChild));
        }
        let mmu = self.mmu();
        let shared = mmu.shared().ok_or(ShareError::NotShareable)?;
        let handler = self.handler().ok_or(ShareError::NotAttached)?;
        let nr_pages = shared.file().nr_pages();
        wire::send(&stream, u64::from(nr_pages), shared.file().as_fd())
            .map_err(ShareError::os("sendmsg"))?;
        let (base, uffd) = wire::receive(&stream).map_err(ShareError::os("recvmsg"))?;
        let base = usize::try_from(base).map_err(|_| ShareError::Nonsense)?;
        let len = nr_pages as usize * PAGE_SIZE;
        if !base.is_multiple_of(PAGE_SIZE) || base.checked_add(len).is_none() {
            return Err(ShareError::Nonsense);
        }
        let uffd = Uffd::adopt(uffd).map_err(ShareError::os("fcntl"))?;
        // Is it what it should be, and is all of the memory there? It has no page yet to change.
        let all = PageRun::new(0, nr_pages);
        write_protect(&uffd, base, all, false).map_err(|_| ShareError::Nonsense)?;
        let peer = Arc::new(Peer {
            uffd,
            base,
            nr_pages,
            is_closed: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
            nr_starved: AtomicU32::new(0),
        });
        // It has no page yet, and gets none before it is served: until then nobody need know it.
        shared.peers().add(&peer)?;
        // From here on a failure drops `share`, which closes the peer.
        let mut share = Share {
            service: None,
            peer,
            stream,
        };
        let side = Arc::clone(&share.peer) as Arc<dyn FaultSide>;
        let served = service.serve(side, handler);
        share.service = Some(served.map_err(ShareError::os("epoll_ctl"))?);
        Ok(share)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if is_forked_child() {
            // The connection is the parent's.
            return;
        }
        // Relaxed: whoever shows it a page at this moment does no harm, for writes are withheld
        // from it as long as it lives.
        self.peer.is_closed.store(true, Ordering::Relaxed);
        self.service = None;
        // Fails when the other end has gone.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// The processes that map a file beside its owner. Read without a lock, also in a signal handler,
/// so a place is used once.
pub(crate) struct Peers(Box<[OnceLock<Arc<Peer>>]>);

impl Default for Peers {
    fn default() -> Self {
        Self((0..NR_PEERS_MAX).map(|_| OnceLock::new()).collect())
    }
}

impl Peers {
    fn add(&self, peer: &Arc<Peer>) -> Result<(), ShareError> {
        let mut places = self.0.iter();
        let added = places.any(|place| place.set(Arc::clone(peer)).is_ok());
        added.then_some(()).ok_or(ShareError::TooMany)
    }

    fn living(&self) -> impl Iterator<Item = &Peer> {
        let peers = self.0.iter().map_while(OnceLock::get);
        // Relaxed: a hint that spares a system call.
        peers
            .map(|peer| &**peer)
            .filter(|peer| !peer.is_gone.load(Ordering::Relaxed))
    }

    /// Has no process write to the pages of a run from now on. The caller owns the pages, so
    /// nobody lets it again meanwhile.
    pub(crate) fn withhold_writes(&self, run: PageRun) -> Result<(), Errno> {
        self.protect(run, Access::Read)
    }

    /// Changes how the pages of a run may be used where they are mapped. An error says that a
    /// process may go on as before.
    pub(crate) fn protect(&self, run: PageRun, access: Access) -> Result<(), Errno> {
        self.living().try_for_each(|peer| peer.protect(run, access))
    }

    /// Has the pages of a run, which are in the file, seen in every process. The caller owns them.
    pub(crate) fn show(&self, run: PageRun, access: Access) {
        self.living().for_each(|peer| peer.show(run, access));
    }
}

/// A process that maps a file of this one.
#[derive(Debug)]
pub(crate) struct Peer {
    uffd: Uffd,
    /// Where the file begins there.
    base: usize,
    nr_pages: u32,
    /// It is shown no more pages.
    is_closed: AtomicBool,
    /// It has ended.
    is_gone: AtomicBool,
    /// Its faults in a row that found no frame.
    nr_starved: AtomicU32,
}

impl Peer {
    fn address(&self, page: PageIndex) -> usize {
        self.base + page as usize * PAGE_SIZE
    }

    fn protect(&self, run: PageRun, access: Access) -> Result<(), Errno> {
        let protect = access == Access::Read;
        match write_protect(&self.uffd, self.address(run.first), run, protect) {
            Err(Errno(libc::ESRCH)) => {
                // Relaxed: see `living`.
                self.is_gone.store(true, Ordering::Relaxed);
                Ok(())
            }
            // A page that the process has unmapped: so the others are asked for one by one.
            Err(Errno(libc::ENOENT)) if run.nr == 1 => Ok(()),
            Err(Errno(libc::ENOENT)) => {
                let mut pages = run.pages().map(PageRun::single);
                pages.try_for_each(|page| self.protect(page, access))
            }
            done => done,
        }
    }

    /// What cannot be shown now is when the process asks for it.
    fn show(&self, run: PageRun, access: Access) {
        // Relaxed: see the drop of `Share`.
        if self.is_closed.load(Ordering::Relaxed) {
            return;
        }
        if access == Access::Write && self.protect(run, access).is_err() {
            return;
        }
        let mut left = run;
        let mut nr_retries = 0;
        while left.nr > 0 && nr_retries <= NR_RETRIES_MAX {
            let protect = access == Access::Read;
            let at = self.address(left.first);
            let Err(stopped) = self.uffd.map_present(at, left.len_bytes(), protect) else {
                return;
            };
            let nr_done = match (stopped.done / PAGE_SIZE as i64, stopped.errno.0) {
                (nr_done @ 1.., _) => nr_done as u32,
                (_, libc::EEXIST) => 1,
                (_, libc::EAGAIN) => 0,
                _ => return,
            };
            nr_retries += u32::from(nr_done == 0);
            let nr_done = nr_done.min(left.nr);
            left = PageRun::new(left.first + nr_done, left.nr - nr_done);
        }
    }
}

impl Peer {
    /// Has whoever waits for a page try again.
    fn try_again(&self, page: PageIndex) {
        // Fails only when the range is gone, and then nobody waits there.
        let _ = self.uffd.wake(self.address(page), PAGE_SIZE);
    }
}

impl FaultSide for Peer {
    fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    fn page_at(&self, address: usize) -> Option<PageIndex> {
        let page = address.checked_sub(self.base)? / PAGE_SIZE;
        (page < self.nr_pages as usize).then_some(page as PageIndex)
    }

    fn wake(&self, page: PageIndex) {
        // Relaxed: only the service thread counts.
        self.nr_starved.store(0, Ordering::Relaxed);
        self.try_again(page);
    }

    /// In SIGBUS, until the page is filled for somebody else: a mark in another process cannot be
    /// taken away again but by that. So a frame is waited for more than once.
    fn refuse(&self, page: PageIndex, error: FaultError) {
        let is_starved = matches!(error, FaultError::NoFrame { .. });
        // Relaxed: as above.
        if is_starved && self.nr_starved.fetch_add(1, Ordering::Relaxed) < NR_STARVED_MAX {
            return self.try_again(page);
        }
        if is_nobodys(error) {
            // A mark of write protection would be in the way of poison. For any other reason the
            // page may still be mapped there, and is protected because somebody stores it.
            let _ = self.protect(PageRun::single(page), Access::Write);
        }
        if self.uffd.poison(self.address(page), PAGE_SIZE).is_err() {
            self.try_again(page);
        }
    }
}
