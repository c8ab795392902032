//! Guest memory through the traits of the `vm-memory` crate.
//!
//! What is asked of any guest memory is asked of the crate's own, too: so the questions are right.

#![expect(clippy::print_stdout, reason = "a test that cannot run here says so")]

mod turncoat;

use pinless::vm_memory::{GuestMemory, PIECE_BYTES, Region};
use pinless::{Advice, MapOptions, Mapping, MmHandle, PAGE_SIZE, Pinless};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use turncoat::Turncoat;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
    MemoryRegionAddress, VolatileMemory,
};

const FRAMES: u32 = 64;
const PAGE: u64 = PAGE_SIZE as u64;
/// Two regions side by side, and one behind a hole.
const REGIONS: [(u64, u32); 3] = [
    (0, 2 * FRAMES),
    (2 * FRAMES as u64 * PAGE, 2 * FRAMES),
    (1 << 32, 4),
];

fn build() -> Option<Pinless> {
    let built = Pinless::builder(u64::from(FRAMES) * PAGE).build();
    built
        .inspect_err(|error| println!("skipped: no userfaultfd: {error}"))
        .ok()
}

fn guest_memory(pinless: &Pinless, mm: &MmHandle) -> GuestMemory {
    let regions = REGIONS.map(|(start, nr_pages)| {
        let memory: Mapping = pinless
            .map(mm, MapOptions::of_pages(nr_pages))
            .expect("a mapping");
        memory.into_region(GuestAddress(start)).expect("addresses")
    });
    GuestMemory::from_regions(regions.into()).expect("sorted, and apart")
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| (at as u8).wrapping_mul(31) ^ seed)
        .collect()
}

/// What any guest memory of these regions answers.
fn check<M: GuestMemoryBackend>(memory: &M) {
    assert_eq!(memory.num_regions(), REGIONS.len());
    assert_eq!(memory.last_addr(), GuestAddress((1 << 32) + 4 * PAGE - 1));
    check_bytes(memory);
    check_edges(memory);
    check_streams(memory);
    check_slices(memory);
}

fn check_bytes<M: GuestMemoryBackend>(memory: &M) {
    let border = REGIONS[1].0;
    for (seed, len) in [1, 2, 7, 8, 4096, 4097, 3 * PIECE_BYTES + 5]
        .into_iter()
        .enumerate()
    {
        for start in [0, 5, PAGE - 1, border - 3] {
            let (at, wanted) = (GuestAddress(start), pattern(len, seed as u8));
            memory.write_slice(&wanted, at).expect("it fits");
            let mut found = vec![0; len];
            memory.read_slice(&mut found, at).expect("it fits");
            assert_eq!(found, wanted, "{len} bytes at {start}");
        }
    }
    let at = GuestAddress(1 << 32);
    memory
        .write_obj(0x1234_5678_9abc_def0_u64, at)
        .expect("it fits");
    assert_eq!(memory.read_obj::<u32>(at).expect("it fits"), 0x9abc_def0);
    // Relaxed: no other thread looks.
    memory
        .store(77_u32, at, Ordering::Relaxed)
        .expect("aligned");
    assert_eq!(
        memory.load::<u32>(at, Ordering::Relaxed).expect("aligned"),
        77
    );
    let odd = memory.load::<u32>(GuestAddress((1 << 32) + 1), Ordering::Relaxed);
    assert!(odd.is_err(), "{odd:?}");
}

fn check_edges<M: GuestMemoryBackend>(memory: &M) {
    let hole = GuestAddress(REGIONS[1].0 + 2 * u64::from(FRAMES) * PAGE);
    let before = GuestAddress(hole.0 - 3);
    assert!(memory.find_region(hole).is_none());
    assert_eq!(memory.write(&[1, 2, 3, 4, 5], before).expect("three"), 3);
    let cut = memory.write_slice(&[1, 2, 3, 4, 5], before);
    let is_partial = |error: &GuestMemoryError| {
        matches!(
            error,
            GuestMemoryError::PartialBuffer {
                expected: 5,
                completed: 3
            }
        )
    };
    assert!(cut.as_ref().is_err_and(is_partial), "{cut:?}");
    let mut byte = [0];
    let outside = memory.read(&mut byte, hole);
    let is_invalid = |error: &GuestMemoryError| match error {
        GuestMemoryError::InvalidGuestAddress(at) => *at == hole,
        _ => false,
    };
    assert!(outside.as_ref().is_err_and(is_invalid), "{outside:?}");
    let region = memory.find_region(GuestAddress(0)).expect("the first");
    let beyond = region.read(&mut byte, MemoryRegionAddress(region.len()));
    let is_beyond =
        |error: &GuestMemoryError| matches!(error, GuestMemoryError::InvalidBackendAddress);
    assert!(beyond.as_ref().is_err_and(is_beyond), "{beyond:?}");
    assert!(
        region
            .get_slice(MemoryRegionAddress(0), usize::MAX)
            .is_err()
    );
}

