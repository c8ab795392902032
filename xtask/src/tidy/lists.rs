//! Every exception to a tidy rule, with its reason. These lists only shrink.

/// Folders and files where `unsafe` may stand.
pub(super) const UNSAFE_ROOMS: &[&str] = &[
    "crates/host/",
    "crates/lockdep/src/lock_api.rs",
    "crates/lockdep-capi/",
];

/// Files outside the rooms that may implement `GlobalAlloc`, and nothing else that is unsafe.
pub(super) const COUNTING_ALLOCATORS: &[(&str, &str)] = &[
    (
        "crates/lockdep/tests/no_alloc.rs",
        "counts what locking allocates: nothing",
    ),
    (
        "crates/lockdep/tests/allocator.rs",
        "takes locks in an allocator, to see that the validator does not mind",
    ),
    (
        "crates/cli/tests/kills.rs",
        "counts what is lent after many kills: no more than before",
    ),
    (
        "crates/mm/tests/counting/mod.rs",
        "counts what the compressed store and a bracket allocate: nothing",
    ),
];

/// Crate roots that must forbid `unsafe`.
pub(super) const FORBIDS_UNSAFE: &[&str] = &[
    "crates/mm/src/lib.rs",
    "crates/sim/src/lib.rs",
    "crates/devices/src/lib.rs",
    "crates/pinless/src/lib.rs",
    "crates/cli/src/main.rs",
    "xtask/src/main.rs",
];

/// Crate roots with one unsafe room inside: they deny it, the room allows it.
pub(super) const DENIES_UNSAFE: &[&str] = &["crates/lockdep/src/lib.rs"];

/// The most lines a function may have.
pub(super) const FUNCTION_LINES_MAX: usize = 70;

/// Longer functions: path, name, lines, reason.
pub(super) const LONG_FUNCTIONS: &[(&str, &str, usize, &str)] = &[];

/// The most lines a file may have.
pub(super) const FILE_LINES_MAX: usize = 800;

/// Longer files: path, lines, reason.
pub(super) const LONG_FILES: &[(&str, usize, &str)] = &[];

/// The most columns a line may have.
pub(super) const COLUMNS_MAX: usize = 100;

/// Rust files that may hold characters outside ASCII: path, reason.
pub(super) const NON_ASCII: &[(&str, &str)] = &[];

/// The most bytes a file of any kind may have.
pub(super) const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Files outside `lockdep::sync` that may name the standard library's locks: path, reason.
pub(super) const STD_LOCKS: &[(&str, &str)] = &[
    (
        "xtask/src/bench/lock.rs",
        "the peer that our locks are measured against",
    ),
    (
        "xtask/src/bench/lockdep.rs",
        "the peers that watched locks are measured against",
    ),
    (
        "crates/lockdep/tests/bare.rs",
        "compares our locks with the ones inside",
    ),
    (
        "crates/sim/src/conformance/books.rs",
        "what a judge notes is no step of the run that it judges",
    ),
    (
        "crates/sim/src/conformance/stage.rs",
        "what a judge notes is no step of the run that it judges",
    ),
    (
        "crates/sim/src/scheduler/baton.rs",
        "decides for the locks of lockdep::sync, so it cannot pass through them",
    ),
];
