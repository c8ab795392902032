//! What a caller is told: mappings that are refused, and the words of the errors.

use pinless_mm::addr::{PAGE_SIZE, PageRun, Vaddr};
use pinless_mm::gfp::Gfp;
use pinless_mm::limits::{Limits, MAPPING_PAGES_MAX};
use pinless_mm::mm_struct::{Advice, MapError};
use pinless_mm::primary_mmu::{Access, PrimaryMmu};
use pinless_mm::{Memcg, Mm, Vma};
use pinless_sim::{Frames, Sim, SimMmu};
use std::sync::Arc;

const BASE: u64 = 0x5000_0000;

fn map_at(mm: &Arc<Mm>, page: u64, nr_pages: u32) -> Result<Arc<Vma>, MapError> {
    let base = Vaddr(BASE + page * PAGE_SIZE as u64);
    let mmu = SimMmu::new(base, nr_pages, &Frames::new(4));
    mm.map(mmu as Arc<dyn PrimaryMmu>)
}

fn memcg(sim: &Sim) -> Arc<Memcg> {
    Memcg::new(Limits::new(16 * PAGE_SIZE as u64), sim.clock()).expect("limits")
}

#[track_caller]
fn check_refused(mapped: Result<Arc<Vma>, MapError>, why: MapError) {
    assert_eq!(mapped.expect_err("refused"), why);
}

/// A range belongs to one mapping, or a bracket over it would speak of two.
#[test]
fn mappings_of_an_address_space_do_not_overlap() {
    Sim::check(0..1, |sim| {
        let mm = memcg(sim).new_mm("overlaps");
        let vma = map_at(&mm, 8, 4).expect("the first one");
        for (page, nr_pages) in [(8, 4), (5, 4), (11, 1), (9, 1), (0, 100)] {
            check_refused(map_at(&mm, page, nr_pages), MapError::Overlap);
        }
        map_at(&mm, 4, 4).expect("right below");
        map_at(&mm, 12, 4).expect("right above");
        let other = memcg(sim).new_mm("another");
        map_at(&other, 8, 4).expect("in another address space");
        mm.unmap(&vma).expect("nobody refuses");
        map_at(&mm, 8, 4).expect("where one has been");
    });
}

/// Nobody would take the pages back again: the teardown is over.
#[test]
fn nothing_is_mapped_after_the_exit() {
    Sim::check(0..1, |sim| {
        let mm = memcg(sim).new_mm("exits");
        let shared = mm.share();
        map_at(&shared, 0, 4).expect("it lives");
        drop(mm);
        check_refused(map_at(&shared, 0, 4), MapError::Exited);
        check_refused(map_at(&shared, 8, 4), MapError::Exited);
        assert!(shared.vmas().is_empty());
    });
}

/// Whatever numbers a caller gave, the error can be printed.
#[test]
fn errors_can_be_printed() {
    Sim::check(0..1, |sim| {
        let mm = memcg(sim).new_mm("prints");
        let vma = map_at(&mm, 0, 4).expect("a mapping");
        let run = PageRun::new(u32::MAX, 2);
        let outside = "pages 4294967295..4294967297 is outside of a mapping of 4 pages";
        let refused = vma.pin(run, Access::Read, Gfp::NoWait);
        assert_eq!(refused.expect_err("outside").to_string(), outside);
        let refused = vma.advise(run, Advice::DontNeed);
        assert_eq!(refused.expect_err("outside").to_string(), outside);
        let none = MapError::Length { nr_pages: 0 };
        let text =
            format!("a mapping of 0 pages cannot be made: 1 to {MAPPING_PAGES_MAX} pages can");
        assert_eq!(none.to_string(), text);
    });
}
