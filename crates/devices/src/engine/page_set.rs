//! A set of pages of one mapping: one bit a page.

use pinless_mm::addr::{PageIndex, PageRun};

const WORD_BITS: u32 = u64::BITS;

/// Some of the pages of one mapping.
#[derive(Debug)]
pub struct PageSet {
    words: Vec<u64>,
    nr_pages: u32,
    nr: u32,
}

impl PageSet {
    /// No page of a mapping of `nr_pages`.
    pub fn new(nr_pages: u32) -> Self {
        let words = vec![0; nr_pages.div_ceil(WORD_BITS) as usize];
        Self {
            words,
            nr_pages,
            nr: 0,
        }
    }

    /// How many pages are in the set.
    pub fn nr(&self) -> u32 {
        self.nr
    }

    /// Adds a page.
    pub fn insert(&mut self, page: PageIndex) {
        assert!(page < self.nr_pages, "a page outside of the mapping");
        let word = &mut self.words[(page / WORD_BITS) as usize];
        let bit = 1 << (page % WORD_BITS);
        self.nr += u32::from(*word & bit == 0);
        *word |= bit;
    }

    /// Whether a page of `run` is in the set.
    pub fn overlaps(&self, run: PageRun) -> bool {
        masks(run).any(|(index, mask)| self.words[index] & mask != 0)
    }

    /// Takes the pages of `run` out of the set, and calls `each` for those that were in it.
    pub fn remove(&mut self, run: PageRun, mut each: impl FnMut(PageIndex)) {
        for (index, mask) in masks(run) {
            let mut found = self.words[index] & mask;
            self.words[index] &= !mask;
            self.nr -= found.count_ones();
            while found != 0 {
                each(index as u32 * WORD_BITS + found.trailing_zeros());
                found &= found - 1;
            }
        }
    }
}

/// The words that `run` touches, each with the bits of the run's pages.
fn masks(run: PageRun) -> impl Iterator<Item = (usize, u64)> {
    let words = run.first / WORD_BITS..run.end().div_ceil(WORD_BITS);
    words.map(move |word| {
        let first = word * WORD_BITS;
        let from = run.first.saturating_sub(first);
        let to = (run.end() - first).min(WORD_BITS);
        let mask = (u64::MAX >> (WORD_BITS - (to - from))) << from;
        (word as usize, mask)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_agrees_with_a_list_of_flags() {
        const NR: u32 = 200;
        let edges = [0, 1, 62, 63, 64, 65, 127, 128, 129, 198, 199];
        for &start in &edges {
            for &end in edges.iter().filter(|&&end| end > start) {
                let run = PageRun::new(start, end - start);
                let mut set = PageSet::new(NR);
                for page in (0..NR).step_by(3) {
                    set.insert(page);
                    set.insert(page);
                }
                let expected: Vec<u32> = run.pages().filter(|page| page % 3 == 0).collect();
                assert_eq!(set.overlaps(run), !expected.is_empty(), "{run}");
                let mut removed = Vec::new();
                set.remove(run, |page| removed.push(page));
                assert_eq!(removed, expected, "{run}");
                assert_eq!(set.nr(), NR.div_ceil(3) - expected.len() as u32);
                assert!(!set.overlaps(run));
            }
        }
        assert!(!PageSet::new(NR).overlaps(PageRun::new(64, 0)));
    }
}
