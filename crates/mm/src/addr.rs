//! Addresses and page numbers.
//!
//! A [`Vaddr`] is an address that a program uses; a [`PageIndex`] counts pages from the start of
//! one mapping. The memory manager works with page indices, the machine turns them into addresses.

use core::fmt;
use core::ops::Range;

/// Bytes in a page. The base page of x86-64, and of aarch64 as the supported kernels run it.
pub const PAGE_SIZE: usize = 4096;

/// One page of contents.
pub type PageBuf = [u8; PAGE_SIZE];

/// A virtual address of the managed program, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vaddr(pub u64);

impl fmt::Debug for Vaddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Vaddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The number of a page in its mapping, from zero.
pub type PageIndex = u32;

/// Neighbouring pages of one mapping: `nr` pages from `first` on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageRun {
    /// The first page.
    pub first: PageIndex,
    /// How many pages.
    pub nr: u32,
}

impl PageRun {
    /// The run of `nr` pages from `first` on.
    pub const fn new(first: PageIndex, nr: u32) -> Self {
        Self { first, nr }
    }

    /// A run of a single page.
    pub const fn single(page: PageIndex) -> Self {
        Self::new(page, 1)
    }

    /// The run that `pages` begin with: as far as each is the neighbour of the one before it.
    pub(crate) fn leading(mut pages: impl Iterator<Item = PageIndex>) -> Self {
        let Some(first) = pages.next() else {
            return Self::new(0, 0);
        };
        let nr_more = (first + 1..)
            .zip(pages)
            .take_while(|(next, page)| next == page);
        Self::new(first, 1 + nr_more.count() as u32)
    }

    /// One past the last page.
    pub const fn end(self) -> PageIndex {
        self.first + self.nr
    }

    /// The page numbers of this run, in order.
    pub const fn pages(self) -> Range<PageIndex> {
        self.first..self.end()
    }

    /// Whether the two runs share a page.
    pub const fn overlaps(self, other: Self) -> bool {
        self.first < other.end() && other.first < self.end()
    }

    /// Whether `page` lies in this run.
    pub const fn contains(self, page: PageIndex) -> bool {
        self.first <= page && page < self.end()
    }

    /// Bytes in this run.
    pub const fn len_bytes(self) -> usize {
        self.nr as usize * PAGE_SIZE
    }

    /// The shortest run that holds both.
    pub fn hull(self, other: Self) -> Self {
        let first = self.first.min(other.first);
        Self::new(first, self.end().max(other.end()) - first)
    }
}

impl fmt::Display for PageRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.nr {
            1 => write!(f, "page {}", self.first),
            _ => {
                let end = u64::from(self.first) + u64::from(self.nr);
                write!(f, "pages {}..{end}", self.first)
            }
        }
    }
}
