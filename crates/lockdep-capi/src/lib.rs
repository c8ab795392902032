//! The validator for C programs: `liblockdep.a`, `liblockdep.so` and `include/lockdep.h`.
//!
//! All there is here is translation. A class is the address of a key; an instance is the address of
//! a map; what is judged is the business of `lockdep::event`. No call unwinds into its caller: a
//! panic, which only a policy of the environment asks for, ends the process.
//!
//! Linux counterpart: include/linux/lockdep.h.

mod levels;

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};
use std::io::Write;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Once};

use validator::context;
use validator::event::{self, Acquire, HeldAs};
use validator::{
    Attributes, ClassId, KeyName, LockType, Mode, Name, Report, Site, Validator, WaitType,
};

/// `struct lock_class_key`: only its address counts.
#[repr(C)]
pub struct LockClassKey {
    slot: [c_char; 16],
}

/// `struct lockdep_map`.
#[repr(C)]
pub struct LockdepMap {
    key: *const LockClassKey,
    /// The class of subclass 0, above it the age in which it was looked up; see [`class_of`].
    ///
    /// Relaxed: the number alone is used, and what it stands for is read under a lock.
    cache: AtomicUsize,
    /// The subclass that acquisitions of subclass 0 are of.
    subclass: usize,
    name: *const c_char,
    wait_type_outer: u8,
    wait_type_inner: u8,
    lock_type: u8,
}

// SAFETY: the name belongs to the interface that this library is.
#[unsafe(no_mangle)]
/// `int debug_locks`: whether locks are watched. Relaxed: it orders nothing.
pub static debug_locks: AtomicI32 = AtomicI32::new(1);

// SAFETY: as above.
#[unsafe(no_mangle)]
/// `int debug_locks_silent`: whether reports are not printed.
pub static debug_locks_silent: AtomicI32 = AtomicI32::new(0);

/// Raised whenever classes are forgotten: what maps remember of an earlier age does not count.
///
/// Relaxed: who uses a map while its class is being forgotten breaks the contract anyway.
static AGE: AtomicUsize = AtomicUsize::new(1);

const CLASS_BITS: u32 = ClassId::NR_MAX.trailing_zeros();
const _: () = assert!(
    usize::BITS == 64,
    "a map remembers a class and an age in one word"
);

/// Whether locks are watched; the first call makes the process's validator this interface's.
fn is_on() -> bool {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| Validator::global().set_sink(Arc::new(tell)));
    debug_locks.load(Ordering::Relaxed) != 0
}

/// One-shot: the first report is the last.
fn tell(report: &Report) {
    let was_on = debug_locks.swap(0, Ordering::Relaxed) != 0;
    if was_on && debug_locks_silent.load(Ordering::Relaxed) == 0 {
        // There is nobody to tell that the terminal is gone.
        let _ = std::io::stderr().lock().write_all(report.text().as_bytes());
    }
}

fn wait_type(number: u8) -> WaitType {
    match number {
        0 => WaitType::Unchecked,
        1 => WaitType::Free,
        2 => WaitType::Spin,
        3 => WaitType::Config,
        _ => WaitType::Sleep,
    }
}

impl LockdepMap {
    /// The address that stands for the lock.
    fn instance(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// The address that stands for its class.
    fn key_addr(&self) -> usize {
        if self.key.is_null() {
            self.instance()
        } else {
            self.key.addr()
        }
    }

    fn attributes(&self) -> Attributes {
        let inner = wait_type(self.wait_type_inner);
        // A lock that says nothing of its holder is not checked at all.
        let is_plain = self.wait_type_outer == 0 || inner == WaitType::Unchecked;
        Attributes {
            outer: if is_plain {
                inner
            } else {
                wait_type(self.wait_type_outer)
            },
            lock_type: match self.lock_type {
                1 => LockType::Local,
                2 => LockType::WaitOverride,
                _ => LockType::Normal,
            },
            ..Attributes::of(inner)
        }
    }

    /// The class of subclass 0; made if there is none.
    ///
    /// # Safety
    ///
    /// The name is null or a C string.
    unsafe fn class_of_key(&self) -> ClassId {
        let key = KeyName::Address(self.key_addr());
        if let Some(class) = validator::find_class(&key) {
            return class;
        }
        let name = if self.name.is_null() {
            "?".to_owned()
        } else {
            // SAFETY: our caller's promise.
            unsafe { CStr::from_ptr(self.name) }
                .to_string_lossy()
                .into_owned()
        };
        validator::register(key, Name::from(name), &self.attributes())
    }

    /// The class of an acquisition; `None`, and a report, if there is no such subclass.
    ///
    /// # Safety
    ///
    /// As [`class_of_key`](Self::class_of_key).
    unsafe fn class(&self, subclass: c_uint) -> Option<ClassId> {
        let age = AGE.load(Ordering::Relaxed) << CLASS_BITS;
        let cached = self.cache.load(Ordering::Relaxed);
        let class = if cached & !(usize::MAX >> (usize::BITS - CLASS_BITS)) == age {
            ClassId::from_index((cached ^ age) as u32)
        } else {
            // SAFETY: our caller's promise.
            let class = unsafe { self.class_of_key() };
            self.cache
                .store(age | class.index() as usize, Ordering::Relaxed);
            class
        };
        let subclass = match subclass {
            0 => self.subclass as u32,
            subclass => subclass,
        };
        event::subclass(class, subclass)
    }
}

/// Switches the validator off; says whether it was on.
// SAFETY: the name belongs to the interface.
#[unsafe(no_mangle)]
pub extern "C" fn debug_locks_off() -> c_int {
    debug_locks.swap(0, Ordering::Relaxed)
}

/// Makes a map; any values it had are overwritten.
///
/// # Safety
///
/// `map` points to memory for one that nobody uses yet; `name` is null or a C string that outlives
/// the map.
// SAFETY: the name belongs to the interface.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lockdep_init_map_type(
    map: *mut LockdepMap,
    name: *const c_char,
    key: *mut LockClassKey,
    subclass: c_int,
    inner: u8,
    outer: u8,
    lock_type: u8,
) {
    let made = LockdepMap {
        key,
        cache: AtomicUsize::new(0),
        subclass: subclass.max(0) as usize,
        name,
        wait_type_outer: outer,
        wait_type_inner: inner,
        lock_type,
    };
    // SAFETY: our caller's promise.
    unsafe { map.write(made) };
}