fn check_streams<M: GuestMemoryBackend>(memory: &M) {
    let len = 2 * PIECE_BYTES + 11;
    let (at, wanted) = (GuestAddress(100), pattern(len, 99));
    let count = memory.read_volatile_from(at, &mut &wanted[..], len);
    assert_eq!(count.expect("it fits"), len);
    let mut found = Vec::new();
    memory
        .write_all_volatile_to(at, &mut found, len)
        .expect("it fits");
    assert_eq!(found, wanted);
    let short = memory.read_exact_volatile_from(at, &mut &wanted[..9], 10);
    assert!(short.is_err(), "{short:?}");
    // The end of what is read from ends a read that may be shorter.
    let count = memory.read_volatile_from(at, &mut &wanted[..9], 10);
    assert_eq!(count.expect("it fits"), 9);
}

fn check_slices<M: GuestMemoryBackend>(memory: &M) {
    let slice = memory.get_slice(GuestAddress(10), 100).expect("it fits");
    slice.write_slice(&pattern(100, 3), 0).expect("it fits");
    let part = slice.subslice(50, 10).expect("a part");
    let mut found = [0; 10];
    part.copy_to(&mut found[..]);
    assert_eq!(found[..], pattern(100, 3)[50..60]);
    let number = slice.get_ref::<u16>(4).expect("it fits");
    number.store(0xBEEF);
    assert_eq!(
        memory.read_obj::<u16>(GuestAddress(14)).expect("it fits"),
        0xBEEF
    );
}

#[test]
fn the_traits_mean_what_they_mean_elsewhere() {
    let ranges = REGIONS.map(|(start, nr)| (GuestAddress(start), nr as usize * PAGE_SIZE));
    let control = GuestMemoryMmap::<()>::from_ranges(&ranges).expect("memory");
    check(&control);
    let Some(pinless) = build() else { return };
    let mm = pinless.new_mm("guest");
    let memory = guest_memory(&pinless, &mm);
    check(&memory);
    assert!(pinless.memcg().stat().pgsteal > 0, "pages were taken back");
    assert!(!pinless.memcg().frames().is_exceeded());
    assert_eq!(mm.nr_pins(), 0, "no slice lives");
    drop(memory);
    assert_eq!(
        pinless.memcg().frames().usage(),
        0,
        "the regions had the mappings"
    );
}

/// G11: what a slice lies on stays as long as any slice that was cut from it.
#[test]
fn a_slice_holds_its_pages() {
    let Some(pinless) = build() else { return };
    let mm = pinless.new_mm("held");
    let memory = guest_memory(&pinless, &mm);
    let slice = memory
        .get_slice(GuestAddress(PAGE - 1), 2)
        .expect("it fits");
    assert_eq!(mm.nr_pins(), 2);
    let part = slice.subslice(1, 1).expect("a part");
    drop(slice);
    assert_eq!(mm.nr_pins(), 2, "the part holds them");
    part.write_slice(b"x", 0).expect("it fits");
    let vma = &mm.vmas()[0];
    vma.advise(vma.all(), Advice::PageOut)
        .expect("the rest goes");
    let address = part.ptr_guard().as_ptr() as u64;
    assert_eq!(address, vma.address(1).0);
    let all = memory.get_slice(GuestAddress(0), (2 * FRAMES) as usize * PAGE_SIZE);
    let words = all.map(drop).expect_err("more than the limit").to_string();
    assert!(words.contains("pin fewer"), "{words}");
    drop(part);
    assert_eq!(mm.nr_pins(), 0);
}

/// What has the mapping is asked for it once.
#[test]
fn a_region_is_of_the_mapping_that_it_was_made_of() {
    const NR_PAGES: u32 = 4;
    let Some(pinless) = build() else { return };
    let mm = pinless.new_mm("turncoat");
    let mappings = [NR_PAGES, 2 * NR_PAGES].map(|nr_pages| {
        let mapping = pinless.map(&mm, MapOptions::of_pages(nr_pages));
        mapping.expect("a mapping")
    });
    let vma = Arc::clone(mappings[0].vma());
    let region = Region::new(GuestAddress(0), Turncoat::new(mappings), &vma);
    let region = region.expect("they are the same pages");
    let len = u64::from(NR_PAGES) * PAGE;
    assert_eq!(region.len(), len);
    assert!(region.get_slice(MemoryRegionAddress(len), 1).is_err());
    let last = region.get_slice(MemoryRegionAddress(len - 1), 1);
    let last = last.expect("it is inside").ptr_guard().as_ptr() as u64;
    assert_eq!(last, vma.address(NR_PAGES).0 - 1);
}
