//! Whose SIGBUS it is: ours is resolved or ends the access, any other goes where it went before.

use crate::child::{assert_ended_well, assert_killed_by, run, words};
use crate::fake::{Fake, managed};
use pinless_host::uaccess::Cause;
use pinless_host::{FaultMode, HostMapping, HostMmu, Resolver, attach_thread, last_fault};
use pinless_mm::addr::{PAGE_SIZE, PageIndex};
use pinless_mm::fault::{FaultError, FaultHandler};
use pinless_mm::primary_mmu::{Access, PrimaryMmu};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What the earlier handler saw.
static NR_SEEN: AtomicUsize = AtomicUsize::new(0);
static ADDRESS_SEEN: AtomicUsize = AtomicUsize::new(0);
static FAULT_SEEN: AtomicUsize = AtomicUsize::new(0);
static MASK_SEEN: AtomicUsize = AtomicUsize::new(0);

/// A handler as another library has it: it maps a page where one is missing.
extern "C" fn earlier(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the argument of a SA_SIGINFO handler; the calls are ones a handler may make.
    unsafe {
        let address = (*info).si_addr() as usize;
        NR_SEEN.fetch_add(1, Ordering::Relaxed);
        ADDRESS_SEEN.store(address, Ordering::Relaxed);
        let refused = last_fault().is_some_and(|fault| fault.address.0 as usize == address);
        FAULT_SEEN.store(usize::from(refused), Ordering::Relaxed);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut set);
        let blocked = [libc::SIGBUS, libc::SIGUSR1, libc::SIGUSR2, libc::SIGTERM]
            .iter()
            .enumerate()
            .map(|(bit, signal)| (libc::sigismember(&set, *signal) as usize) << bit);
        MASK_SEEN.store(blocked.sum(), Ordering::Relaxed);
        if (*info).si_code > 0 {
            let page = (address & !(PAGE_SIZE - 1)) as *mut libc::c_void;
            map_fixed(page);
        }
    }
}

/// Puts a page of zeros at an address.
///
/// # Safety
///
/// The caller gives up what was there.
unsafe fn map_fixed(page: *mut libc::c_void) {
    // SAFETY: the caller gives up what was at the page.
    unsafe {
        libc::mmap(
            page,
            PAGE_SIZE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        );
    }
}

fn set_action(action: usize, flags: i32, masked: i32) {
    // SAFETY: zero is a valid value; the handlers given are those of this file.
    unsafe {
        let mut new: libc::sigaction = std::mem::zeroed();
        new.sa_sigaction = action;
        new.sa_flags = flags;
        if masked != 0 {
            libc::sigaddset(&mut new.sa_mask, masked);
        }
        assert_eq!(libc::sigaction(libc::SIGBUS, &new, std::ptr::null_mut()), 0);
    }
}

/// A page of a file that has been cut off: an access is a SIGBUS that is none of ours.
pub(crate) fn foreign_page() -> *mut u8 {
    // SAFETY: plain calls; the mapping stays for the rest of the process.
    unsafe {
        let file = libc::memfd_create(c"cut".as_ptr(), libc::MFD_CLOEXEC);
        assert_eq!(libc::ftruncate(file, PAGE_SIZE as i64), 0);
        let page = libc::mmap(
            std::ptr::null_mut(),
            PAGE_SIZE,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file,
            0,
        );
        assert_ne!(page, libc::MAP_FAILED);
        assert_eq!(libc::ftruncate(file, 0), 0);
        libc::close(file);
        page.cast()
    }
}

fn touch(address: *const u8) -> u8 {
    // SAFETY: the address is mapped, or is meant to trap.
    unsafe { address.read_volatile() }
}

/// A mapping in which page 1 is refused.
fn refusing() -> Option<(HostMapping, Arc<Fake>)> {
    let (mapping, fake) = managed(2, FaultMode::InThread)?;
    fake.refuse(1, FaultError::Killed);
    Some((mapping, fake))
}