/// A lock is taken: told before it blocks, or after a try has succeeded.
///
/// # Safety
///
/// `map` points to a map, whose name is null or a C string; `nest` is null or points to one.
// SAFETY: the name belongs to the interface.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lock_acquire(
    map: *mut LockdepMap,
    subclass: c_uint,
    trylock: c_int,
    read: c_int,
    check: c_int,
    nest: *mut LockdepMap,
    ip: c_ulong,
) {
    if !is_on() {
        return;
    }
    levels::refresh();
    // SAFETY: our caller's promise.
    let map = unsafe { &*map };
    // SAFETY: our caller's promise.
    let Some(class) = (unsafe { map.class(subclass) }) else {
        return;
    };
    event::acquire(&Acquire {
        class,
        instance: map.instance(),
        mode: match read {
            0 => Mode::Exclusive,
            1 => Mode::Shared,
            _ => Mode::SharedRecursive,
        },
        is_try: trylock != 0,
        is_unchecked: check == 0,
        nest: (!nest.is_null()).then(|| nest.addr()),
        site: Site::Address(ip as usize),
    });
}

/// A lock is released.
///
/// The map is not read: only its address counts.
// SAFETY: the name belongs to the interface.
#[unsafe(no_mangle)]
pub extern "C" fn lock_release(map: *mut LockdepMap, ip: c_ulong) {
    if is_on() {
        levels::refresh();
        event::release_at(map.addr(), Site::Address(ip as usize));
    }
}

/// Whether the calling thread holds a lock: 1, 0, or -1 while the validator is off.
// SAFETY: the name belongs to the interface.
#[unsafe(no_mangle)]
pub extern "C" fn lock_is_held_type(map: *const LockdepMap, read: c_int) -> c_int {
    if !is_on() {
        return -1;
    }
    let how = match read {
        -1 => HeldAs::Any,
        0 => HeldAs::Exclusive,
        _ => HeldAs::Reader,
    };
    event::is_held(map.addr(), how).map_or(-1, c_int::from)
}

/// Forgets what the calling thread holds, validated chains and reports; switches on.
// SAFETY: the name belongs to the interface.
#[unsafe(no_mangle)]
pub extern "C" fn lockdep_reset() {
    // The answer does not count: it is switched on either way.
    let _ = is_on();
    event::reset_thread();
    Validator::global().forget_chains();
    debug_locks.store(1, Ordering::Relaxed);
}

/// Forgets the class of a map.
///
/// # Safety
///
/// `map` points to a map.
// SAFETY: the name belongs to the interface.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lockdep_reset_lock(map: *mut LockdepMap) {
    // SAFETY: our caller's promise.
    let key = KeyName::Address(unsafe { &*map }.key_addr());
    if let Some(class) = validator::find_class(&key) {
        forget(class);
    }
}

/// Forgets every class whose key lies in this memory.
// SAFETY: the name belongs to the interface.
#[unsafe(no_mangle)]
pub extern "C" fn lockdep_free_key_range(start: *mut c_void, size: c_ulong) {
    let start = start.addr();
    validator::classes_in(start..start.saturating_add(size as usize)).for_each(forget);
}

fn forget(class: ClassId) {
    event::forget(class);
    AGE.fetch_add(1, Ordering::Relaxed);
}

/// Reports a lock in this memory that the calling thread holds.
// SAFETY: the name belongs to the interface.
#[unsafe(no_mangle)]
pub extern "C" fn debug_check_no_locks_freed(from: *const c_void, len: c_ulong) {
    if is_on() {
        event::check_freed(from.addr(), len as usize);
    }
}

/// The hard level is about to be switched on: what is held is held where it can come.
// SAFETY: the name belongs to the interface.
#[unsafe(no_mangle)]
pub extern "C" fn lockdep_hardirqs_on_prepare() {
    if is_on() {
        context::set_levels(context::Levels {
            hard_off: false,
            ..levels::ask()
        });
        context::levels_enabled();
    }
}

/// The hard level was switched on.
// SAFETY: the name belongs to the interface.
#[unsafe(no_mangle)]
pub extern "C" fn lockdep_hardirqs_on(_ip: c_ulong) {
    levels::refresh();
}

/// The hard level was switched off.
// SAFETY: the name belongs to the interface.
#[unsafe(no_mangle)]
pub extern "C" fn lockdep_hardirqs_off(_ip: c_ulong) {
    levels::refresh();
}

/// The soft level is switched on: what is held is held where it can come.
// SAFETY: the name belongs to the interface.
#[unsafe(no_mangle)]
pub extern "C" fn lockdep_softirqs_on(_ip: c_ulong) {
    if is_on() {
        context::set_levels(context::Levels {
            soft_off: false,
            ..levels::ask()
        });
        context::levels_enabled();
    }
}

/// The soft level was switched off.
// SAFETY: the name belongs to the interface.
#[unsafe(no_mangle)]
pub extern "C" fn lockdep_softirqs_off(_ip: c_ulong) {
    levels::refresh();
}
