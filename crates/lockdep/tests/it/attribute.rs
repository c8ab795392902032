//! The attribute by which a test fails on what is reported in it.

use std::panic;

use lockdep::sync::Mutex;

fn take(first: &Mutex<u32>, then: &Mutex<u32>) -> u32 {
    let held = first.lock();
    *held + *then.lock()
}

/// The test fails with a report of a circle.
#[track_caller]
fn check_fails(test: fn()) {
    let failure = panic::catch_unwind(test).expect_err("there is a fault in it");
    let text = failure.downcast_ref::<String>().expect("it has a message");
    assert!(text.contains("locks are taken in a circle"), "{text}");
}

#[lockdep::test]
fn a_test_without_a_fault_passes() {
    let (a, b) = (Mutex::new("a", 1), Mutex::new("b", 2));
    assert_eq!(take(&a, &b) + take(&a, &b), 6);
}

#[test]
#[expect(unnameable_test_items, reason = "they fail, and are called by hand")]
fn a_test_with_a_fault_fails() {
    #[lockdep::test]
    fn of_its_own() {
        let (a, b) = (Mutex::new("a", 1), Mutex::new("b", 2));
        assert_eq!(take(&a, &b) + take(&b, &a), 6);
    }
    #[lockdep::test]
    fn of_a_thread() {
        static LOCKS: [Mutex<u32>; 2] = [Mutex::new("a", 1), Mutex::new("b", 2)];
        take(&LOCKS[0], &LOCKS[1]);
        let other = lockdep::thread::spawn("other", || take(&LOCKS[1], &LOCKS[0]));
        assert_eq!(other.join().expect("it does not panic"), 3);
    }
    check_fails(of_its_own);
    check_fails(of_a_thread);
}

#[lockdep::test]
fn a_test_may_end_early_and_with_a_result() -> Result<(), std::num::ParseIntError> {
    let lock = Mutex::new("a", "7".parse::<u32>()?);
    if *lock.lock() == 7 {
        return Ok(());
    }
    Err("".parse::<u32>().expect_err("nothing is no number"))
}
