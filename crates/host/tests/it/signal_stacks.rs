//! On which stack what runs: faults, faults of signal handlers, and SIGBUS handlers from before.

use crate::child::{assert_ended_well, assert_killed_by, run, run_each, words};
use crate::fake::{Fake, MODES, Side, mapping, word_of};
use crate::signals::foreign_page;
use core::hint::black_box;
use core::ops::Range;
use pinless_host::{AccessError, FaultMode, HostMapping, attach_thread};
use pinless_mm::addr::{PAGE_SIZE, PageIndex, PageRun};
use pinless_mm::fault::{FaultError, FaultHandler};
use pinless_mm::primary_mmu::Access;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// What is to be left of an attached thread's stack when its fault is resolved at the first level.
const LEFT_MIN: usize = 48 * 1024;
/// And when a signal handler with [`LOCAL_BYTES`] of its own is under it.
const LEFT_NESTED_MIN: usize = 32 * 1024;
/// Bytes on the stack of a signal handler that touches managed memory.
const LOCAL_BYTES: usize = 8 * 1024;
/// A stack of the program's own, just large enough that attaching keeps it.
const OWN_BYTES: usize = 64 * 1024;

/// A manager that notes where its locals lie.
struct Noting {
    fake: Arc<Fake>,
    local: AtomicUsize,
}

impl FaultHandler for Noting {
    fn fault(&self, page: PageIndex, access: Access) -> Result<(), FaultError> {
        let local = 0_u8;
        // Relaxed: read by the thread that had the fault.
        self.local
            .store((&raw const *black_box(&local)).addr(), Ordering::Relaxed);
        self.fake.fault(page, access)
    }

    fn stale_dma(&self, page: PageIndex) {
        self.fake.stale_dma(page);
    }
}

/// Memory whose manager notes where it runs, or nothing where the machine has none.
fn noted(nr_pages: u32, side: Side) -> Option<(HostMapping, Arc<Noting>)> {
    let mut mapping = mapping(nr_pages, side)?;
    let noting = Arc::new(Noting {
        fake: Fake::new(mapping.mmu()),
        local: AtomicUsize::new(0),
    });
    mapping.attach(Arc::clone(&noting) as _).unwrap();
    Some((mapping, noting))
}

/// The mappings whose faults are resolved in the thread that has them.
fn in_thread() -> impl Iterator<Item = Side> {
    let sides = MODES.into_iter();
    sides.filter(|side| side.faults == FaultMode::InThread)
}

/// The alternate stack of this thread; empty when it has none.
fn alternate() -> Range<usize> {
    // SAFETY: zero is a valid value, which the call overwrites.
    let stack = unsafe {
        let mut stack: libc::stack_t = core::mem::zeroed();
        assert_eq!(libc::sigaltstack(core::ptr::null(), &mut stack), 0);
        stack
    };
    let start = stack.ss_sp as usize;
    match stack.ss_flags & libc::SS_DISABLE {
        0 => start..start + stack.ss_size,
        _ => 0..0,
    }
}

/// Has this thread use `memory` as its alternate stack, or none.
fn set_alternate(memory: Option<&mut [u8]>) {
    let stack = libc::stack_t {
        ss_flags: memory.as_ref().map_or(libc::SS_DISABLE, |_| 0),
        ss_size: memory.as_ref().map_or(0, |memory| memory.len()),
        ss_sp: memory.map_or(core::ptr::null_mut(), |memory| memory.as_mut_ptr().cast()),
    };
    // SAFETY: who calls this keeps the memory until the thread ends or has another stack.
    let set = unsafe { libc::sigaltstack(&stack, core::ptr::null_mut()) };
    assert_eq!(set, 0);
}

fn read(address: usize) -> u64 {
    // SAFETY: the address is mapped, or is meant to trap.
    unsafe { (address as *const u64).read_volatile() }
}

fn write(address: usize, value: u64) {
    // SAFETY: as above; nobody has a reference to what is there.
    unsafe { (address as *mut u64).write_volatile(value) }
}

