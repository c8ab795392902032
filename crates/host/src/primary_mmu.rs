//! The primary MMU of a mapping: what both backends have in common, and the choice between them.
//!
//! Programs use a mapping at its addresses, whose faults a userfaultfd reports. What is behind it
//! is chosen when it is made: see [`private`] and [`shared`].
//!
//! Linux counterpart: `mm/userfaultfd.c`.

mod moving;
mod private;
mod shared;

pub(crate) use shared::SharedFile;

use crate::errno::Errno;
use crate::fault_thread::FaultSide;
use crate::fork::is_forked_child;
use crate::pagemap::Pagemap;
use crate::region::Region;
use crate::thread;
use crate::uaccess;
use crate::uffd::{OpenError, Source, Stopped, Track, Uffd, Unavailable, feature};
use bytemuck::allocation::try_zeroed_slice_box;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use pinless_mm::addr::{PAGE_SIZE, PageBuf, PageIndex, PageRun, Vaddr};
use pinless_mm::fault::FaultError;
use pinless_mm::mm_struct::Vma;
use pinless_mm::primary_mmu::{Access, Detached, DmaFault, MmuError, PrimaryMmu, ReuseFrames};
use private::Staging;

/// How often an operation that the kernel stopped for no lasting reason is tried again.
const NR_RETRIES_MAX: u32 = 64;

/// Who resolves the faults of a mapping. Fixed when the mapping is made, because the kernel fixes
/// it per userfaultfd.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultMode {
    /// A service thread; the faulting thread waits in the kernel. Works for system calls too.
    Service,
    /// The faulting thread itself, in a SIGBUS handler. About twice as fast; a system call that
    /// meets an absent page gets EFAULT.
    InThread,
}

impl FaultMode {
    /// Every mode with its name, as programs let their users write it.
    pub const NAMES: [(&'static str, Self); 2] =
        [("service", Self::Service), ("in-thread", Self::InThread)];
}

/// A fault mode that there is not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownFaultMode {
    /// What was asked for.
    pub name: String,
}

impl fmt::Display for UnknownFaultMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no fault mode `{}`; say", self.name)?;
        for (place, (name, _)) in FaultMode::NAMES.iter().enumerate() {
            let joint = if place == 0 { "" } else { " or" };
            write!(f, "{joint} `{name}`")?;
        }
        Ok(())
    }
}

impl std::error::Error for UnknownFaultMode {}

impl core::str::FromStr for FaultMode {
    type Err = UnknownFaultMode;

    fn from_str(name: &str) -> Result<Self, UnknownFaultMode> {
        let known = Self::NAMES.iter().find(|(known, _)| *known == name);
        known
            .map(|(_, mode)| *mode)
            .ok_or_else(|| UnknownFaultMode { name: name.into() })
    }
}

/// Why a mapping could not be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CreateError {
    /// The machine gives no userfaultfd.
    Unavailable(Unavailable),
    /// The machine's userfaultfd refused the features that are needed; [`crate::probe()`] says
    /// which.
    Features(Errno),
    /// A mapping has at least one page.
    Empty,
    /// This process is the child of a fork of one that has mappings.
    ForkedChild,
    /// A system call failed.
    Os {
        /// The call.
        operation: &'static str,
        /// Its error number.
        errno: Errno,
    },
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(unavailable) => unavailable.fmt(f),
            Self::Features(errno) => {
                write!(f, "userfaultfd refused the features needed: {errno}")
            }
            Self::Empty => f.write_str("a mapping has at least one page"),
            Self::ForkedChild => f.write_str(
                "a child process cannot make mappings when its parent has some; fork before the \
                 first mapping, or let the child call exec",
            ),
            Self::Os { operation, errno } => {
                write!(f, "{operation} failed: {errno}{}", remedy(*errno))
            }
        }
    }
}

impl std::error::Error for CreateError {}

/// What can be done about a system call that failed for a known reason.
fn remedy(errno: Errno) -> &'static str {
    match errno.0 {
        libc::ENOMEM => {
            "; map less, or look at ulimit -v, vm.overcommit_memory and vm.max_map_count"
        }
        libc::EMFILE | libc::ENFILE => "; look at ulimit -n and fs.file-max",
        _ => "",
    }
}

