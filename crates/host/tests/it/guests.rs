//! Threads that run a guest, and what else happens in them meanwhile.

use crate::child::{assert_killed_by, run, words};
use crate::fake::{managed, skip};
use pinless_host::kvm::kvm_bindings::kvm_regs;
use pinless_host::kvm::{KvmError, Vm};
use pinless_host::{FaultMode, HostMapping, attach_thread};
use pinless_mm::addr::PAGE_SIZE;
use pinless_mm::fault::FaultError;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::thread;

/// Writes `ax` to page 2, and then stays where it is.
const PROGRAM: [u8; 5] = [
    0xa3, 0x00, 0x20, // mov [0x2000], ax
    0xeb, 0xfe, // again: jmp again
];
const CODE: usize = PAGE_SIZE;
const WORD: usize = 2 * PAGE_SIZE;
const REFUSED: u32 = 3;

/// A page that cannot be had, for the handler below.
static ADDRESS: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

struct Owner(HostMapping);

impl AsRef<HostMapping> for Owner {
    fn as_ref(&self) -> &HostMapping {
        &self.0
    }
}

extern "C" fn touches(_: i32) {
    // SAFETY: the address is of a mapping, whose page traps.
    unsafe { ADDRESS.load(Ordering::Relaxed).read_volatile() };
}

/// Runs the guest, and sends its thread a signal once it is seen to run.
fn interrupt_a_guest() -> Option<()> {
    let (mapping, fake) = managed(4, FaultMode::InThread)?;
    let vm = match Vm::new() {
        Err(error @ KvmError::NoKvm(_)) => {
            skip(&error.to_string());
            return None;
        }
        made => made.unwrap(),
    };
    fake.refuse(REFUSED, FaultError::Killed);
    let attached = attach_thread().unwrap();
    mapping.write_at(CODE as u64, &PROGRAM).unwrap();
    mapping.store_u64(WORD as u64, 0).unwrap();
    let refused = mapping.as_ptr().wrapping_add(REFUSED as usize * PAGE_SIZE);
    ADDRESS.store(refused, Ordering::Relaxed);
    let memory = Arc::new(Owner(mapping));
    vm.add_memory(0, Arc::clone(&memory) as _).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let mut sregs = vcpu.fd().get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.fd().set_sregs(&sregs).unwrap();
    let regs = kvm_regs {
        rip: CODE as u64,
        rax: 42,
        rflags: 2,
        ..Default::default()
    };
    vcpu.fd().set_regs(&regs).unwrap();
    // SAFETY: the handler does what one may; the calls take what lives. Should the thread never
    // come back from its handler, the alarm ends the process, with another signal.
    let vcpu_thread = unsafe {
        let handler = touches as *const () as libc::sighandler_t;
        libc::signal(libc::SIGUSR1, handler);
        libc::alarm(120);
        libc::pthread_self()
    };
    thread::spawn(move || {
        let _attached = attach_thread().unwrap();
        while memory.0.load_u64(WORD as u64).unwrap() != 42 {
            thread::yield_now();
        }
        // SAFETY: the thread is in its guest, and stays there.
        unsafe { libc::pthread_kill(vcpu_thread, libc::SIGUSR1) };
    });
    panic!("the guest ended: {:?}", vcpu.run(&attached));
}

#[test]
fn a_signal_handler_that_interrupts_a_guest_may_not_touch_what_is_not_there() {
    let test = "guests::a_signal_handler_that_interrupts_a_guest_may_not_touch_what_is_not_there";
    let output = run(test, "interrupted", || {
        let _skipped = interrupt_a_guest();
    });
    if output.status.success() {
        // It came back, so this machine lacks something, and it said what.
        let said = words(&output);
        assert!(said.contains("skipped: "), "{said}");
        return eprintln!("{}", said.trim());
    }
    assert_killed_by(&output, libc::SIGBUS);
}
