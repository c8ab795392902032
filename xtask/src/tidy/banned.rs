//! Names that may not be used, and where: paths, macros, attributes, lock classes.

use super::Report;
use super::lists::STD_LOCKS;
use super::source::{PathUse, Source, is_punct, line_of, macro_call, string_of};
use proc_macro2::{Delimiter, TokenTree};

/// The file that names every lock class of its crate.
const LOCK_ORDER: &str = "src/lock_order.rs";

/// The crates whose locks have one.
const ORDERED: [&str; 4] = [
    "crates/mm/",
    "crates/host/",
    "crates/sim/",
    "crates/devices/",
];

/// Where the classes of the locks in this file have their places.
pub(super) fn lock_order_of(path: &str) -> Option<String> {
    let home = ORDERED.iter().find(|home| path.starts_with(*home))?;
    Some(format!("{home}{LOCK_ORDER}"))
}

/// Tests that live beside what they test, because several crates run them.
const SUITE: &str = "crates/mm/src/suite/";

/// A path that may not be used in some files. `core` and `alloc` count as `std`.
struct BannedPath {
    path: &'static [&'static str],
    applies: fn(&str) -> bool,
    to_do: &'static str,
}

const USE_LOCKDEP: &str = "take locks from `lockdep::sync`";
const NOT_IN_MM: &str = "mm gets it from the machine through a trait";
const NOT_RANDOM_IN_MM: &str = "its order differs from run to run; take an ordered collection";

const BANNED_PATHS: &[BannedPath] = &[
    BannedPath {
        path: &["std", "sync", "Mutex"],
        applies: no_std_lock,
        to_do: USE_LOCKDEP,
    },
    BannedPath {
        path: &["std", "sync", "MutexGuard"],
        applies: no_std_lock,
        to_do: USE_LOCKDEP,
    },
    BannedPath {
        path: &["std", "sync", "RwLock"],
        applies: no_std_lock,
        to_do: USE_LOCKDEP,
    },
    BannedPath {
        path: &["std", "sync", "Condvar"],
        applies: no_std_lock,
        to_do: USE_LOCKDEP,
    },
    BannedPath {
        path: &["std", "sync", "Barrier"],
        applies: no_std_lock,
        to_do: USE_LOCKDEP,
    },
    BannedPath {
        path: &["std", "sync", "poison"],
        applies: no_std_lock,
        to_do: USE_LOCKDEP,
    },
    BannedPath {
        path: &["std", "thread"],
        applies: in_mm,
        to_do: NOT_IN_MM,
    },
    BannedPath {
        path: &["std", "time", "Instant"],
        applies: in_mm,
        to_do: NOT_IN_MM,
    },
    BannedPath {
        path: &["std", "time", "SystemTime"],
        applies: in_mm,
        to_do: NOT_IN_MM,
    },
    BannedPath {
        path: &["std", "fs"],
        applies: in_mm,
        to_do: NOT_IN_MM,
    },
    BannedPath {
        path: &["std", "net"],
        applies: in_mm,
        to_do: NOT_IN_MM,
    },
    BannedPath {
        path: &["std", "env"],
        applies: in_mm,
        to_do: NOT_IN_MM,
    },
    BannedPath {
        path: &["std", "process"],
        applies: in_mm,
        to_do: NOT_IN_MM,
    },
    BannedPath {
        path: &["std", "os"],
        applies: in_mm,
        to_do: NOT_IN_MM,
    },
    BannedPath {
        path: &["rand"],
        applies: in_mm,
        to_do: NOT_IN_MM,
    },
    BannedPath {
        path: &["std", "collections", "HashMap"],
        applies: in_mm,
        to_do: NOT_RANDOM_IN_MM,
    },
    BannedPath {
        path: &["std", "collections", "HashSet"],
        applies: in_mm,
        to_do: NOT_RANDOM_IN_MM,
    },
];

/// What a device may know of `mm`.
const DEVICES_MAY_USE: &[&[&str]] = &[
    &["pinless_mm", "mmu_notifier"],
    &["pinless_mm", "addr"],
    &["pinless_mm", "gfp"],
    &["pinless_mm", "event"],
    &["pinless_mm", "bus"],
    &["pinless_mm", "fault"],
    &["pinless_mm", "primary_mmu", "Access"],
];

const UNFINISHED: &[&str] = &["todo", "unimplemented", "dbg"];
const PRINTS: &[&str] = &["print", "println", "eprint", "eprintln"];
const ATTRIBUTES: &[&str] = &["ignore", "should_panic"];

/// Types whose constructor takes the name of a lock class.
const CLASSED: &[&str] = &[
    "Mutex",
    "RwLock",
    "Condvar",
    "Completion",
    "Fence",
    "ShortLock",
];

fn no_std_lock(path: &str) -> bool {
    !path.starts_with("crates/lockdep/src/sync") && !STD_LOCKS.iter().any(|row| row.0 == path)
}

fn in_mm(path: &str) -> bool {
    path.starts_with("crates/mm/src/")
}

/// Checks one file.
pub(super) fn check(source: &Source, report: &mut Report<'_>) {
    let test_modules = source.test_modules();
    for path in source.paths() {
        let in_tests = is_test_file(&source.path)
            || test_modules
                .iter()
                .any(|module| module.contains(&path.line));
        check_path(&source.path, &path, in_tests, report);
    }
    source.each_level(&mut |tokens| {
        for at in 0..tokens.len() {
            check_macro(source, tokens, at, report);
            check_attribute(tokens, at, report);
        }
    });
}