impl CreateError {
    /// What a system call that failed becomes.
    pub(crate) fn os(operation: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::Os { operation, errno }
    }
}

impl From<OpenError> for CreateError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Unavailable(unavailable) => Self::Unavailable(unavailable),
            OpenError::Handshake(errno) => Self::Features(errno),
        }
    }
}

/// What is behind the addresses of a mapping.
enum Backing {
    /// Anonymous memory, which a detach moves away.
    Private(Staging),
    /// A file in memory, which a detach unmaps.
    Shared(SharedFile),
}

/// The primary MMU of one mapping.
///
/// A zero page of [`PrimaryMmu::map_zero`] and a page of [`PrimaryMmu::reattach`] are writable
/// without a trap.
pub struct HostMmu {
    // Fields drop in this order. The memory goes before the descriptors: a descriptor that is
    // closed first would leave a moment in which an access to an absent page reads zeros.
    mapping: Region,
    backing: Backing,
    uffd: Uffd,
    pagemap: Pagemap,
    nr_pages: u32,
    mode: FaultMode,
    /// One bit a page: a fault was once refused by poison of ours, which a later fill may remove.
    /// Never cleared: a mark without its bit would look like a foreign page.
    denied: Box<[AtomicU64]>,
}

impl HostMmu {
    /// Makes a mapping of `nr_pages` holes, of anonymous memory. The kernel itself keeps a page in
    /// its place that a device has pinned, whether or not the memory manager knows.
    ///
    /// # Errors
    ///
    /// See [`CreateError`].
    pub fn create(nr_pages: u32, mode: FaultMode) -> Result<Self, CreateError> {
        Self::with(nr_pages, mode, (Staging::FEATURES, Staging::TRACK), || {
            let mapping = Region::reserve(nr_pages).map_err(CreateError::os("mmap"))?;
            Ok((mapping, Backing::Private(Staging::create(nr_pages)?)))
        })
    }

    /// Makes a mapping of `nr_pages` holes, of a file that other processes can map too. There is no
    /// check for pins of devices: a device that is not told of changes must hold a pin that the
    /// memory manager knows of, or it goes on with memory that is nobody's any more.
    ///
    /// # Errors
    ///
    /// See [`CreateError`].
    pub fn create_shared(nr_pages: u32, mode: FaultMode) -> Result<Self, CreateError> {
        let needs = (SharedFile::FEATURES, SharedFile::TRACK);
        Self::with(nr_pages, mode, needs, || {
            let (mapping, file) = SharedFile::create(nr_pages)?;
            Ok((mapping, Backing::Shared(file)))
        })
    }

    fn with(
        nr_pages: u32,
        mode: FaultMode,
        (features, track): (u64, Track),
        memory: impl FnOnce() -> Result<(Region, Backing), CreateError>,
    ) -> Result<Self, CreateError> {
        if nr_pages == 0 {
            return Err(CreateError::Empty);
        }
        let way = match mode {
            FaultMode::Service => feature::THREAD_ID,
            FaultMode::InThread => feature::SIGBUS,
        };
        let uffd = Uffd::open(features | feature::EXACT_ADDRESS | way)?;
        let (mapping, backing) = memory()?;
        uffd.register(mapping.base(), mapping.len(), track)
            .map_err(CreateError::os("UFFDIO_REGISTER"))?;
        let pagemap = Pagemap::open().map_err(CreateError::os("open /proc/self/pagemap"))?;
        let denied = try_zeroed_slice_box(nr_pages.div_ceil(u64::BITS) as usize)
            .map_err(|()| CreateError::os("allocation of a bit a page")(Errno(libc::ENOMEM)))?;
        Ok(Self {
            mapping,
            backing,
            uffd,
            pagemap,
            nr_pages,
            mode,
            denied,
        })
    }

    /// Who resolves the faults.
    pub fn mode(&self) -> FaultMode {
        self.mode
    }

    /// Where the userfaultfd came from; says whether system calls are served.
    pub fn source(&self) -> Source {
        self.uffd.source()
    }

    /// The address range of the mapping: first byte and length.
    pub(crate) fn mapping_range(&self) -> (usize, usize) {
        (self.mapping.base(), self.mapping.len())
    }

