//! What the types promise to the compiler and to the reader of a log.

use std::fmt::Debug;
use std::time::Duration;

use lockdep::Class;
use lockdep::scheduler::Installed;
use lockdep::sync::park::Parker;
use lockdep::sync::{
    Completion, Condvar, Fence, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
    ShortGuard, ShortLock, Waited,
};

/// Whether a type is `Send`, found out by which of two impls a method call reaches.
struct Probe<T: ?Sized>(std::marker::PhantomData<T>);

trait NotSend {
    fn is_send(&self) -> bool {
        false
    }
}

impl<T: ?Sized> NotSend for Probe<T> {}

impl<T: ?Sized + Send> Probe<T> {
    // An inherent method goes before a trait's, where its bounds hold.
    fn is_send(&self) -> bool {
        true
    }
}

macro_rules! is_send {
    ($type:ty) => {
        Probe::<$type>(std::marker::PhantomData).is_send()
    };
}

#[test]
fn guards_stay_in_their_thread() {
    assert!(is_send!(u32), "canary: the probe can say yes");
    assert!(!is_send!(*const u32), "canary: the probe can say no");
    assert!(!is_send!(MutexGuard<'static, u32>));
    assert!(!is_send!(RwLockReadGuard<'static, u32>));
    assert!(!is_send!(RwLockWriteGuard<'static, u32>));
    assert!(!is_send!(ShortGuard<'static, u32>));
    assert!(!is_send!(Installed));
    assert!(!is_send!(Mutex<*const u32>));
}

#[test]
fn objects_are_shared_between_threads() {
    fn check<T: Send + Sync + Debug>(_: &T) {}
    check(&Mutex::new("x", 0));
    check(&RwLock::new("x", 0));
    check(&ShortLock::new("x", 0));
    check(&Condvar::new("x"));
    check(&Completion::new("x"));
    check(&Fence::new("x"));
    check(&Parker::new("x"));
    check(&Class::new("x"));
    // A lock may guard what has no size of its own.
    let unsized_lock: &Mutex<[u32]> = &Mutex::new("x", [1, 2]);
    assert_eq!(unsized_lock.lock().len(), 2);
}

#[test]
fn debug_shows_the_class_and_the_state() {
    #[track_caller]
    fn check(value: &dyn Debug, expected: &str) {
        assert_eq!(format!("{value:?}"), expected);
    }
    let (mutex, rw, short) = (
        Mutex::new("m", 1),
        RwLock::new("r", 2),
        ShortLock::new("s", 3),
    );
    check(&mutex, r#"Mutex { class: "m", value: 1 }"#);
    check(&rw, r#"RwLock { class: "r", value: 2 }"#);
    check(&short, r#"ShortLock { class: "s", value: 3 }"#);
    let guards = (mutex.lock(), rw.write(), short.lock());
    check(&guards, "(1, 2, 3)");
    check(&mutex, r#"Mutex { class: "m", value: <locked> }"#);
    check(&rw, r#"RwLock { class: "r", value: <locked> }"#);
    check(&short, r#"ShortLock { class: "s", value: <locked> }"#);
    drop(guards);
    check(&rw.read(), "2");
    let (completion, fence) = (Completion::new("c"), Fence::new("f"));
    check(&completion, r#"Completion { class: "c", done: false }"#);
    fence.signal();
    check(&fence, r#"Fence { class: "f", signalled: true }"#);
    check(&Condvar::new("v"), r#"Condvar { class: "v", .. }"#);
    check(&Parker::new("p"), r#"Parker { class: "p", .. }"#);
    check(&fence.wait_timeout(Duration::ZERO), "Done");
    check(&Waited::TimedOut, "TimedOut");
}

#[test]
fn a_class_is_a_name_and_the_place_of_the_constructor() {
    #[track_caller]
    fn check(class: &Class, name: &str) {
        assert_eq!(class.name(), name);
        assert_eq!(class.location().file(), file!());
        assert_eq!(
            class.location().line(),
            std::panic::Location::caller().line()
        );
    }
    check(Mutex::new("m", ()).class(), "m");
    check(RwLock::new("r", ()).class(), "r");
    check(ShortLock::new("s", ()).class(), "s");
    check(Condvar::new("v").class(), "v");
    check(Completion::new("c").class(), "c");
    check(Fence::new("f").class(), "f");
    check(Parker::new("p").class(), "p");
    let of_one_place = || Mutex::new("m", ());
    assert_eq!(of_one_place().class(), of_one_place().class());
    assert_ne!(Class::new("m"), Class::new("m"), "two places, two classes");
}
