//! Faults of programs: resolved in both modes, by whatever the program does to get there.

use crate::fake::{MODES, managed, pattern, word_of};
use pinless_host::{AccessError, FaultMode, attach_thread};
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::fault::{FaultError, StoreError};
use pinless_mm::primary_mmu::PrimaryMmu;
use std::io::{Read, Write};
use std::sync::atomic::Ordering;
use std::time::Duration;

#[test]
fn a_plain_access_finds_the_stored_contents() {
    for mode in MODES {
        let Some((mapping, fake)) = managed(16, mode) else {
            return;
        };
        let _attached = attach_thread().unwrap();
        for page in 0..16 {
            let word = mapping.as_ptr().cast::<u64>().wrapping_add(page * 512 + 17);
            // SAFETY: the word lies in the mapping; nobody else uses it.
            let found = unsafe { word.read_volatile() };
            assert_eq!(found, word_of(page as u32, 17), "{mode:?}");
        }
        assert_eq!(fake.nr_read_faults.load(Ordering::Relaxed), 16, "{mode:?}");
        // Pages filled for a read trap at their first write, and only then.
        for value in [1, 2] {
            for page in 0..16 {
                let word = mapping.as_ptr().cast::<u64>().wrapping_add(page * 512 + 17);
                // SAFETY: as above.
                unsafe { word.write_volatile(value) };
            }
        }
        assert_eq!(fake.nr_write_faults.load(Ordering::Relaxed), 16, "{mode:?}");
    }
}

#[test]
fn pages_come_back_from_standby_and_from_the_store() {
    for mode in MODES {
        let Some((mapping, fake)) = managed(64, mode) else {
            return;
        };
        let _attached = attach_thread().unwrap();
        let run = PageRun::new(0, 64);
        for round in 0..4_u64 {
            for page in 0..64 {
                let offset = page * PAGE_SIZE as u64 + 8;
                let before = mapping.load_u64(offset).unwrap();
                let expected = match round {
                    0 => word_of(page as u32, 1),
                    _ => round * 1000 + page - 1000,
                };
                assert_eq!(before, expected, "{mode:?} round {round} page {page}");
                mapping.store_u64(offset, round * 1000 + page).unwrap();
            }
            assert_eq!(fake.detach(run), 64);
            if round % 2 == 1 {
                fake.store(run);
            }
        }
    }
}

#[test]
fn copies_of_every_length_and_alignment_are_exact() {
    for mode in MODES {
        let Some((mapping, fake)) = managed(3, mode) else {
            return;
        };
        let _attached = attach_thread().unwrap();
        let expected = [pattern(0), pattern(1), pattern(2)].concat();
        for len in (0..80).chain([255, 256, 257, 511, 512, 513, 600, 4095, 4096, 4097, 8192]) {
            for at in [0, 1, 7, 8, 15, 4000, 4089, 4095, 4096 - len.min(4096) / 2] {
                fake.detach(PageRun::new(0, 3));
                let mut into = vec![0xEE; len + 2];
                mapping.read_at(at as u64, &mut into[1..=len]).unwrap();
                assert!(into[1..=len] == expected[at..at + len], "{len} at {at}");
                assert_eq!((into[0], into[len + 1]), (0xEE, 0xEE), "{len} at {at}");
                mapping.write_at(at as u64, &into[1..=len]).unwrap();
            }
        }
        let mut all = vec![0; 3 * PAGE_SIZE];
        mapping.read_at(0, &mut all).unwrap();
        assert!(all == expected, "writes changed nothing else");
    }
}

#[test]
fn accesses_outside_the_mapping_are_refused() {
    for mode in MODES {
        let Some((mapping, _fake)) = managed(2, mode) else {
            return;
        };
        let mut two = [0; 2];
        let refused = mapping.read_at(8191, &mut two);
        assert_eq!(
            refused,
            Err(AccessError::OutOfRange {
                offset: 8191,
                len: 2
            })
        );
        assert!(mapping.read_at(u64::MAX, &mut two).is_err());
        assert_eq!(mapping.read_at(8192, &mut []), Ok(()));
        let misaligned = mapping.load_u64(12);
        assert_eq!(misaligned, Err(AccessError::Misaligned { offset: 12 }));
    }
}