    /// Whether the pages of the mapping are those of `vma`.
    pub(crate) fn is_over(&self, vma: &Vma) -> bool {
        vma.base() == self.base() && vma.nr_pages() == self.nr_pages
    }

    /// The address range of the slots.
    pub(crate) fn slot_range(&self) -> (usize, usize) {
        let slots = match &self.backing {
            Backing::Private(staging) => &staging.region,
            Backing::Shared(file) => &file.alias,
        };
        (slots.base(), slots.len())
    }

    /// The file, of a shared mapping.
    pub(crate) fn shared(&self) -> Option<&SharedFile> {
        match &self.backing {
            Backing::Private(_) => None,
            Backing::Shared(file) => Some(file),
        }
    }

    /// Whether there is a mark at the page's address, such as poison. Callable from a signal
    /// handler.
    pub(crate) fn is_marked(&self, page: PageIndex) -> bool {
        let entry = self.pagemap.entry(self.address(page));
        entry.is_ok_and(|entry| entry.is_mark())
    }

    /// Makes every later access to the mapping end in SIGSEGV, and has whoever waits try again.
    pub(crate) fn seal(&self) {
        // Fails only when somebody else unmapped the range, which has the same effect.
        let _ = self.mapping.seal();
        let _ = self.uffd.wake(self.mapping.base(), self.mapping.len());
    }

    /// Whether a mark at the page may be one of [`FaultSide::refuse`].
    fn was_denied(&self, page: PageIndex) -> bool {
        let (word, bit) = self.denied_bit(page);
        // Acquire: pairs with the release in `refuse`.
        word.load(Ordering::Acquire) & bit != 0
    }

    fn denied_bit(&self, page: PageIndex) -> (&AtomicU64, u64) {
        let word = &self.denied[(page / u64::BITS) as usize];
        (word, 1 << (page % u64::BITS))
    }

    /// Removes the mark that [`FaultSide::refuse`] left at a page, if there is one. The caller owns
    /// the page, which is a hole in its books.
    fn take_denied(&self, page: PageIndex) -> bool {
        if !self.was_denied(page) || !self.is_marked(page) {
            return false;
        }
        // The bit stays: a refusal that is on its way may leave its mark after this one is gone.
        self.mapping
            .discard(page as usize * PAGE_SIZE, PAGE_SIZE)
            .is_ok()
    }

    /// Removes what is left in the page table of a file where a page that was protected has gone: a
    /// mark, which would be in the way of poison. The caller has just taken the entries out, so
    /// this lets no write through. It fails where the range is gone, and the mark too.
    fn clear_protection(&self, run: PageRun) {
        if run.nr > 0 {
            let _ = write_protect(&self.uffd, self.address(run.first), run, false);
        }
    }

    /// The same for a page that the kernel took out of the page table by itself. Whether there was
    /// such a mark.
    fn take_protection(&self, page: PageIndex) -> bool {
        let is_shared = matches!(self.backing, Backing::Shared(_));
        let entry = self.pagemap.entry(self.address(page));
        let is_left = entry.is_ok_and(|entry| entry.is_mark() && entry.is_write_protected());
        let is_taken = is_shared && is_left;
        if is_taken {
            self.clear_protection(PageRun::single(page));
        }
        is_taken
    }

    fn address(&self, page: PageIndex) -> usize {
        self.mapping.base() + page as usize * PAGE_SIZE
    }

    fn slot(&self, page: PageIndex) -> usize {
        match &self.backing {
            Backing::Private(staging) => staging.slot(page),
            Backing::Shared(file) => file.slot(page),
        }
    }

    #[track_caller]
    fn assert_inside(&self, run: PageRun) {
        assert!(
            run.first <= self.nr_pages && run.nr <= self.nr_pages - run.first,
            "{run} is not in a mapping of {} pages",
            self.nr_pages
        );
    }

    /// Whether this process may change pages of `run`: in a child of a fork, what the descriptors
    /// act on is the parent's.
    #[track_caller]
    fn admit(&self, run: PageRun) -> Result<(), MmuError> {
        self.assert_inside(run);
        if is_forked_child() {
            return Err(MmuError::Gone { page: run.first });
        }
        Ok(())
    }

