//! A child process has none of the managed memory, and the parent does not notice the fork.

use crate::child::{assert_ended_well, run};
use crate::fake::{MODES, managed, skip, word_of};
use pinless_host::{
    AccessError, Client, CreateError, Errno, FaultService, HostMapping, Resolver, ShareError,
    attach_thread,
};
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::primary_mmu::{Access, Detached, MmuError, PrimaryMmu};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
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

/// What a child maps where its parent has managed memory, or slots, is the child's own: a file that
/// ends too early raises the SIGBUS there that it would raise anywhere.
#[test]
fn a_sigbus_of_a_childs_own_mapping_is_the_childs() {
    // As many pages as no other mapping has, of these tests or of a library.
    const NR_OWN: u32 = 1031;
    const LEN: usize = NR_OWN as usize * PAGE_SIZE;
    let Some((mapping, _fake)) = managed(NR_OWN, MODES[1]) else {
        return;
    };
    let _attached = attach_thread().unwrap();
    mapping.load_u64(0).unwrap();
    let areas = areas_of_len(LEN);
    assert!(
        areas.contains(&mapping.as_ptr().addr()) && areas.len() == 2,
        "the mapping and its slots: {areas:x?}"
    );
    // SAFETY: the name is a C string, and what is made belongs to nobody else.
    let empty = unsafe {
        let made = libc::memfd_create(c"empty".as_ptr(), libc::MFD_CLOEXEC);
        assert!(made >= 0);
        OwnedFd::from_raw_fd(made)
    };
    for area in areas {
        // SAFETY: the child makes only calls that a child of a threaded program may make. The
        // range is the parent's, and in the child there is nothing.
        let status = unsafe {
            let child = libc::fork();
            if child == 0 {
                let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
                let address = area as *mut libc::c_void;
                let mapped = libc::mmap(address, LEN, libc::PROT_READ, flags, empty.as_raw_fd(), 0);
                if mapped != address {
                    libc::_exit(1);
                }
                mapped.cast::<u8>().read_volatile();
                libc::_exit(2);
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            status
        };
        let is_sigbus = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS;
        assert!(is_sigbus, "{area:#x}: {status:#x}");
    }
}

/// Where anonymous memory of this process begins that is so long.
fn areas_of_len(len: usize) -> Vec<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let ranges = maps.lines().filter_map(|line| {
        let range = line.split(' ').next()?.split_once('-')?;
        let number = |hex| usize::from_str_radix(hex, 16).ok();
        Some((number(range.0)?, number(range.1)?))
    });
    let fitting = ranges.filter(|(start, end)| end - start == len);
    fitting.map(|(start, _)| start).collect()
}

/// Where the kernel does not wipe the mark in a child, nobody could tell that it is one: so there
/// is no managed memory, however often it is asked for.
#[test]
fn without_the_mark_there_is_no_managed_memory() {
    let test = "forks::without_the_mark_there_is_no_managed_memory";
    let output = run(test, "no-mark", || {
        if !refuse_wipe_on_fork() {
            return skip("filter of system calls");
        }
        let refused = CreateError::Os {
            operation: "madvise(MADV_WIPEONFORK)",
            errno: Errno(libc::EINVAL),
        };
        for nth in 0..3 {
            let made = HostMapping::create(1, Resolver::InThread).map(drop);
            assert_eq!(made, Err(refused), "{nth}");
        }
    });
    assert_ended_well(&output);
}

/// Has this thread's `madvise` fail for that one advice. Whether the kernel has filters.
fn refuse_wipe_on_fork() -> bool {
    // Where the number and the third argument lie in what a filter sees.
    const NUMBER: u32 = 0;
    const ADVICE: u32 = 32;
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let is_equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, k, jf| libc::sock_filter { code, jt: 0, jf, k };
    let mut steps = [
        step(load, NUMBER, 0),
        step(is_equal, libc::SYS_madvise as u32, 3),
        step(load, ADVICE, 0),
        step(is_equal, libc::MADV_WIPEONFORK as u32, 1),
        step(answer, libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32, 0),
        step(answer, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: the program is valid and outlives the call, which copies it.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            ) == 0
    }
}
