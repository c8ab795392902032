//! A child process has none of the managed memory, and the parent does not notice the fork.

use crate::fake::{MODES, managed, word_of};
use pinless_host::{AccessError, attach_thread};
use pinless_mm::addr::PageRun;

#[test]
fn a_child_that_touches_managed_memory_dies_loudly() {
    for mode in MODES {
        let Some((mapping, fake)) = managed(8, mode) else {
            return;
        };
        let _attached = attach_thread().unwrap();
        mapping.load_u64(0).unwrap();
        mapping.store_u64(4096, 77).unwrap();
        // A page that is there, one that was written, and one that is not there.
        for page in [0, 1, 5] {
            let address = mapping.as_ptr().wrapping_add(page * 4096);
            // SAFETY: the child makes only calls that a child of a threaded program may make.
            let status = unsafe {
                let child = libc::fork();
                if child == 0 {
                    libc::signal(libc::SIGSEGV, libc::SIG_DFL);
                    address.read_volatile();
                    libc::_exit(0);
                }
                let mut status = 0;
                assert_eq!(libc::waitpid(child, &mut status, 0), child);
                status
            };
            assert!(
                libc::WIFSIGNALED(status),
                "{mode:?} page {page}: {status:#x}"
            );
            assert_eq!(
                libc::WTERMSIG(status),
                libc::SIGSEGV,
                "{mode:?} page {page}"
            );
        }
        // No page became shared: all that is there can still be moved.
        assert_eq!(fake.detach(PageRun::new(0, 8)), 2, "{mode:?}");
        assert_eq!(mapping.load_u64(4096), Ok(77));
        assert_eq!(mapping.load_u64(5 * 4096), Ok(word_of(5, 0)));
    }
}

/// Through the library a child gets an error that says what to do, and its end leaves the parent's
/// memory alone.
#[test]
fn a_child_is_told_what_it_cannot_do() {
    for mode in MODES {
        let Some((mapping, fake)) = managed(8, mode) else {
            return;
        };
        let _attached = attach_thread().unwrap();
        mapping.store_u64(4096, 77).unwrap();
        let mapping = core::mem::ManuallyDrop::new(mapping);
        // SAFETY: the child makes only calls that allocate nothing and take no lock: the checks
        // come before both.
        let status = unsafe {
            let child = libc::fork();
            if child == 0 {
                let read = mapping.load_u64(4096);
                drop(core::mem::ManuallyDrop::into_inner(mapping));
                libc::_exit(i32::from(read != Err(AccessError::ForkedChild)));
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            status
        };
        assert!(libc::WIFEXITED(status), "{mode:?}: {status:#x}");
        assert_eq!(libc::WEXITSTATUS(status), 0, "{mode:?}");
        let mapping = core::mem::ManuallyDrop::into_inner(mapping);
        assert_eq!(mapping.load_u64(4096), Ok(77), "{mode:?}");
        assert_eq!(fake.detach(PageRun::new(0, 8)), 1, "{mode:?}");
    }
}