    /// Whether the first page of what is left of a fill can be tried again; else the error.
    fn after_stopped_fill(
        &self,
        operation: &'static str,
        page: PageIndex,
        errno: Errno,
        nr_retries: &mut u32,
    ) -> Result<(), MmuError> {
        *nr_retries += 1;
        let again = *nr_retries <= NR_RETRIES_MAX;
        match errno.0 {
            libc::EAGAIN if again => Ok(()),
            libc::EEXIST => {
                let is_there = self.is_occupied(page);
                if again && self.take_denied(page) {
                    return Ok(());
                }
                match is_there {
                    Ok(true) => {
                        self.wake(page);
                        Err(MmuError::ForeignFill { page })
                    }
                    // The kernel says that a page is there, and that none is: it has just gone.
                    Ok(false) if again => Ok(()),
                    _ => Err(mmu_error(operation, page, errno)),
                }
            }
            _ => Err(mmu_error(operation, page, errno)),
        }
    }

    /// Whether there is something that keeps a fill from succeeding.
    fn is_occupied(&self, page: PageIndex) -> Result<bool, Errno> {
        match &self.backing {
            Backing::Private(_) => {
                let entry = self.pagemap.entry(self.address(page))?;
                Ok(entry.is_occupied())
            }
            Backing::Shared(file) => Ok(file.has(page)),
        }
    }

    /// Repeats an operation over `run` until it has done all, going on after each stop where it
    /// stopped.
    fn fill(
        &self,
        operation: &'static str,
        run: PageRun,
        mut step: impl FnMut(PageRun) -> Result<(), Stopped>,
    ) -> Result<(), MmuError> {
        self.admit(run)?;
        let mut left = run;
        let mut nr_retries = 0;
        while left.nr > 0 {
            let Err(stopped) = step(left) else {
                return Ok(());
            };
            let nr_done = pages_done(stopped.done, left.nr);
            if nr_done > 0 {
                left = PageRun::new(left.first + nr_done, left.nr - nr_done);
                nr_retries = 0;
            } else {
                self.after_stopped_fill(operation, left.first, stopped.errno, &mut nr_retries)?;
            }
        }
        Ok(())
    }

    fn discard(
        &self,
        region: &Region,
        operation: &'static str,
        run: PageRun,
    ) -> Result<(), MmuError> {
        self.admit(run)?;
        region
            .discard(run.first as usize * PAGE_SIZE, run.len_bytes())
            .map_err(|errno| match errno.0 {
                // This call's word for a part that is not mapped; it allocates nothing.
                libc::ENOMEM => MmuError::Gone { page: run.first },
                _ => mmu_error(operation, run.first, errno),
            })
    }

    /// Pages were put at their addresses: whoever else maps them may see them.
    fn filled(&self, run: PageRun, access: Access) {
        if let Backing::Shared(file) = &self.backing {
            file.filled(run, access);
        }
    }

    #[track_caller]
    fn dma_address(&self, offset: u64, len: usize) -> usize {
        let in_page = offset as usize % PAGE_SIZE;
        assert!(
            offset < self.mapping.len() as u64 && len <= PAGE_SIZE - in_page,
            "a device access of {len} bytes at offset {offset} does not lie in one page"
        );
        self.mapping.base() + offset as usize
    }
}

impl FaultSide for HostMmu {
    fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    fn page_at(&self, address: usize) -> Option<PageIndex> {
        let offset = address.checked_sub(self.mapping.base())?;
        (offset < self.mapping.len()).then_some((offset / PAGE_SIZE) as PageIndex)
    }

    fn wake(&self, page: PageIndex) {
        // Fails only when the range is gone, and then nobody waits there.
        let _ = self.uffd.wake(self.address(page), PAGE_SIZE);
    }

    /// In SIGBUS. Unlike [`PrimaryMmu::poison`] it is not for good: a later fill of the page
    /// removes the mark. May race with everything.
    fn refuse(&self, page: PageIndex, error: FaultError) {
        let (word, bit) = self.denied_bit(page);
        // Release: pairs with the acquire in `was_denied`; who meets the mark finds the bit.
        word.fetch_or(bit, Ordering::Release);
        let poison = || self.uffd.poison(self.address(page), PAGE_SIZE).is_err();
        if poison() && !(is_nobodys(error) && self.take_protection(page) && !poison()) {
            // A page came in between: the access is good now.
            self.wake(page);
        }
    }
}

