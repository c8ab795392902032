//! The other side: memory that belongs to another process.

use super::{ShareError, wire};
use crate::fork::{self, is_forked_child};
use crate::lock_order;
use crate::mapping::AccessError;
use crate::memfd::Memfd;
use crate::primary_mmu::{CreateError, SharedFile};
use crate::region::{Region, View};
use crate::registry::{self, Kind, Registration, Target};
use crate::sigbus;
use crate::uffd::Uffd;
use crate::window::Window;
use core::fmt;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

/// How often in a row a page that the owner is changing is tried to be shut.
const NR_IN_VAIN_MAX: u32 = 1 << 16;

/// A mapping of memory that another process owns and gives out with
/// [`crate::HostMapping::share`].
///
/// When the owner refuses a page, or ends, an access through this value is an error, and any other
/// access a SIGBUS. Dropping it unmaps the memory.
pub struct Client {
    // Before the memory: another mapping may get its addresses.
    _registration: Registration,
    mapped: Arc<Mapped>,
    stream: UnixStream,
    watcher: Option<JoinHandle<()>>,
}

/// The memory, which the watcher shuts when the owner has gone.
struct Mapped {
    // The memory goes before the descriptor: after that, an absent page would read as zeros.
    region: Region,
    uffd: Uffd,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("base", &self.as_ptr())
            .field("len", &self.len_bytes())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Maps the memory that the process at the other end of `stream` shares.
    ///
    /// Waits for the other process; a limit for that is set on the stream.
    ///
    /// # Errors
    ///
    /// See [`ShareError`].
    pub fn join(stream: UnixStream) -> Result<Self, ShareError> {
        lock_order::prime();
        let created = |errno| ShareError::Create(errno);
        if is_forked_child() {
            return Err(created(CreateError::ForkedChild));
        }
        let marked = fork::mark_owner();
        marked.map_err(|e| created(CreateError::os("madvise(MADV_WIPEONFORK)")(e)))?;
        sigbus::install().map_err(|e| created(CreateError::os("sigaction of SIGBUS")(e)))?;
        let (nr_pages, file) = wire::receive(&stream).map_err(ShareError::os("recvmsg"))?;
        let nr_pages = u32::try_from(nr_pages).map_err(|_| ShareError::Nonsense)?;
        let file = Memfd::adopt(file, nr_pages).map_err(|_| ShareError::Nonsense)?;
        let uffd = Uffd::open(SharedFile::FEATURES).map_err(|error| created(error.into()))?;
        let region = Region::of_file(&file, View::ReadWrite)
            .map_err(|e| created(CreateError::os("mmap")(e)))?;
        uffd.register(region.base(), region.len(), SharedFile::TRACK)
            .map_err(|e| created(CreateError::os("UFFDIO_REGISTER")(e)))?;
        // Without the descriptor nobody here can map the file in another way.
        drop(file);
        wire::send(&stream, region.base() as u64, uffd.as_fd())
            .map_err(ShareError::os("sendmsg"))?;
        let registration = registry::register(Target {
            base: region.base(),
            len: region.len(),
            kind: Kind::Foreign,
        });
        let mut client = Self {
            _registration: registration,
            mapped: Arc::new(Mapped { region, uffd }),
            stream,
            watcher: None,
        };
        client.watch().map_err(|error| ShareError::Os {
            operation: "starting the watcher",
            errno: crate::Errno(error.raw_os_error().unwrap_or(libc::EAGAIN)),
        })?;
        Ok(client)
    }

    /// Has the memory shut when the connection ends.
    fn watch(&mut self) -> std::io::Result<()> {
        let stream = self.stream.try_clone()?;
        // However long the owner says nothing, that is no news.
        stream.set_read_timeout(None)?;
        let mapped = Arc::clone(&self.mapped);
        let thread = std::thread::Builder::new().name("pinless-client".into());
        self.watcher = Some(thread.spawn(move || {
            wait_for_end(stream);
            mapped.shut();
        })?);
        Ok(())
    }

    /// The address of the first byte. Valid while this lives; what is read through it is shared
    /// with whoever else uses it.
    pub fn as_ptr(&self) -> *mut u8 {
        self.mapped.region.base() as *mut u8
    }

    /// Bytes in the mapping.
    pub fn len_bytes(&self) -> usize {
        self.mapped.region.len()
    }

    /// Reads from `offset` bytes on.
    ///
    /// # Errors
    ///
    /// See [`AccessError`]; part of `into` may be written.
    #[track_caller]
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), AccessError> {
        self.window()?.read_at(offset, into)
    }

    /// Writes to `offset` bytes on.
    ///
    /// # Errors
    ///
    /// See [`AccessError`]; part of `from` may have been written.
    #[track_caller]
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), AccessError> {
        self.window()?.write_at(offset, from)
    }

    /// Loads the word at `offset` bytes, in one access, with acquire ordering.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    #[track_caller]
    pub fn load_u64(&self, offset: u64) -> Result<u64, AccessError> {
        self.window()?.load_u64(offset)
    }

    /// Stores the word at `offset` bytes, in one access, with release ordering.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    #[track_caller]
    pub fn store_u64(&self, offset: u64, value: u64) -> Result<(), AccessError> {
        self.window()?.store_u64(offset, value)
    }

    fn window(&self) -> Result<Window, AccessError> {
        if is_forked_child() {
            return Err(AccessError::ForkedChild);
        }
        let region = &self.mapped.region;
        // SAFETY: the region lives as long as `self`, which the caller borrows meanwhile.
        Ok(unsafe { Window::new((region.base(), region.len())) })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if is_forked_child() {
            // The connection and the watcher are the parent's.
            return core::mem::forget(self.watcher.take());
        }
        // Fails when the other end has gone, and then the watcher knows.
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(watcher) = self.watcher.take() {
            // An error says that the thread panicked, and it has said so itself.
            let _ = watcher.join();
        }
    }
}

/// Waits until nobody is at the other end. What the owner says is of no interest.
fn wait_for_end(mut stream: UnixStream) {
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(1..) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
        }
    }
}

impl Mapped {
    /// Has every access end in SIGBUS. The userfaultfd stays, so what comes first is that accesses
    /// wait, and then that those that wait are told.
    fn shut(&self) {
        let (base, len) = (self.region.base(), self.region.len());
        let (mut done, mut nr_in_vain) = (0, 0);
        self.clear(0);
        while let Err(stopped) = self.uffd.poison(base + done, len - done) {
            nr_in_vain = if stopped.done > 0 { 0 } else { nr_in_vain + 1 };
            done += usize::try_from(stopped.done).unwrap_or(0);
            match stopped.errno.0 {
                _ if nr_in_vain > NR_IN_VAIN_MAX => break,
                libc::EAGAIN => {}
                // The owner showed a page meanwhile, or withheld writes to one that it takes away.
                libc::EEXIST => self.clear(done),
                // Somebody else unmapped the range: then there is nothing to shut.
                _ => break,
            }
        }
        if nr_in_vain > NR_IN_VAIN_MAX {
            // An access that ends the process is better than one that never ends.
            let _ = self.region.seal();
        }
        let _ = self.uffd.wake(base, len);
    }

    /// Takes everything from so many bytes on out of the page table, and the marks of pages that
    /// were protected, which would be in the way of poison.
    fn clear(&self, from: usize) {
        let (base, len) = (self.region.base(), self.region.len());
        // Neither fails but when somebody else unmapped the range.
        let _ = self.region.discard(from, len - from);
        let _ = self.uffd.write_protect(base + from, len - from, false);
    }
}
