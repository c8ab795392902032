//! How much stack the validator needs: locks are taken on small ones, such as a signal handler's.
//!
//! A thread paints its stack below itself, has the validator work, and looks how far the paint is
//! gone. It does both through the file of its own memory, as nothing else may touch that.

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::os::unix::fs::FileExt;

use lockdep::sync::{Completion, Condvar, Mutex, RwLock};
use lockdep::{Attributes, DynamicClass, Map, Mode, Validator, event};

const PAINT: u8 = 0xa5;
/// Below the frame that paints lie those that write; what they need is not painted.
const NR_BYTES_KEPT: usize = 2048;
const NR_BYTES_PAINTED: usize = 256 * 1024;

/// What a test must see: an array of this size.
const NR_BYTES_CANARY: usize = 40 * 1024;
/// What locks and waits may need, twice what they were seen to.
const NR_BYTES_QUIET_MAX: usize = 6 * 1024;
/// What a report may need that is kept, and not printed, likewise.
const NR_BYTES_REPORTING_MAX: usize = 9 * 1024;

/// How many bytes of stack `act` needs, and no fewer than are kept.
#[inline(never)]
fn depth_of(act: fn()) -> usize {
    let here = std::ptr::from_ref(&black_box(0_u8)).addr();
    let lowest = here - NR_BYTES_KEPT - NR_BYTES_PAINTED;
    let mut bytes = vec![PAINT; NR_BYTES_PAINTED];
    let memory = own_memory();
    memory
        .write_all_at(&bytes, lowest as u64)
        .expect("a thread may write to its own stack");
    // Not inlined: its frame lies below this one.
    black_box(act)();
    memory
        .read_exact_at(&mut bytes, lowest as u64)
        .expect("a thread may read its own stack");
    let first = bytes.iter().position(|&byte| byte != PAINT);
    here - lowest - first.unwrap_or(NR_BYTES_PAINTED)
}

fn own_memory() -> File {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/proc/self/mem");
    file.expect("a process may open its own memory")
}

/// Does `act` in a new thread with a validator of its own; how many bytes of stack that took.
fn measure(act: fn()) -> usize {
    let thread = std::thread::Builder::new().stack_size(4 * NR_BYTES_PAINTED);
    let measured = thread.spawn(move || {
        let validator = Validator::new();
        let _entered = validator.enter();
        depth_of(act)
    });
    let joined = measured.expect("a thread starts").join();
    joined.expect("the work does not panic")
}

/// Orders that close a circle of `nr` classes, with others held outside.
fn circle(nr: usize) {
    let names = || DynamicClass::new("stack", Attributes::SLEEP);
    let outside: Vec<DynamicClass> = (0..20).map(|_| names()).collect();
    let classes: Vec<DynamicClass> = (0..nr).map(|_| names()).collect();
    let acquire = |class: &DynamicClass, instance| {
        event::acquire(&event::Acquire::new(class.id(), instance, Mode::Exclusive));
    };
    for at in 0..nr {
        for (instance, class) in outside.iter().enumerate() {
            acquire(class, 1000 + instance);
        }
        let next = (at + 1) % nr;
        acquire(&classes[at], 1 + at);
        acquire(&classes[next], 1 + next);
        event::release(1 + at);
        event::release(1 + next);
        (0..outside.len()).for_each(|instance| event::release(1000 + instance));
    }
}

fn locks_and_waits() {
    static INSIDE: Map = Map::new("stack inside");
    let outer = Mutex::new("stack outer", 0);
    let shared = RwLock::new("stack shared", 0);
    let changed = Condvar::new("stack changed");
    let done = Completion::new("stack done");
    let guard = outer.lock();
    let reader = shared.read();
    let inside = INSIDE.enter();
    lockdep::might_sleep();
    drop(guard);
    drop((reader, inside));
    changed.notify_all();
    done.complete_all();
    done.wait();
    let held: Vec<Mutex<()>> = (0..80).map(|_| Mutex::new("stack deep", ())).collect();
    let guards: Vec<_> = held.iter().map(|mutex| mutex.try_lock()).collect();
    drop(guards);
}

#[test]
fn what_the_validator_finds_does_not_lie_on_the_stack() {
    if cfg!(miri) {
        return;
    }
    // Whatever is made once is made before.
    let _warm = Validator::new().reports();
    locks_and_waits();
    circle(3);
    let canary = measure(|| {
        let bytes = [black_box(1_u8); NR_BYTES_CANARY];
        black_box(&bytes);
    });
    let quiet = measure(locks_and_waits);
    let reporting = measure(|| circle(30));
    println!("stack: {quiet} bytes for what is right, {reporting} with a report");
    assert!(canary >= NR_BYTES_CANARY, "the paint shows {canary}");
    assert!(quiet <= NR_BYTES_QUIET_MAX, "{quiet}");
    assert!(reporting <= NR_BYTES_REPORTING_MAX, "{reporting}");
}