impl PrimaryMmu for HostMmu {
    fn base(&self) -> Vaddr {
        Vaddr(self.mapping.base() as u64)
    }

    fn nr_pages(&self) -> u32 {
        self.nr_pages
    }

    fn is_shared(&self) -> bool {
        self.shared().is_some()
    }

    fn map_zero(&self, run: PageRun) -> Result<(), MmuError> {
        self.fill("UFFDIO_ZEROPAGE", run, |left| {
            self.uffd
                .zeropage(self.address(left.first), left.len_bytes())
        })?;
        self.filled(run, Access::Write);
        Ok(())
    }

    fn map_filled(
        &self,
        page: PageIndex,
        contents: &PageBuf,
        access: Access,
    ) -> Result<(), MmuError> {
        self.fill("UFFDIO_COPY", PageRun::single(page), |left| {
            self.uffd
                .copy(self.address(left.first), contents, access == Access::Read)
        })?;
        self.filled(PageRun::single(page), access);
        Ok(())
    }

    fn detach(&self, run: PageRun, outcome: &mut [Detached]) -> Result<(), MmuError> {
        outcome.fill(Detached::Busy);
        self.admit(run)?;
        assert_eq!(
            outcome.len(),
            run.nr as usize,
            "one outcome for each page of the run"
        );
        match &self.backing {
            Backing::Private(staging) => moving::detach(self, staging, run, outcome),
            Backing::Shared(file) => file.detach(self, run, outcome),
        }
    }

    fn detaches_over_holes(&self) -> bool {
        match &self.backing {
            // A move that may meet holes does not say where they were.
            Backing::Private(_) => false,
            // Entries are taken out of a range, whatever is there.
            Backing::Shared(_) => true,
        }
    }

    fn reattach(&self, run: PageRun) -> Result<(), MmuError> {
        self.admit(run)?;
        match &self.backing {
            Backing::Private(staging) => {
                moving::attach(self, staging, run, run.first).map_err(|stopped| stopped.error)
            }
            Backing::Shared(file) => file.reattach(self, run),
        }
    }

    fn read_detached(&self, page: PageIndex, into: &mut PageBuf) {
        self.assert_inside(PageRun::single(page));
        // SAFETY: 1. The slot lies in the area of slots, which lives as long as `self`; if it is
        // empty, the access is a SIGBUS and not another page's data. 2. `into` is memory of the
        // caller's, apart from the slots.
        unsafe { uaccess::copy_page(into.as_mut_ptr(), self.slot(page) as *const u8) };
    }

    fn free_detached(&self, run: PageRun) -> Result<(), MmuError> {
        match &self.backing {
            Backing::Private(staging) => self.discard(&staging.region, "madvise of slots", run),
            Backing::Shared(file) => {
                self.admit(run)?;
                file.free(run)
            }
        }
    }

    fn reuse(&self) -> Option<&dyn ReuseFrames> {
        match &self.backing {
            Backing::Private(_) => Some(self),
            // A frame belongs to its place in the file.
            Backing::Shared(_) => None,
        }
    }

    fn zap(&self, run: PageRun) -> Result<(), MmuError> {
        self.discard(&self.mapping, "madvise", run)?;
        match &self.backing {
            Backing::Private(_) => Ok(()),
            Backing::Shared(file) => {
                self.clear_protection(run);
                file.free(run)
            }
        }
    }

    fn protect(&self, run: PageRun, access: Access) -> Result<(), MmuError> {
        self.admit(run)?;
        if run.nr == 0 {
            return Ok(());
        }
        let error = |errno| mmu_error("UFFDIO_WRITEPROTECT", run.first, errno);
        let protect = access == Access::Read;
        write_protect(&self.uffd, self.address(run.first), run, protect).map_err(error)?;
        match &self.backing {
            Backing::Private(_) => Ok(()),
            Backing::Shared(file) => file.peers().protect(run, access).map_err(error),
        }
    }

