//! The private backend of the primary MMU: anonymous memory, and a staging area of equal size.
//!
//! Page `i` of the mapping has slot `i` of the staging area, so slots need no allocator and a run
//! of pages is a run of slots. Each area has a userfaultfd of its own: the mapping's reports
//! faults, the staging area's exists so that pages can be moved there, and so that a stray access
//! to an empty slot is a SIGBUS and not a silent zero page.
//!
//! What a move answers is not trusted unless it is full success: Linux 6.18 can answer EEXIST
//! with a negative count although every page has moved. See [`moving`].
//!
//! Linux counterpart: `mm/userfaultfd.c`.

mod moving;

use crate::errno::Errno;
use crate::pagemap::Pagemap;
use crate::region::Region;
use crate::thread;
use crate::uaccess;
use crate::uffd::{OpenError, Source, Stopped, Track, Uffd, Unavailable, feature};
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use pinless_mm::addr::{PAGE_SIZE, PageBuf, PageIndex, PageRun, Vaddr};
use pinless_mm::primary_mmu::{Access, Detached, DmaFault, MmuError, PrimaryMmu};

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
            Self::Os { operation, errno } => write!(f, "{operation} failed: {errno}"),
        }
    }
}

impl std::error::Error for CreateError {}

impl From<OpenError> for CreateError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Unavailable(unavailable) => Self::Unavailable(unavailable),
            OpenError::Handshake(errno) => Self::Features(errno),
        }
    }
}

/// The primary MMU of one mapping of anonymous private memory.
///
/// A zero page of [`PrimaryMmu::map_zero`] and a page of [`PrimaryMmu::reattach`] are writable
/// without a trap.
pub struct PrivateMmu {
    // Fields drop in this order. The memory goes before the descriptors: a descriptor that is
    // closed first would leave a moment in which an access to an absent page reads zeros.
    mapping: Region,
    staging: Region,
    uffd: Uffd,
    staging_uffd: Uffd,
    pagemap: Pagemap,
    nr_pages: u32,
    mode: FaultMode,
    /// One bit a page: a fault was once refused by poison of ours, which a later fill may remove.
    /// Never cleared: a mark without its bit would look like a foreign page.
    denied: Box<[AtomicU64]>,
}

