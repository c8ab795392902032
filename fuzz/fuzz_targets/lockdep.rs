//! Random lock programs: the validator beside a search of all interleavings, and of all cycles.
//!
//! `PINLESS_FUZZ_INJECT` in the environment puts a fault into the validator, which must be found.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use lockdep::testing::Inject;
use lockdep::testing::model::Model;

static FAULT: LazyLock<Inject> = LazyLock::new(|| match std::env::var("PINLESS_FUZZ_INJECT") {
    Ok(_) => Inject::MissReaders,
    Err(_) => Inject::Nothing,
});

fuzz_target!(|bytes: &[u8]| {
    if let Err(wrong) = Model::from_bytes(bytes).judge(*FAULT) {
        panic!("{wrong}");
    }
});
