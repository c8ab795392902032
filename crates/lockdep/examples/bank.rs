//! Two threads that take two locks in two orders. They never lock up here, and are found out.
//!
//! `cargo run -p lockdep --example bank` prints the report that stands in the README.

use std::sync::mpsc;
use std::thread;

use lockdep::sync::Mutex;

static ACCOUNTS: Mutex<u64> = Mutex::new("accounts", 100);
static AUDIT: Mutex<Vec<u64>> = Mutex::new("audit", Vec::new());

fn pay(amount: u64) {
    let mut accounts = ACCOUNTS.lock();
    *accounts -= amount;
    AUDIT.lock().push(amount);
}

fn is_balanced() -> bool {
    let audit = AUDIT.lock();
    let accounts = ACCOUNTS.lock();
    *accounts + audit.iter().sum::<u64>() == 100
}

/// Runs a teller, and an auditor beside it; each does `first` before.
pub(crate) fn run<T>(first: impl Fn() -> T + Sync) {
    let (done, is_done) = mpsc::channel::<()>();
    let (close, is_closed) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let first = &first;
        let named = |name: &str| thread::Builder::new().name(name.to_owned());
        let teller = named("teller").spawn_scoped(scope, move || {
            let _first = first();
            pay(10);
            drop(done);
            // An error says that the auditor is done.
            let _ = is_closed.recv();
        });
        teller.expect("there is a thread");
        // An error says that the teller is done.
        let _ = is_done.recv();
        let auditor = named("auditor").spawn_scoped(scope, move || {
            let _first = first();
            assert!(is_balanced());
            drop(close);
        });
        auditor.expect("there is a thread");
    });
}

#[cfg_attr(test, expect(dead_code, reason = "the test calls `run`"))]
fn main() {
    run(|| ());
}
