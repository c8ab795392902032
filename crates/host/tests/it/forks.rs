//! A child process has none of the managed memory, and the parent does not notice the fork.

use crate::fake::{MODES, managed, word_of};
use pinless_host::{AccessError, Client, CreateError, FaultService, ShareError, attach_thread};
use pinless_mm::addr::PageRun;
use pinless_mm::primary_mmu::{Access, Detached, MmuError, PrimaryMmu};
use std::os::unix::net::UnixStream;

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

/// Runs `body` in a child of a fork, which says whether it found what it should.
///
/// # Safety
///
/// `body` makes only calls that allocate nothing and take no lock.
unsafe fn in_child(body: impl FnOnce() -> bool) {
    // SAFETY: by this function's contract the child may run it.
    let status = unsafe {
        let child = libc::fork();
        if child == 0 {
            let is_right = body();
            libc::_exit(i32::from(!is_right));
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        status
    };
    assert!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        "{status:#x}"
    );
}

/// What changes pages is refused to a child, whose descriptors and files are its parent's.
#[test]
fn a_child_changes_no_page_of_its_parent() {
    for mode in MODES {
        let Some((mapping, fake)) = managed(8, mode) else {
            return;
        };
        let _attached = attach_thread().unwrap();
        mapping.store_u64(4096, 77).unwrap();
        mapping.store_u64(2 * 4096, 78).unwrap();
        assert_eq!(fake.detach(PageRun::new(2, 1)), 1);
        let (mmu, run) = (mapping.mmu(), PageRun::new(0, 4));
        let gone = Err(MmuError::Gone { page: 0 });
        // SAFETY: each operation is refused before it does anything.
        unsafe {
            in_child(|| {
                let mut outcome = [Detached::Done; 4];
                let answers = [
                    mmu.zap(run),
                    mmu.free_detached(run),
                    mmu.protect(run, Access::Write),
                    mmu.poison(run),
                    mmu.map_zero(run),
                    mmu.reattach(run),
                    mmu.detach(run, &mut outcome),
                ];
                let is_untouched = outcome == [Detached::Busy; 4] && !mmu.remap(2);
                is_untouched
                    && mmu.is_elsewhere()
                    && mmu.dma_read(4096, &mut [0]).is_err()
                    && answers.iter().all(|answer| *answer == gone)
            });
        }
        assert_eq!(mapping.load_u64(4096), Ok(77), "{mode:?}");
        assert_eq!(mapping.load_u64(2 * 4096), Ok(78), "{mode:?}");
        assert_eq!(mapping.load_u64(5 * 4096), Ok(word_of(5, 0)), "{mode:?}");
    }
}

/// The ends of what a child has copies of reach neither the parent's threads nor its connections.
#[test]
fn a_child_ends_nothing_of_its_parent() {
    use core::mem::ManuallyDrop;
    let Some((mapping, _fake)) = managed(8, MODES[2]) else {
        return;
    };
    let mut service = ManuallyDrop::new(FaultService::start(1).unwrap());
    let (ours, theirs) = UnixStream::pair().unwrap();
    let joining = std::thread::spawn(|| Client::join(theirs).unwrap());
    let mut share = ManuallyDrop::new(mapping.share(ours, &service).unwrap());
    let mut client = ManuallyDrop::new(joining.join().unwrap());
    assert_eq!(client.load_u64(0), Ok(word_of(0, 0)));
    let mut spare = ManuallyDrop::new(UnixStream::pair().unwrap().0);
    // SAFETY: each call is refused, and each drop lets go of its value, before they do anything.
    // The child takes its own copies, and this process takes the originals below.
    unsafe {
        in_child(|| {
            let read = client.load_u64(0);
            drop(ManuallyDrop::take(&mut client));
            drop(ManuallyDrop::take(&mut share));
            drop(ManuallyDrop::take(&mut service));
            let joined = Client::join(ManuallyDrop::take(&mut spare)).map(drop);
            read == Err(AccessError::ForkedChild)
                && joined == Err(ShareError::Create(CreateError::ForkedChild))
        });
    }
    assert_eq!(client.load_u64(3 * 4096), Ok(word_of(3, 0)), "it is served");
    drop(ManuallyDrop::into_inner(client));
    drop(ManuallyDrop::into_inner(share));
    drop(ManuallyDrop::into_inner(service));
    drop(ManuallyDrop::into_inner(spare));
    assert_eq!(mapping.load_u64(5 * 4096), Ok(word_of(5, 0)));
}