/// A place in a stack of this thread's.
#[inline(never)]
fn here() -> usize {
    let local = 0_u8;
    (&raw const *black_box(&local)).addr()
}

fn set_action(signal: i32, action: usize, flags: i32) {
    // SAFETY: zero is a valid value; the handlers given are those of this file.
    unsafe {
        let mut new: libc::sigaction = core::mem::zeroed();
        new.sa_sigaction = action;
        new.sa_flags = flags;
        assert_eq!(libc::sigaction(signal, &new, core::ptr::null_mut()), 0);
    }
}

#[test]
fn a_fault_is_resolved_on_the_alternate_stack() {
    for side in in_thread() {
        let Some((mapping, noting)) = noted(3, side) else {
            return;
        };
        let base = mapping.as_ptr() as usize;
        let touch = |page: u32| {
            let address = base + page as usize * PAGE_SIZE;
            assert_eq!(read(address), word_of(page, 0), "{side:?}");
            noting.local.load(Ordering::Relaxed)
        };
        let attached = || {
            let _attached = attach_thread().unwrap();
            let stack = alternate();
            let local = touch(0);
            assert!(!stack.contains(&here()), "{side:?}: {stack:x?}");
            assert!(stack.contains(&local), "{side:?}: {local:x} {stack:x?}");
            assert!(local - stack.start >= LEFT_MIN, "{side:?}");
        };
        let with_its_own = || {
            let mut memory = vec![0; 256 * 1024];
            set_alternate(Some(&mut memory));
            let _attached = attach_thread().unwrap();
            let stack = alternate();
            assert_eq!(stack.start, memory.as_ptr().addr(), "it is large enough");
            let local = touch(1);
            set_alternate(None);
            assert!(stack.contains(&local), "{side:?}: {local:x} {stack:x?}");
        };
        let without = || {
            set_alternate(None);
            let (local, here) = (touch(2), here());
            assert!(local < here && here - local < LEFT_MIN, "{side:?}");
        };
        std::thread::scope(|scope| {
            // One after the other: where the local was is noted in one place.
            scope.spawn(attached).join().unwrap();
            scope.spawn(with_its_own).join().unwrap();
            scope.spawn(without).join().unwrap();
        });
        assert_eq!(noting.fake.nr_faults(), 3, "{side:?}");
    }
}

/// Where the handler of SIGUSR1 finds managed memory, and where its locals began.
static BASE: AtomicUsize = AtomicUsize::new(0);
static OUTER: AtomicUsize = AtomicUsize::new(0);

/// A byte of the locals; no run of equal ones hides what was moved.
fn mark(nth: usize) -> u8 {
    (nth % 251) as u8
}

/// A signal handler of a program's that is careful with signals, and not with its memory.
extern "C" fn touching(_: i32) {
    let mut local = [0; LOCAL_BYTES];
    for (nth, byte) in local.iter_mut().enumerate() {
        *byte = mark(nth);
    }
    let local = black_box(&local);
    OUTER.store(local.as_ptr().addr(), Ordering::Relaxed);
    let base = BASE.load(Ordering::Relaxed);
    for page in 0..4 {
        let address = base + page as usize * PAGE_SIZE;
        // Two faults where a page comes read-only first.
        let found = read(address);
        write(address + 8, !found);
        assert_eq!(found, word_of(page, 0));
        assert_eq!(read(address + 8), !found);
    }
    let is_whole = local.iter().enumerate().all(|(n, byte)| *byte == mark(n));
    assert!(is_whole, "the locals of the handler under the fault");
}