    fn poison(&self, run: PageRun) -> Result<(), MmuError> {
        self.admit(run)?;
        let mut left = run;
        let mut nr_retries = 0;
        while left.nr > 0 {
            let Err(stopped) = self.uffd.poison(self.address(left.first), left.len_bytes()) else {
                break;
            };
            let nr_done = match (pages_done(stopped.done, left.nr), stopped.errno.0) {
                (0, libc::EEXIST)
                    if nr_retries < NR_RETRIES_MAX && self.take_protection(left.first) =>
                {
                    nr_retries += 1;
                    0
                }
                // A page is there, so it is passed over; or poison.
                (0, libc::EEXIST) => {
                    self.wake(left.first);
                    1
                }
                (0, libc::EAGAIN) if nr_retries < NR_RETRIES_MAX => {
                    nr_retries += 1;
                    0
                }
                (0, _) => return Err(mmu_error("UFFDIO_POISON", left.first, stopped.errno)),
                (nr_done, _) => nr_done,
            };
            left = PageRun::new(left.first + nr_done, left.nr - nr_done);
        }
        Ok(())
    }

    fn remap(&self, page: PageIndex) -> bool {
        if self.admit(PageRun::single(page)).is_err() {
            return false;
        }
        match &self.backing {
            Backing::Private(_) => self.is_present(page),
            Backing::Shared(file) => file.remap(self, page),
        }
    }

    fn is_elsewhere(&self) -> bool {
        is_forked_child()
    }

    fn is_present(&self, page: PageIndex) -> bool {
        self.assert_inside(PageRun::single(page));
        let Ok(entry) = self.pagemap.entry(self.address(page)) else {
            return false;
        };
        let is_swapped = match &self.backing {
            // A mark is a page in the kernel's swap, unless a refused fault left it.
            Backing::Private(_) => entry.is_mark() && !self.was_denied(page),
            // The kernel leaves no mark for a page of a file.
            Backing::Shared(_) => false,
        };
        entry.is_present() || is_swapped
    }

    fn dma_read(&self, offset: u64, into: &mut [u8]) -> Result<(), DmaFault> {
        let address = self.dma_address(offset, into.len());
        if is_forked_child() {
            return Err(DmaFault);
        }
        let _engine = thread::mark_engine_thread();
        // SAFETY: the bytes lie in the mapping (`dma_address`), which lives as long as `self`.
        unsafe { uaccess::copy_in(into, address as *const u8) }.map_err(|_| DmaFault)
    }

    fn dma_write(&self, offset: u64, from: &[u8]) -> Result<(), DmaFault> {
        let address = self.dma_address(offset, from.len());
        if is_forked_child() {
            return Err(DmaFault);
        }
        let _engine = thread::mark_engine_thread();
        // SAFETY: as in `dma_read`; no Rust reference into the mapping exists.
        unsafe { uaccess::copy_out(address as *mut u8, from) }.map_err(|_| DmaFault)
    }
}

impl fmt::Debug for HostMmu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostMmu")
            .field("base", &self.base())
            .field("nr_pages", &self.nr_pages)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// Makes writes to the pages of `run`, which begin at `address`, trap, or lets them pass.
pub(crate) fn write_protect(
    uffd: &Uffd,
    address: usize,
    run: PageRun,
    protect: bool,
) -> Result<(), Errno> {
    let mut nr_retries = 0;
    loop {
        match uffd.write_protect(address, run.len_bytes(), protect) {
            Err(Errno(libc::EAGAIN)) if nr_retries < NR_RETRIES_MAX => nr_retries += 1,
            done => return done,
        }
    }
}

/// Whether the error says that the page is nobody's, or not there: then there is no write to it
/// that could be missed.
pub(crate) fn is_nobodys(error: FaultError) -> bool {
    matches!(
        error,
        FaultError::Killed | FaultError::Unmapped | FaultError::Lost { .. }
    )
}

/// Whole pages in a byte count of the kernel's; nothing when it makes no sense.
fn pages_done(bytes: i64, nr_asked: u32) -> u32 {
    let nr = u64::try_from(bytes).unwrap_or(0) / PAGE_SIZE as u64;
    u32::try_from(nr).unwrap_or(u32::MAX).min(nr_asked)
}

fn mmu_error(operation: &'static str, page: PageIndex, errno: Errno) -> MmuError {
    match errno.0 {
        libc::ENOMEM => MmuError::NoMemory,
        libc::ENOENT | libc::EINVAL | libc::ESRCH => MmuError::Gone { page },
        errno => MmuError::Os { operation, errno },
    }
}
