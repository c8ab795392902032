//! G12 for the compressed store: no store, load or free allocates, alone or contended.

mod counting;

use counting::nr_allocations;
use pinless_mm::addr::{PAGE_SIZE, PageBuf};
use pinless_mm::swap::{Owner, Scratch, Zswap};

/// Page `n`: every seventh is one pattern, the others hold more random bytes the larger `n` is.
fn fill(page: &mut PageBuf, n: u64) {
    page.fill(n as u8);
    if n.is_multiple_of(7) {
        return;
    }
    let mut x = n;
    for word in page[..n as usize * 61 % PAGE_SIZE / 8 * 8]
        .as_chunks_mut()
        .0
    {
        x = x
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        *word = (x ^ (x >> 29)).to_le_bytes();
    }
}

/// Stores, loads and frees, and says how often this thread allocated meanwhile.
fn work(store: &Zswap, scratch: &mut Scratch, thread: u32) -> u64 {
    let before = nr_allocations();
    let mut page = [0; PAGE_SIZE];
    let mut loaded = [0; PAGE_SIZE];
    let mut held = [None; 64];
    for n in 0..4000 {
        let at = n as usize % held.len();
        if let Some((owner, stored)) = held[at].take() {
            store
                .load(owner, stored, &mut loaded)
                .expect("no fault is injected");
            store.free(stored);
        }
        fill(&mut page, u64::from(n));
        let owner = Owner::new(thread, n);
        held[at] = store
            .store(owner, &page, scratch)
            .ok()
            .map(|stored| (owner, stored));
    }
    held.into_iter()
        .flatten()
        .for_each(|(_, stored)| _ = store.free(stored));
    nr_allocations() - before
}

#[test]
fn the_store_allocates_nothing_after_start() {
    let before = nr_allocations();
    // Below what one thread holds at once: it is refused however the threads are scheduled.
    let store = Zswap::new(80_000);
    let mut scratches: Vec<_> = (0..4).map(|_| Scratch::new()).collect();
    assert!(nr_allocations() > before, "the counter does not count");
    assert_eq!(work(&store, &mut scratches[0], 0), 0);
    assert!(
        store.stats().full > 0,
        "the refusal must be covered as well"
    );
    std::thread::scope(|scope| {
        let store = &store;
        let workers: Vec<_> = (1..).zip(&mut scratches).collect();
        let workers = workers
            .into_iter()
            .map(|(n, scratch)| scope.spawn(move || work(store, scratch, n)));
        let threads: Vec<_> = workers.collect();
        for thread in threads {
            assert_eq!(thread.join().expect("no thread fails"), 0);
        }
    });
    assert_eq!(store.bytes(), 0);
}