/// Raises SIGUSR1 in this thread, whose handler touches memory whose manager is `noting`.
fn check_nested(noting: &Noting, what: &str) {
    let stack = alternate();
    let local = [0x5A_u8; 256];
    let local = black_box(&local);
    // SAFETY: the call takes no pointers.
    unsafe { libc::raise(libc::SIGUSR1) };
    assert!(local.iter().all(|byte| *byte == 0x5A), "{what}");
    let [outer, inner] = [&OUTER, &noting.local].map(|place| place.load(Ordering::Relaxed));
    assert!(stack.contains(&outer), "{what}: {outer:x} {stack:x?}");
    assert!(stack.contains(&inner), "{what}: {inner:x} {stack:x?}");
    assert!(
        inner < outer,
        "{what}: the fault is below what it interrupts"
    );
    let left = inner - stack.start;
    assert!(left >= LEFT_NESTED_MIN, "{what}: {left} bytes are left");
}

#[test]
fn a_signal_handler_on_the_alternate_stack_may_have_faults() {
    let test = "signal_stacks::a_signal_handler_on_the_alternate_stack_may_have_faults";
    let output = run(test, "nested", || {
        set_action(
            libc::SIGUSR1,
            touching as *const () as usize,
            libc::SA_ONSTACK,
        );
        for side in in_thread() {
            let Some((mapping, noting)) = noted(8, side) else {
                return;
            };
            let base = mapping.as_ptr() as usize;
            let attached = || {
                BASE.store(base, Ordering::Relaxed);
                let _attached = attach_thread().unwrap();
                check_nested(&noting, &format!("{side:?} attached"));
            };
            // The least that is taken for large enough, between bytes that are to stay.
            let with_its_own = || {
                noting.fake.detach(PageRun::new(0, 8));
                noting.fake.store(PageRun::new(0, 8));
                let mut memory = vec![0xC5; 3 * OWN_BYTES];
                set_alternate(Some(&mut memory[OWN_BYTES..2 * OWN_BYTES]));
                let attached = attach_thread().unwrap();
                assert_eq!(alternate().start, memory[OWN_BYTES..].as_ptr().addr());
                check_nested(&noting, &format!("{side:?} with its own"));
                drop(attached);
                set_alternate(None);
                let (before, after) = (&memory[..OWN_BYTES], &memory[2 * OWN_BYTES..]);
                assert!(before.iter().chain(after).all(|byte| *byte == 0xC5));
            };
            std::thread::scope(|scope| {
                scope.spawn(attached).join().unwrap();
                scope.spawn(with_its_own).join().unwrap();
            });
            assert!(noting.fake.nr_faults() >= 8, "{side:?}");
        }
    });
    assert_ended_well(&output);
}

/// What the greedy handler reads, and what it got.
static GREEDY: OnceLock<HostMapping> = OnceLock::new();
static NR_REFUSED: AtomicUsize = AtomicUsize::new(0);

/// A signal handler that leaves no room to resolve a fault.
#[inline(never)]
fn read_with_little_left(mut read: impl FnMut(&HostMapping)) {
    let mut local = [0; OWN_BYTES - 20 * 1024];
    for (nth, byte) in local.iter_mut().enumerate() {
        *byte = mark(nth);
    }
    let local = black_box(&local);
    read(GREEDY.get().unwrap());
    let is_whole = local.iter().enumerate().all(|(n, byte)| *byte == mark(n));
    assert!(is_whole, "the locals of the handler");
}

extern "C" fn greedy(_: i32) {
    read_with_little_left(|mapping| {
        let refused = AccessError::ThreadNotAttached { offset: 0 };
        assert_eq!(mapping.load_u64(0), Err(refused));
        NR_REFUSED.fetch_add(1, Ordering::Relaxed);
    });
}

extern "C" fn greedy_by_address(_: i32) {
    read_with_little_left(|mapping| {
        read(mapping.as_ptr() as usize);
    });
}