#[test]
fn a_fault_that_fails_is_a_typed_error_and_may_succeed_later() {
    let errors = [
        FaultError::Killed,
        FaultError::Lost {
            page: 2,
            cause: StoreError::Corrupt,
        },
        FaultError::NoFrame {
            waited: Duration::from_millis(3),
        },
    ];
    for mode in MODES {
        for error in errors {
            let Some((mapping, fake)) = managed(4, mode) else {
                return;
            };
            let _attached = attach_thread().unwrap();
            fake.refuse(2, error);
            let mut into = [0; 3 * PAGE_SIZE];
            for _ in 0..3 {
                assert_eq!(
                    mapping.read_at(PAGE_SIZE as u64, &mut into),
                    Err(AccessError::Fault {
                        offset: 2 * PAGE_SIZE as u64,
                        page: 2,
                        error
                    }),
                    "{mode:?}"
                );
                assert!(mapping.store_u64(8200, 1).is_err());
            }
            assert!(into[..PAGE_SIZE] == pattern(1), "the page before came");
            // What was refused is not lost: the page can be given later, by either way.
            fake.books.lock().refused.clear();
            mapping.read_at(PAGE_SIZE as u64, &mut into).unwrap();
            assert!(into[PAGE_SIZE..2 * PAGE_SIZE] == pattern(2), "{mode:?}");
        }
    }
}

/// The signal stack that a thread has from elsewhere is too small to resolve a fault on.
#[test]
fn a_thread_that_is_not_attached_gets_a_typed_error() {
    for mode in MODES {
        let Some((mapping, fake)) = managed(4, mode) else {
            return;
        };
        fake.refuse(2, FaultError::Killed);
        let mut into = [0; 8];
        std::thread::scope(|scope| {
            let read = || mapping.read_at(2 * PAGE_SIZE as u64, &mut into);
            let answer = scope.spawn(read).join().expect("no panic");
            let offset = 2 * PAGE_SIZE as u64;
            let expected = match mode.faults {
                FaultMode::InThread => AccessError::ThreadNotAttached { offset },
                FaultMode::Service => AccessError::Fault {
                    offset,
                    page: 2,
                    error: FaultError::NoFrame {
                        waited: Duration::ZERO,
                    },
                },
            };
            assert_eq!(answer, Err(expected));
        });
    }
}

/// A fault that was refused leaves a mark. A thread that is not attached and meets it later has no
/// room to resolve the fault: the service does it for it.
#[test]
fn a_thread_that_is_not_attached_gets_what_there_is_by_now() {
    for side in MODES
        .into_iter()
        .filter(|side| side.faults == FaultMode::Service)
    {
        let Some((mapping, fake)) = managed(4, side) else {
            return;
        };
        let offset = 2 * PAGE_SIZE as u64;
        let load = || {
            std::thread::scope(|scope| scope.spawn(|| mapping.load_u64(offset)).join())
                .expect("no panic")
        };
        fake.refuse(2, FaultError::Killed);
        assert!(matches!(load(), Err(AccessError::Fault { page: 2, .. })));
        fake.books.lock().refused.clear();
        for _ in 0..3 {
            assert_eq!(load(), Ok(word_of(2, 0)), "the page can be had now");
        }
        // Also a write, and more threads than are answered at one time.
        fake.refuse(3, FaultError::Killed);
        let at = 3 * PAGE_SIZE as u64;
        assert!(mapping.store_u64(at, 5).is_err());
        fake.books.lock().refused.clear();
        std::thread::scope(|scope| {
            for nth in 0..16 {
                let mapping = &mapping;
                scope.spawn(move || mapping.store_u64(at + 8 * nth, nth).expect("the page"));
            }
        });
        for nth in 0..16 {
            assert_eq!(mapping.load_u64(at + 8 * nth), Ok(nth));
        }
    }
}

#[test]
fn a_refusal_leaves_no_mark_that_a_zero_fill_or_a_reattach_would_trip_over() {
    for mode in MODES {
        let Some((mapping, fake)) = managed(2, mode) else {
            return;
        };
        let _attached = attach_thread().unwrap();
        let run = PageRun::single(0);
        mapping.load_u64(0).unwrap();
        assert_eq!(fake.detach(run), 1);
        fake.refuse(0, FaultError::Killed);
        fake.refuse(1, FaultError::Killed);
        assert!(mapping.load_u64(0).is_err());
        assert!(mapping.load_u64(4096).is_err());
        let mmu = mapping.mmu();
        assert!(!mmu.is_present(0) && !mmu.is_present(1));
        mmu.reattach(run).unwrap();
        mmu.map_zero(PageRun::single(1)).unwrap();
        assert_eq!(mapping.load_u64(8), Ok(word_of(0, 1)));
        assert_eq!(mapping.load_u64(4096), Ok(0));
    }
}