#[test]
fn a_foreign_sigbus_reaches_the_earlier_handler_under_its_mask() {
    let output = run(
        "signals::a_foreign_sigbus_reaches_the_earlier_handler_under_its_mask",
        "foreign",
        || {
            set_action(
                earlier as *const () as usize,
                libc::SA_SIGINFO,
                libc::SIGUSR1,
            );
            let Some((mapping, fake)) = refusing() else {
                return;
            };
            let _attached = attach_thread().unwrap();
            let foreign = foreign_page();
            assert_eq!(touch(foreign), 0);
            assert_eq!(NR_SEEN.load(Ordering::Relaxed), 1);
            assert_eq!(ADDRESS_SEEN.load(Ordering::Relaxed), foreign as usize);
            assert_eq!(FAULT_SEEN.load(Ordering::Relaxed), 0);
            // SIGBUS and what the handler asked for; nothing of ours.
            assert_eq!(MASK_SEEN.load(Ordering::Relaxed), 0b0011);
            // Ours do not reach it, but the one that cannot be resolved does, with its reason.
            assert_eq!(touch(mapping.as_ptr()), 0);
            assert_eq!(NR_SEEN.load(Ordering::Relaxed), 1);
            assert_eq!(fake.nr_faults(), 1);
            touch(mapping.as_ptr().wrapping_add(PAGE_SIZE));
            assert_eq!(NR_SEEN.load(Ordering::Relaxed), 2);
            assert_eq!(FAULT_SEEN.load(Ordering::Relaxed), 1);
            assert_eq!(
                last_fault().unwrap().cause,
                Cause::Fault(FaultError::Killed)
            );
            // And one that somebody sends.
            // SAFETY: the call takes no pointers.
            unsafe { libc::raise(libc::SIGBUS) };
            assert_eq!(NR_SEEN.load(Ordering::Relaxed), 3);
        },
    );
    assert_ended_well(&output);
}

#[test]
fn a_handler_for_once_is_called_once() {
    let output = run("signals::a_handler_for_once_is_called_once", "once", || {
        let flags = libc::SA_SIGINFO | libc::SA_RESETHAND | libc::SA_NODEFER;
        set_action(earlier as *const () as usize, flags, 0);
        if refusing().is_none() {
            // SAFETY: the call takes no pointers.
            unsafe { libc::raise(libc::SIGBUS) };
        }
        touch(foreign_page());
        assert_eq!(NR_SEEN.load(Ordering::Relaxed), 1);
        assert_eq!(MASK_SEEN.load(Ordering::Relaxed), 0);
        touch(foreign_page());
    });
    assert_killed_by(&output, libc::SIGBUS);
}

#[test]
fn without_an_earlier_handler_the_default_happens() {
    for (name, action) in [("default", libc::SIG_DFL), ("ignored", libc::SIG_IGN)] {
        let output = run(
            "signals::without_an_earlier_handler_the_default_happens",
            name,
            || {
                set_action(action, 0, 0);
                let _mapping = refusing();
                touch(foreign_page());
            },
        );
        assert_killed_by(&output, libc::SIGBUS);
    }
}

#[test]
fn an_access_that_cannot_be_resolved_ends_the_process() {
    for mode in crate::fake::MODES {
        let output = run(
            "signals::an_access_that_cannot_be_resolved_ends_the_process",
            &format!("unresolved-{mode:?}"),
            || {
                set_action(libc::SIG_DFL, 0, 0);
                let Some((mapping, fake)) = managed(2, mode) else {
                    std::process::abort();
                };
                fake.refuse(1, FaultError::Killed);
                let _attached = attach_thread().unwrap();
                touch(mapping.as_ptr().wrapping_add(PAGE_SIZE));
            },
        );
        if !words(&output).contains("skipped") {
            assert_killed_by(&output, libc::SIGBUS);
        }
    }
}

#[test]
fn a_sent_sigbus_is_ignored_or_ends_the_process_as_before() {
    for (name, action) in [
        ("sent-default", libc::SIG_DFL),
        ("sent-ignored", libc::SIG_IGN),
    ] {
        let output = run(
            "signals::a_sent_sigbus_is_ignored_or_ends_the_process_as_before",
            name,
            || {
                set_action(action, 0, 0);
                let _mapping = refusing();
                // SAFETY: the call takes no pointers.
                unsafe { libc::raise(libc::SIGBUS) };
            },
        );
        if action == libc::SIG_DFL {
            assert_killed_by(&output, libc::SIGBUS);
        } else {
            assert_ended_well(&output);
        }
    }
}

#[test]
fn an_access_of_a_thread_that_is_not_attached_says_what_to_do() {
    let output = run(
        "signals::an_access_of_a_thread_that_is_not_attached_says_what_to_do",
        "unattached",
        || {
            if let Some((mapping, _fake)) = managed(2, FaultMode::InThread) {
                touch(mapping.as_ptr().wrapping_add(PAGE_SIZE));
            }
        },
    );
    if !words(&output).contains("skipped") {
        assert_killed_by(&output, libc::SIGABRT);
        assert!(
            words(&output).contains("attach_thread"),
            "{}",
            words(&output)
        );
    }
}

/// A manager with the one fault that it must not have.
struct Careless(Arc<HostMmu>);

impl FaultHandler for Careless {
    fn fault(&self, page: PageIndex, _: Access) -> Result<(), FaultError> {
        touch((self.0.base().0 as usize + (page as usize + 1) * PAGE_SIZE) as *const u8);
        Ok(())
    }

    fn stale_dma(&self, _: PageIndex) {}
}