#[test]
fn a_signal_handler_that_leaves_no_room_for_a_fault_overwrites_nothing() {
    let test = "signal_stacks::a_signal_handler_that_leaves_no_room_for_a_fault_overwrites_nothing";
    let scenario = |handler: extern "C" fn(i32)| {
        let Some((mapping, noting)) = noted(2, FaultMode::InThread.into()) else {
            return;
        };
        GREEDY.set(mapping).unwrap();
        let action = handler as *const () as usize;
        set_action(libc::SIGUSR1, action, libc::SA_ONSTACK);
        let mut memory = vec![0; OWN_BYTES];
        set_alternate(Some(&mut memory));
        let attached = attach_thread().unwrap();
        // SAFETY: the call takes no pointers.
        unsafe { libc::raise(libc::SIGUSR1) };
        assert_eq!(NR_REFUSED.load(Ordering::Relaxed), 1);
        assert_eq!(noting.fake.nr_faults(), 0);
        // It is the room that was missing, and not the thread.
        assert_eq!(GREEDY.get().unwrap().load_u64(0), Ok(word_of(0, 0)));
        drop(attached);
        set_alternate(None);
    };
    let output = run(test, "greedy", || scenario(greedy));
    assert_ended_well(&output);
    let output = run(test, "greedy-by-address", || scenario(greedy_by_address));
    if !words(&output).contains("skipped") {
        assert_killed_by(&output, libc::SIGABRT);
        let said = words(&output);
        assert!(
            said.contains("page 0") && said.contains("signal stack"),
            "{said}"
        );
    }
}

/// What an earlier SIGBUS handler saw.
static FOREIGN: AtomicUsize = AtomicUsize::new(0);
static NR_SEEN: AtomicUsize = AtomicUsize::new(0);
static LOCAL_SEEN: AtomicUsize = AtomicUsize::new(0);
static SIGNAL_SEEN: AtomicI32 = AtomicI32::new(0);
static ERRNO_SEEN: AtomicI32 = AtomicI32::new(0);
static CODE_SEEN: AtomicI32 = AtomicI32::new(0);
static ADDRESS_SEEN: AtomicUsize = AtomicUsize::new(0);
static STACK_SEEN: AtomicUsize = AtomicUsize::new(0);
static POINTER_SEEN: AtomicUsize = AtomicUsize::new(0);

/// What no call leaves behind as an error number.
const ERRNO: i32 = 77;

/// An earlier handler of the short form. It maps a page where one is missing.
extern "C" fn short_form(signal: i32) {
    NR_SEEN.fetch_add(1, Ordering::Relaxed);
    SIGNAL_SEEN.store(signal, Ordering::Relaxed);
    LOCAL_SEEN.store(here(), Ordering::Relaxed);
    // SAFETY: the thread's own error number; the page is one that this program gives up.
    unsafe {
        ERRNO_SEEN.store(*libc::__errno_location(), Ordering::Relaxed);
        let page = libc::mmap(
            FOREIGN.load(Ordering::Relaxed) as *mut libc::c_void,
            PAGE_SIZE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        );
        assert_ne!(page, libc::MAP_FAILED);
    }
}

/// The same, of the long form.
extern "C" fn long_form(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the arguments of a SA_SIGINFO handler.
    unsafe {
        assert_eq!((*info).si_signo, signal);
        CODE_SEEN.store((*info).si_code, Ordering::Relaxed);
        ADDRESS_SEEN.store((*info).si_addr() as usize, Ordering::Relaxed);
        let context = &*context.cast::<libc::ucontext_t>();
        STACK_SEEN.store(context.uc_stack.ss_sp as usize, Ordering::Relaxed);
        POINTER_SEEN.store(stack_pointer(context), Ordering::Relaxed);
    }
    short_form(signal);
}

#[cfg(target_arch = "x86_64")]
fn stack_pointer(context: &libc::ucontext_t) -> usize {
    context.uc_mcontext.gregs[libc::REG_RSP as usize] as usize
}

#[cfg(target_arch = "aarch64")]
fn stack_pointer(context: &libc::ucontext_t) -> usize {
    context.uc_mcontext.sp as usize
}

/// A thread in which an earlier handler runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Thread {
    Attached,
    WithoutStack,
}

/// An earlier handler: its form, and for how often and on which stack it was installed.
#[derive(Clone, Copy, Debug)]
struct Earlier {
    form: i32,
    once: i32,
    on_stack: i32,
}

