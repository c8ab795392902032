//! The first fifteen lines: a quarter of the memory, all of the data.

use pinless::{Access, PAGE_SIZE, PageRun, Pinless};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pinless = Pinless::builder(16 << 20).build()?; // 16 MiB of frames at most
    let mm = pinless.new_mm("quickstart");
    let memory = pinless.map(&mm, 64 << 20)?; // 64 MiB of memory
    let pages = (memory.len() / PAGE_SIZE) as u64;
    for page in 0..pages {
        memory.store_u64(page * PAGE_SIZE as u64, page)?; // faults, evicts, compresses
    }
    let guard = memory.guard(PageRun::single(7), Access::Read)?; // stays while it is used
    assert_eq!(guard.load_u64(0)?, 7);
    assert!(pinless.memcg().frames().peak() * PAGE_SIZE as u64 <= 16 << 20);
    Ok(())
}