#[test]
fn a_fault_inside_the_fault_handler_names_the_page_and_ends_the_process() {
    let output = run(
        "signals::a_fault_inside_the_fault_handler_names_the_page_and_ends_the_process",
        "careless",
        || {
            let mut mapping = match HostMapping::create(8, Resolver::InThread) {
                Ok(mapping) => mapping,
                Err(error) => {
                    crate::fake::is_missing(error);
                    return;
                }
            };
            mapping.attach(Arc::new(Careless(mapping.mmu()))).unwrap();
            let _attached = attach_thread().unwrap();
            touch(mapping.as_ptr().wrapping_add(4 * PAGE_SIZE));
        },
    );
    if !words(&output).contains("skipped") {
        assert_killed_by(&output, libc::SIGABRT);
        assert!(words(&output).contains("page 5"), "{}", words(&output));
    }
}

#[test]
fn an_empty_slot_is_never_a_silent_zero() {
    let output = run(
        "signals::an_empty_slot_is_never_a_silent_zero",
        "slot",
        || {
            let Some((mapping, _fake)) = managed(2, FaultMode::InThread) else {
                return;
            };
            let mut page = [0; PAGE_SIZE];
            mapping.mmu().read_detached(1, &mut page);
        },
    );
    if !words(&output).contains("skipped") {
        assert_killed_by(&output, libc::SIGABRT);
        assert!(
            words(&output).contains("slot of page 1"),
            "{}",
            words(&output)
        );
    }
}

#[test]
fn attaching_gives_a_large_stack_and_gives_the_old_one_back() {
    std::thread::spawn(|| {
        let current = || {
            // SAFETY: zero is a valid value, which the call overwrites.
            unsafe {
                let mut stack: libc::stack_t = std::mem::zeroed();
                libc::sigaltstack(std::ptr::null(), &mut stack);
                (stack.ss_sp as usize, stack.ss_size)
            }
        };
        let before = current();
        let outer = attach_thread().unwrap();
        let ours = current();
        assert!(ours.1 >= 64 * 1024, "{ours:?}");
        let inner = attach_thread().unwrap();
        assert_eq!(current(), ours, "attaching twice changes nothing");
        drop(inner);
        assert_eq!(current(), ours);
        drop(outer);
        assert_eq!(current().0, before.0);
    })
    .join()
    .unwrap();
}

#[test]
fn other_signals_wait_until_a_fault_is_resolved() {
    // A signal handler that touches the same memory while a fault is being resolved would be a
    // fault inside the handler. It runs afterwards, and its own fault is resolved then.
    let output = run(
        "signals::other_signals_wait_until_a_fault_is_resolved",
        "waiting",
        || {
            static TOUCHED: AtomicUsize = AtomicUsize::new(0);
            static WHERE: AtomicUsize = AtomicUsize::new(0);
            extern "C" fn also(_: i32) {
                TOUCHED.store(
                    usize::from(touch(WHERE.load(Ordering::Relaxed) as *const u8)) + 1,
                    Ordering::Relaxed,
                );
            }
            struct Interrupting(Arc<Fake>);
            impl FaultHandler for Interrupting {
                fn fault(&self, page: PageIndex, access: Access) -> Result<(), FaultError> {
                    if page == 0 {
                        // SAFETY: the call takes no pointers.
                        unsafe { libc::raise(libc::SIGUSR2) };
                        assert_eq!(TOUCHED.load(Ordering::Relaxed), 0);
                    }
                    self.0.fault(page, access)
                }
                fn stale_dma(&self, _: PageIndex) {}
            }
            let Ok(mut mapping) = HostMapping::create(2, Resolver::InThread) else {
                return;
            };
            let handler = Interrupting(Fake::new(mapping.mmu()));
            mapping.attach(Arc::new(handler)).unwrap();
            WHERE.store(mapping.as_ptr() as usize + PAGE_SIZE, Ordering::Relaxed);
            // SAFETY: the handler is the one above.
            unsafe { libc::signal(libc::SIGUSR2, also as *const () as usize) };
            let _attached = attach_thread().unwrap();
            touch(mapping.as_ptr());
            assert_eq!(TOUCHED.load(Ordering::Relaxed), 1);
        },
    );
    assert_ended_well(&output);
}

#[test]
fn a_descriptor_passed_on_is_not_leaked_to_children() {
    let Some((mapping, _fake)) = managed(1, FaultMode::InThread) else {
        return;
    };
    let here = std::fs::read_dir("/proc/self/fd").unwrap();
    let nr_kept = here
        .flatten()
        .filter(|entry| {
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            let name = target.to_string_lossy().into_owned();
            name.contains("userfaultfd") || name.contains("pagemap")
        })
        .filter(|entry| {
            let fd: i32 = entry.file_name().to_string_lossy().parse().unwrap();
            // SAFETY: the call takes no pointers.
            let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
            flags >= 0 && flags & libc::FD_CLOEXEC == 0
        })
        .count();
    assert_eq!(nr_kept, 0);
    drop(mapping);
}
