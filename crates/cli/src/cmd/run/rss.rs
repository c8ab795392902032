//! What the process takes of the machine's memory.

use pinless::{Memcg, PAGE_SIZE};
use std::fs;

/// Bytes of the process that are resident; 0 where the kernel does not say.
fn resident_bytes() -> u64 {
    // The second number is that of the resident pages.
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1);
    let pages: u64 = pages.and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * PAGE_SIZE as u64
}

/// Looks at the memory that is not managed, so that growth is seen.
#[derive(Debug, Default)]
pub(crate) struct OtherMemory {
    /// The most that the blocks of the compressed store took: it keeps their memory.
    pool_bytes_max: u64,
}

impl OtherMemory {
    /// Notes what the compressed store takes now. To be called often.
    pub(crate) fn watch(&mut self, memcg: &Memcg) {
        self.pool_bytes_max = self.pool_bytes_max.max(memcg.zswap().stats().block_bytes);
    }

    /// Resident bytes that are neither frames nor in the compressed store.
    pub(crate) fn bytes(&mut self, memcg: &Memcg) -> u64 {
        self.watch(memcg);
        let managed = memcg.frames().usage() * PAGE_SIZE as u64 + self.pool_bytes_max;
        resident_bytes().saturating_sub(managed)
    }
}