#[test]
fn system_calls_on_absent_pages_work_with_a_service_and_say_efault_without() {
    for mode in MODES {
        let Some((mapping, fake)) = managed(2, mode) else {
            return;
        };
        if mode.faults == FaultMode::Service && !mapping.mmu().source().serves_kernel_faults() {
            crate::fake::skip("userfaultfd for kernel faults");
            continue;
        }
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"pinless").unwrap();
        // SAFETY: the bytes lie in the mapping, and nobody else uses them during the call.
        let into = unsafe { std::slice::from_raw_parts_mut(mapping.as_ptr().add(4096), 7) };
        let result = reader.read(into);
        // SAFETY: as above, for the other page.
        let from = unsafe { std::slice::from_raw_parts(mapping.as_ptr(), 16) };
        let written = writer.write(from);
        match mode.faults {
            FaultMode::Service => {
                assert_eq!(written.unwrap(), 16);
                let mut came = [0; 16];
                reader.read_exact(&mut came).unwrap();
                assert_eq!(came, pattern(0)[..16]);
                assert_eq!(result.unwrap(), 7);
                let mut found = [0; 8];
                mapping.read_at(4096, &mut found).unwrap();
                assert_eq!(&found[..7], b"pinless");
                assert_eq!(found[7], pattern(1)[7]);
            }
            FaultMode::InThread => {
                for error in [result.unwrap_err(), written.unwrap_err()] {
                    assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
                }
                assert_eq!(fake.nr_faults(), 0);
            }
        }
    }
}

#[test]
fn the_error_number_survives_a_fault() {
    let Some((mapping, fake)) = managed(1, FaultMode::InThread) else {
        return;
    };
    let _attached = attach_thread().unwrap();
    // SAFETY: the location is this thread's; the word lies in the mapping.
    let errno = unsafe {
        *libc::__errno_location() = 4711;
        mapping.as_ptr().cast::<u64>().read_volatile();
        *libc::__errno_location()
    };
    assert_eq!(errno, 4711);
    assert_eq!(fake.nr_faults(), 1);
}

#[test]
fn one_service_serves_many_mappings_and_outlives_them() {
    let service = pinless_host::FaultService::start(2).unwrap();
    let mut mappings = Vec::new();
    for _ in 0..8 {
        let resolver = pinless_host::Resolver::Service(service.clone());
        let mut mapping = match pinless_host::HostMapping::create(4, resolver) {
            Ok(mapping) => mapping,
            Err(error) => {
                crate::fake::is_missing(error);
                return;
            }
        };
        let fake = crate::fake::Fake::new(mapping.mmu());
        mapping.attach(fake.clone()).unwrap();
        mappings.push((mapping, fake));
    }
    for round in 0..2 {
        std::thread::scope(|scope| {
            for (mapping, _) in &mappings {
                scope.spawn(|| {
                    for page in 0..4 {
                        let found = mapping.load_u64(page * 4096).unwrap();
                        assert_eq!(found, word_of(page as u32, 0));
                    }
                });
            }
        });
        if round == 0 {
            mappings.truncate(3);
        }
    }
    let faults = mappings.iter().map(|(_, fake)| fake.nr_faults());
    assert_eq!(faults.collect::<Vec<_>>(), [4, 4, 4]);
}

#[test]
fn threads_that_meet_on_one_page_all_get_it() {
    for mode in MODES {
        let Some((mapping, fake)) = managed(64, mode) else {
            return;
        };
        for _ in 0..8 {
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let _attached = attach_thread().unwrap();
                        for page in 0..64 {
                            let found = mapping.load_u64(page * 4096 + 16).unwrap();
                            assert_eq!(found, word_of(page as u32, 2));
                        }
                    });
                }
            });
            assert_eq!(fake.detach(PageRun::new(0, 64)), 64, "{mode:?}");
        }
    }
}
