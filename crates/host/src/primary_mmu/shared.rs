//! The shared backend: a file in memory, which other processes may map too.
//!
//! A page has one frame, in the file, and two places by what the page table says of it: it is *at
//! its address* while the mapping has an entry for it, and *in its slot* when it is in the file
//! alone. So a detach takes entries out of the page table, a reattach puts them back
//! (`UFFDIO_CONTINUE`), and what is given back becomes a hole of the file, in runs.
//!
//! An *alias*, a second mapping, is how detached pages are read. It can only be read, and has a
//! userfaultfd of its own, so that a stray access to a hole is a SIGBUS: without one the kernel
//! would fill the hole with zeros, in the file, where the owner expects a hole.
//!
//! There is no pin check here. The kernel takes a page out of a file whether or not a device holds
//! it, and such a device goes on with an orphan: those who are told of changes, and pins that the
//! memory manager knows of, are the only protection.
//!
//! Other processes ([`crate::share`]) have page tables of their own. What is detached must
//! not change, so they are kept from writing first; they may read it until it is given back, which
//! takes it out of every page table.
//!
//! Linux counterpart: `mm/shmem.c`, `mm/userfaultfd.c`.

use super::{CreateError, HostMmu, NR_RETRIES_MAX, mmu_error, pages_done};
use crate::fault_thread::FaultSide;
use crate::memfd::Memfd;
use crate::region::{Region, View};
use crate::share::Peers;
use crate::uffd::{Stopped, Track, Uffd, feature};
use pinless_mm::addr::{PAGE_SIZE, PageIndex, PageRun};
use pinless_mm::primary_mmu::{Access, Detached, MmuError};

/// The file of a mapping, and who else maps it.
pub(crate) struct SharedFile {
    // The memory goes before the descriptor; see `HostMmu`.
    pub(super) alias: Region,
    _alias_uffd: Uffd,
    file: Memfd,
    peers: Peers,
}

impl SharedFile {
    /// What the mapping's userfaultfd must be able to do.
    pub(crate) const FEATURES: u64 =
        feature::WP | feature::POISON | feature::MINOR_SHMEM | feature::WP_SHMEM;
    /// Which accesses to the mapping trap.
    pub(crate) const TRACK: Track = Track::MissingMinorAndWrites;

    /// Makes the file, and maps it where programs use it.
    pub(super) fn create(nr_pages: u32) -> Result<(Region, Self), CreateError> {
        let alias_uffd = Uffd::open(feature::SIGBUS)?;
        let file = Memfd::create(nr_pages).map_err(CreateError::os("memfd_create"))?;
        let of_file = |view| Region::of_file(&file, view).map_err(CreateError::os("mmap"));
        let (mapping, alias) = (of_file(View::ReadWrite)?, of_file(View::ReadOnly)?);
        alias_uffd
            .register(alias.base(), alias.len(), Track::Missing)
            .map_err(CreateError::os("UFFDIO_REGISTER"))?;
        let shared = Self {
            alias,
            _alias_uffd: alias_uffd,
            file,
            peers: Peers::default(),
        };
        Ok((mapping, shared))
    }

    /// The file, for a process that is about to map it.
    pub(crate) fn file(&self) -> &Memfd {
        &self.file
    }

    /// The processes that map it.
    pub(crate) fn peers(&self) -> &Peers {
        &self.peers
    }

    /// The address of a page in the alias.
    pub(super) fn slot(&self, page: PageIndex) -> usize {
        self.alias.base() + page as usize * PAGE_SIZE
    }

    /// Whether there is a page, at its address or in its slot.
    pub(super) fn has(&self, page: PageIndex) -> bool {
        // When it cannot be known, nothing is taken for lost.
        self.file.has(page).unwrap_or(true)
    }

    /// See [`pinless_mm::primary_mmu::PrimaryMmu::detach`].
    pub(super) fn detach(
        &self,
        mmu: &HostMmu,
        run: PageRun,
        outcome: &mut [Detached],
    ) -> Result<(), MmuError> {
        outcome.fill(Detached::Busy);
        if run.nr == 0 || self.peers.withhold_writes(run).is_err() {
            // A process that could go on writing keeps the pages.
            return Ok(());
        }
        let taken = mmu.discard(&mmu.mapping, "madvise", run);
        mmu.clear_protection(run);
        let asked = self.file.pages_of(run, |page, is_there| {
            outcome[(page - run.first) as usize] = match is_there {
                true => Detached::Done,
                false => Detached::Hole,
            };
        });
        // What is still `Busy` could not be asked for: it is in its slot, and the next access
        // brings it back.
        asked.map_err(|errno| mmu_error("lseek of the file", run.first, errno))?;
        taken
    }

    /// See [`pinless_mm::primary_mmu::PrimaryMmu::reattach`].
    pub(super) fn reattach(&self, mmu: &HostMmu, run: PageRun) -> Result<(), MmuError> {
        self.map(mmu, run, Access::Write)?;
        self.peers.show(run, Access::Write);
        Ok(())
    }

    /// Puts pages that are in the file at their addresses.
    fn map(&self, mmu: &HostMmu, run: PageRun, access: Access) -> Result<(), MmuError> {
        let mut left = run;
        let mut nr_retries = 0;
        while left.nr > 0 {
            let Err(Stopped { errno, done }) = mmu.uffd.map_present(
                mmu.address(left.first),
                left.len_bytes(),
                access == Access::Read,
            ) else {
                break;
            };
            let nr_done = match (pages_done(done, left.nr), errno.0) {
                // It is there already: a page has one frame here, so it is the right one.
                (0, libc::EEXIST) => {
                    mmu.wake(left.first);
                    1
                }
                (0, libc::EAGAIN) if nr_retries < NR_RETRIES_MAX => {
                    nr_retries += 1;
                    0
                }
                // The kernel's word for a hole.
                (0, libc::EFAULT) => return Err(MmuError::Gone { page: left.first }),
                (0, _) => return Err(mmu_error("UFFDIO_CONTINUE", left.first, errno)),
                (nr_done, _) => nr_done,
            };
            left = PageRun::new(left.first + nr_done, left.nr - nr_done);
        }
        Ok(())
    }

    /// Has other processes see pages that were filled, as the mapping does.
    pub(super) fn filled(&self, run: PageRun, access: Access) {
        self.peers.show(run, access);
    }

    /// See [`pinless_mm::primary_mmu::PrimaryMmu::remap`].
    pub(super) fn remap(&self, mmu: &HostMmu, page: PageIndex) -> bool {
        let run = PageRun::single(page);
        let Ok(entry) = mmu.pagemap.entry(mmu.address(page)) else {
            return self.has(page);
        };
        // An entry that somebody took away left its protection behind, as a mark.
        let access = match entry.is_write_protected() {
            true => Access::Read,
            false => Access::Write,
        };
        if !entry.is_present() && self.map(mmu, run, access).is_err() {
            return false;
        }
        self.peers.show(run, access);
        true
    }

    /// See [`pinless_mm::primary_mmu::PrimaryMmu::free_detached`].
    pub(super) fn free(&self, run: PageRun) -> Result<(), MmuError> {
        if run.nr == 0 {
            return Ok(());
        }
        self.file
            .punch(run)
            .map_err(|errno| mmu_error("fallocate", run.first, errno))
    }
}