/// Asks about the calling thread alone, and is the same in every run of a seed.
const PANICKING: &[&str] = &["std", "thread", "panicking"];

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

fn check_path(file: &str, used: &PathUse, in_tests: bool, report: &mut Report<'_>) {
    let segments: Vec<&str> = used.segments.iter().map(String::as_str).collect();
    let as_std: Vec<&str> = match segments.split_first() {
        Some((&("core" | "alloc"), rest)) => [&["std"], rest].concat(),
        _ => segments.clone(),
    };
    for banned in BANNED_PATHS.iter().filter(|banned| (banned.applies)(file)) {
        // The unit tests of mm may start threads; the walls are for what ships.
        if (in_tests && banned.to_do == NOT_IN_MM) || as_std == PANICKING {
            continue;
        }
        if reaches(&as_std, banned.path, used.in_use) {
            let what = format!("`{}` may not be used here", banned.path.join("::"));
            report.add(used.line, what, banned.to_do);
            break;
        }
    }
    let may_use = |allowed: &&[&str]| segments.starts_with(allowed);
    let names_mm = segments.first() == Some(&"pinless_mm") && (segments.len() > 1 || used.in_use);
    if file.starts_with("crates/devices/src/") && names_mm && !DEVICES_MAY_USE.iter().any(may_use) {
        let what = format!("a device uses `{}`", segments.join("::"));
        report.add(
            used.line,
            what,
            "a device knows mm by its notifiers, pins and bus alone",
        );
    }
}

/// Whether `used` names `banned`, something in it, or imports a module by which it can be named.
fn reaches(used: &[&str], banned: &[&str], in_use: bool) -> bool {
    if used.starts_with(banned) {
        return in_use || used.len() > 1;
    }
    let module = used.strip_suffix(&["*"]).unwrap_or(used);
    // `use std::sync;` leaves `sync::Mutex` unseen; `use std::*` is nobody's habit.
    in_use && module.len() > 1 && banned.starts_with(module)
}

fn check_macro(source: &Source, tokens: &[TokenTree], at: usize, report: &mut Report<'_>) {
    let Some((name, _)) = macro_call(tokens, at) else {
        return;
    };
    let name = name.to_string();
    let line = line_of(&tokens[at]);
    if UNFINISHED.contains(&name.as_str()) {
        report.add(line, format!("`{name}!`"), "finish it, or take it out");
    }
    if PRINTS.contains(&name.as_str()) && !may_print(&source.path) {
        let to_do = "only cli, xtask, examples and tests talk; return it instead";
        report.add(line, format!("`{name}!`"), to_do);
    }
}

fn may_print(path: &str) -> bool {
    let talks = ["/tests/", "/examples/"];
    path.starts_with("crates/cli/")
        || path.starts_with("xtask/")
        || talks.iter().any(|folder| path.contains(folder))
}

fn check_attribute(tokens: &[TokenTree], at: usize, report: &mut Report<'_>) {
    let (true, Some(TokenTree::Group(group))) = (is_punct(tokens.get(at), '#'), tokens.get(at + 1))
    else {
        return;
    };
    if group.delimiter() != Delimiter::Bracket {
        return;
    }
    let inner = group.stream().to_string();
    let names = inner.split(|c: char| !c.is_alphanumeric() && c != '_');
    let is_doc = inner.starts_with("doc") || inner.starts_with("expect");
    for name in names.filter(|name| ATTRIBUTES.contains(name) && !is_doc) {
        let to_do = match name {
            "ignore" => "let the test run, or print `skipped: no ...` and return",
            _ => "catch the panic, or assert on a returned error",
        };
        report.add(line_of(&tokens[at]), format!("`#[{name}]`"), to_do);
    }
}

/// Checks that every lock class that a crate makes stands in its lock order.
pub(super) fn check_lock_classes(source: &Source, lock_order: &str, report: &mut Report<'_>) {
    let is_test = is_test_file(&source.path) || source.path.starts_with(SUITE);
    let Some(home) = lock_order_of(&source.path).filter(|home| *home != source.path) else {
        return;
    };
    if is_test {
        return;
    }
    let test_modules = source.test_modules();
    source.each_level(&mut |tokens| {
        for at in 0..tokens.len() {
            let Some(class) = class_at(&tokens[at..]) else {
                continue;
            };
            let line = line_of(&tokens[at]);
            let in_tests = test_modules.iter().any(|module| module.contains(&line));
            if !in_tests && !lock_order.contains(&format!("\"{class}\"")) {
                let what = format!("the lock class \"{class}\" has no place in the order");
                report.add(line, what, format!("add it to `{home}`"));
            }
        }
    });
}

/// The class in `Mutex::new("class", ...)`.
fn class_at(tokens: &[TokenTree]) -> Option<String> {
    let [
        TokenTree::Ident(of),
        _,
        _,
        TokenTree::Ident(_),
        TokenTree::Group(arguments),
        ..,
    ] = tokens
    else {
        return None;
    };
    if !CLASSED.iter().any(|name| of == name) || !is_punct(tokens.get(1), ':') {
        return None;
    }
    arguments
        .stream()
        .into_iter()
        .next()
        .as_ref()
        .and_then(string_of)
}