impl PrivateMmu {
    /// Makes a mapping of `nr_pages` holes.
    ///
    /// # Errors
    ///
    /// See [`CreateError`].
    pub fn create(nr_pages: u32, mode: FaultMode) -> Result<Self, CreateError> {
        if nr_pages == 0 {
            return Err(CreateError::Empty);
        }
        let os = |operation| move |errno| CreateError::Os { operation, errno };
        let common = feature::WP | feature::POISON | feature::MOVE;
        let features = match mode {
            FaultMode::Service => common | feature::THREAD_ID | feature::EXACT_ADDRESS,
            FaultMode::InThread => common | feature::SIGBUS | feature::EXACT_ADDRESS,
        };
        let uffd = Uffd::open(features)?;
        let staging_uffd = Uffd::open(feature::MOVE | feature::SIGBUS)?;
        let mapping = Region::reserve(nr_pages).map_err(os("mmap"))?;
        let staging = Region::reserve(nr_pages).map_err(os("mmap"))?;
        uffd.register(mapping.base(), mapping.len(), Track::MissingAndWrites)
            .map_err(os("UFFDIO_REGISTER"))?;
        staging_uffd
            .register(staging.base(), staging.len(), Track::Missing)
            .map_err(os("UFFDIO_REGISTER"))?;
        let pagemap = Pagemap::open().map_err(os("open /proc/self/pagemap"))?;
        let nr_words = nr_pages.div_ceil(u64::BITS) as usize;
        Ok(Self {
            mapping,
            staging,
            uffd,
            staging_uffd,
            pagemap,
            nr_pages,
            mode,
            denied: (0..nr_words).map(|_| AtomicU64::new(0)).collect(),
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

    /// The address range of the staging area.
    pub(crate) fn staging_range(&self) -> (usize, usize) {
        (self.staging.base(), self.staging.len())
    }

    /// The userfaultfd that reports the faults of the mapping.
    pub(crate) fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    /// The page at an address.
    pub(crate) fn page_at(&self, address: usize) -> Option<PageIndex> {
        let offset = address.checked_sub(self.mapping.base())?;
        (offset < self.mapping.len()).then_some((offset / PAGE_SIZE) as PageIndex)
    }

    /// Whether there is a mark at the page's address, such as poison. Callable from a signal
    /// handler.
    pub(crate) fn is_marked(&self, page: PageIndex) -> bool {
        let entry = self.pagemap.entry(self.address(page));
        entry.is_ok_and(|entry| entry.is_mark())
    }

    /// Has whoever waits for the page try again.
    pub(crate) fn wake(&self, page: PageIndex) {
        // Fails only when the range is gone, and then nobody waits there.
        let _ = self.uffd.wake(self.address(page), PAGE_SIZE);
    }

    /// Ends the accesses that wait for the page in SIGBUS. Unlike [`PrimaryMmu::poison`] it is
    /// not for good: a later fill of the page removes the mark. May race with everything.
    pub(crate) fn deny(&self, page: PageIndex) {
        let (word, bit) = self.denied_bit(page);
        // Release: pairs with the acquire in `was_denied`; who meets the mark finds the bit.
        word.fetch_or(bit, Ordering::Release);
        if self.uffd.poison(self.address(page), PAGE_SIZE).is_err() {
            // A page came in between: the access is good now.
            self.wake(page);
        }
    }

    /// Makes every later access to the mapping end in SIGSEGV, and has whoever waits try again.
    pub(crate) fn seal(&self) {
        // Fails only when somebody else unmapped the range, which has the same effect.
        let _ = self.mapping.seal();
        let _ = self.uffd.wake(self.mapping.base(), self.mapping.len());
    }

    /// Whether a mark at the page may be one of [`Self::deny`].
    fn was_denied(&self, page: PageIndex) -> bool {
        let (word, bit) = self.denied_bit(page);
        // Acquire: pairs with the release in `deny`.
        word.load(Ordering::Acquire) & bit != 0
    }

    fn denied_bit(&self, page: PageIndex) -> (&AtomicU64, u64) {
        let word = &self.denied[(page / u64::BITS) as usize];
        (word, 1 << (page % u64::BITS))
    }

    /// Removes the mark that [`Self::deny`] left at a page, if there is one. The caller owns the
    /// page, which is a hole in its books.
    fn take_denied(&self, page: PageIndex) -> bool {
        if !self.was_denied(page) || !self.is_marked(page) {
            return false;
        }
        // The bit stays: a refusal that is on its way may leave its mark after this one is gone.
        self.mapping
            .discard(page as usize * PAGE_SIZE, PAGE_SIZE)
            .is_ok()
    }

    fn address(&self, page: PageIndex) -> usize {
        self.mapping.base() + page as usize * PAGE_SIZE
    }

    fn slot(&self, page: PageIndex) -> usize {
        self.staging.base() + page as usize * PAGE_SIZE
    }

    #[track_caller]
    fn assert_inside(&self, run: PageRun) {
        assert!(
            run.first <= self.nr_pages && run.nr <= self.nr_pages - run.first,
            "{run} is not in a mapping of {} pages",
            self.nr_pages
        );
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
                let entry = self.pagemap.entry(self.address(page));
                if again && self.take_denied(page) {
                    return Ok(());
                }
                match entry {
                    Ok(entry) if entry.is_occupied() => {
                        self.wake(page);
                        Err(MmuError::ForeignFill { page })
                    }
                    // The kernel says that a page is there, and that none is: it has just gone.
                    Ok(_) if again => Ok(()),
                    _ => Err(mmu_error(operation, page, errno)),
                }
            }
            _ => Err(mmu_error(operation, page, errno)),
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
        self.assert_inside(run);
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
        self.assert_inside(run);
        region
            .discard(run.first as usize * PAGE_SIZE, run.len_bytes())
            .map_err(|errno| match errno.0 {
                // This call's word for a part that is not mapped; it allocates nothing.
                libc::ENOMEM => MmuError::Gone { page: run.first },
                _ => mmu_error(operation, run.first, errno),
            })
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

impl PrimaryMmu for PrivateMmu {
    fn base(&self) -> Vaddr {
        Vaddr(self.mapping.base() as u64)
    }

    fn nr_pages(&self) -> u32 {
        self.nr_pages
    }

    fn map_zero(&self, run: PageRun) -> Result<(), MmuError> {
        self.fill("UFFDIO_ZEROPAGE", run, |left| {
            self.uffd
                .zeropage(self.address(left.first), left.len_bytes())
        })
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
        })
    }

    fn detach(&self, run: PageRun, outcome: &mut [Detached]) -> Result<(), MmuError> {
        self.assert_inside(run);
        assert_eq!(
            outcome.len(),
            run.nr as usize,
            "one outcome for each page of the run"
        );
        moving::detach(self, run, outcome)
    }

    fn reattach(&self, run: PageRun) -> Result<(), MmuError> {
        self.assert_inside(run);
        moving::reattach(self, run)
    }

    fn read_detached(&self, page: PageIndex, into: &mut PageBuf) {
        self.assert_inside(PageRun::single(page));
        // SAFETY: 1. The slot lies in the staging area, which lives as long as `self`. 2. The
        // caller owns the page and says that it is in its slot (trait contract), so nobody
        // writes there; if it is not, the access is a SIGBUS and not another page's data.
        // 3. `into` is memory of the caller's, apart from the staging area.
        unsafe {
            core::ptr::copy_nonoverlapping(
                self.slot(page) as *const u8,
                into.as_mut_ptr(),
                PAGE_SIZE,
            );
        }
    }

    fn free_detached(&self, run: PageRun) -> Result<(), MmuError> {
        self.discard(&self.staging, "madvise of slots", run)
    }

    fn zap(&self, run: PageRun) -> Result<(), MmuError> {
        self.discard(&self.mapping, "madvise", run)
    }

    fn protect(&self, run: PageRun, access: Access) -> Result<(), MmuError> {
        self.assert_inside(run);
        if run.nr == 0 {
            return Ok(());
        }
        let mut nr_retries = 0;
        loop {
            let done = self.uffd.write_protect(
                self.address(run.first),
                run.len_bytes(),
                access == Access::Read,
            );
            match done {
                Ok(()) => return Ok(()),
                Err(Errno(libc::EAGAIN)) if nr_retries < NR_RETRIES_MAX => nr_retries += 1,
                Err(errno) => return Err(mmu_error("UFFDIO_WRITEPROTECT", run.first, errno)),
            }
        }
    }

    fn poison(&self, run: PageRun) -> Result<(), MmuError> {
        self.assert_inside(run);
        let mut left = run;
        let mut nr_retries = 0;
        while left.nr > 0 {
            let Err(stopped) = self.uffd.poison(self.address(left.first), left.len_bytes()) else {
                break;
            };
            let nr_done = match (pages_done(stopped.done, left.nr), stopped.errno.0) {
                // A page is there, so it is passed over; or a mark that does the same.
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

    fn is_present(&self, page: PageIndex) -> bool {
        self.assert_inside(PageRun::single(page));
        let entry = self.pagemap.entry(self.address(page));
        entry.is_ok_and(|entry| {
            // A mark is a page in the kernel's swap, unless a refused fault left it.
            entry.is_present() || entry.is_mark() && !self.was_denied(page)
        })
    }

    fn dma_read(&self, offset: u64, into: &mut [u8]) -> Result<(), DmaFault> {
        let address = self.dma_address(offset, into.len());
        let _engine = thread::mark_engine_thread();
        // SAFETY: the bytes lie in the mapping (`dma_address`), which lives as long as `self`.
        unsafe { uaccess::copy_in(into, address as *const u8) }.map_err(|_| DmaFault)
    }

    fn dma_write(&self, offset: u64, from: &[u8]) -> Result<(), DmaFault> {
        let address = self.dma_address(offset, from.len());
        let _engine = thread::mark_engine_thread();
        // SAFETY: as in `dma_read`; no Rust reference into the mapping exists.
        unsafe { uaccess::copy_out(address as *mut u8, from) }.map_err(|_| DmaFault)
    }
}

impl fmt::Debug for PrivateMmu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateMmu")
            .field("base", &self.base())
            .field("nr_pages", &self.nr_pages)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
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