impl Earlier {
    fn all() -> impl Iterator<Item = Self> {
        (0..8).map(|bits| {
            let flag = |bit: i32, flag: i32| if bits >> bit & 1 == 0 { 0 } else { flag };
            Self {
                form: flag(0, libc::SA_SIGINFO),
                once: flag(1, libc::SA_RESETHAND),
                on_stack: flag(2, libc::SA_ONSTACK),
            }
        })
    }

    fn install(self) {
        let handler = match self.form {
            0 => short_form as *const () as usize,
            _ => long_form as *const () as usize,
        };
        set_action(libc::SIGBUS, handler, self.form | self.once | self.on_stack);
    }

    /// Meets a SIGBUS that is not ours, which the handler mends.
    fn check_foreign(self, nr_seen: usize, stack: &Range<usize>) {
        let foreign = foreign_page().addr();
        FOREIGN.store(foreign, Ordering::Relaxed);
        // SAFETY: the thread's own error number.
        let found = unsafe {
            *libc::__errno_location() = ERRNO;
            read(foreign + 8)
        };
        assert_eq!(found, 0, "{self:?}");
        let here = here();
        let nr = NR_SEEN.load(Ordering::Relaxed);
        let [signal, errno] = [&SIGNAL_SEEN, &ERRNO_SEEN].map(|it| it.load(Ordering::Relaxed));
        let expected = (nr_seen, libc::SIGBUS, ERRNO);
        assert_eq!((nr, signal, errno), expected, "{self:?}");
        let local = LOCAL_SEEN.load(Ordering::Relaxed);
        if stack.is_empty() {
            assert!(local < here && here - local < LEFT_MIN, "{self:?}");
        } else {
            assert!(stack.contains(&local), "{self:?}: {local:x} {stack:x?}");
            assert!(local - stack.start >= LEFT_MIN, "{self:?}");
        }
        if self.form == 0 {
            return;
        }
        const BUS_ADRERR: i32 = 2;
        assert_eq!(CODE_SEEN.load(Ordering::Relaxed), BUS_ADRERR, "{self:?}");
        let [address, start, pointer] =
            [&ADDRESS_SEEN, &STACK_SEEN, &POINTER_SEEN].map(|it| it.load(Ordering::Relaxed));
        assert_eq!((address, start), (foreign + 8, stack.start), "{self:?}");
        assert!(pointer.abs_diff(here) < PAGE_SIZE, "{self:?}: {pointer:x}");
    }
}

/// Also a handler without SA_ONSTACK runs on the alternate stack, since ours calls it there: it has
/// the room that is left, and no more.
#[test]
fn an_earlier_handler_gets_its_arguments_on_the_stack_that_ours_has() {
    let test = "signal_stacks::an_earlier_handler_gets_its_arguments_on_the_stack_that_ours_has";
    let rows: Vec<_> = Earlier::all()
        .flat_map(|earlier| [Thread::Attached, Thread::WithoutStack].map(|it| (earlier, it)))
        .collect();
    let outputs = run_each(test, &rows, |(earlier, thread)| {
        set_alternate(None);
        earlier.install();
        let Some((mapping, noting)) = noted(1, FaultMode::InThread.into()) else {
            return;
        };
        let attached = (*thread == Thread::Attached).then(|| attach_thread().unwrap());
        let stack = alternate();
        assert_eq!(stack.is_empty(), *thread == Thread::WithoutStack);
        earlier.check_foreign(1, &stack);
        // What is ours does not reach it, and does not use it up.
        assert_eq!(read(mapping.as_ptr() as usize), word_of(0, 0));
        assert_eq!(noting.fake.nr_faults(), 1);
        assert_eq!(NR_SEEN.load(Ordering::Relaxed), 1);
        earlier.check_foreign(2, &stack);
        drop(attached);
    });
    assert_eq!(outputs.len(), rows.len());
    for ((earlier, _), output) in rows.iter().zip(&outputs) {
        if earlier.once == 0 || words(output).contains("skipped") {
            assert_ended_well(output);
        } else {
            assert_killed_by(output, libc::SIGBUS);
        }
    }
}
