//! Each numbered invariant of the notifiers and of the OOM killer has a test that names it, or a
//! row in `docs/differences.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The invariants that speak of notifiers or of running out of memory, by their numbers in the
/// specification of the kernel's mechanism, each in a few words.
const INVARIANTS: &[(u32, &str)] = &[
    (1, "the first sequence is idle"),
    (2, "registration and open brackets"),
    (3, "the newest subscriber is called first"),
    (4, "one shared subscription of a kind"),
    (5, "the count of shares cannot overflow"),
    (6, "a failed registration leaves nothing"),
    (7, "the last share frees once, after all callbacks"),
    (8, "a subscription may end itself in its release"),
    (9, "no callback after the end of a subscription"),
    (10, "release when two want to call it"),
    (11, "release is over before a page is freed"),
    (12, "intervals hear of the teardown"),
    (13, "a subscription keeps no memory alive"),
    (14, "no subscription is of page tables and of brackets"),
    (15, "waiting for all that was ended"),
    (16, "start before the first change, end after the last"),
    (17, "no translation inside an open bracket"),
    (18, "one end for each start that succeeded"),
    (19, "intervals before the list"),
    (20, "an interval refuses: the list is not called"),
    (21, "a member of the list refuses: who is called after it"),
    (22, "a member of the list refuses: who gets an end"),
    (23, "a refusal changes nothing"),
    (24, "one refusal, in one mode"),
    (25, "a start that fails and has an end"),
    (26, "an interval cannot refuse where it may block"),
    (27, "a refusal leaves no bracket open"),
    (28, "brackets nest, overlap and end in any order"),
    (29, "no lock is held from start to end"),
    (30, "the end of a subscription during a bracket"),
    (31, "what appears is told to nobody"),
    (32, "brackets may be wider than the change"),
    (33, "brackets may change nothing"),
    (34, "an unrelated range is not refused"),
    (35, "the owner is left out of its own changes only"),
    (36, "young: all are asked, or until one is enough"),
    (37, "the bracket says whether callbacks may block"),
    (38, "a moved mapping"),
    (39, "a fork"),
    (40, "no lookup is taken for a later one"),
    (41, "the sequence is busy while a bracket overlaps"),
    (42, "brackets that are open see no change of the tree"),
    (43, "brackets that overlap in time"),
    (44, "idle only when nothing overlaps"),
    (45, "what was deferred is applied with the last end"),
    (46, "the first sequence of an insert"),
    (47, "an interval of nothing"),
    (48, "an interval of a dead space"),
    (49, "a deferred insert that is removed"),
    (50, "a removal waits for callbacks"),
    (51, "who looks up waits for its own range only"),
    (52, "a lookup may be stale when it begins"),
    (53, "the hint without the lock is right when it says stale"),
    (54, "no stale translation under any schedule"),
    (55, "intervals are usable after a refusal"),
    (56, "waiting inside a callback is reported"),
    (57, "neighbours do not overlap"),
    (58, "the sequence wraps"),
    (59, "the score, and who has none"),
    (60, "of equals the later"),
    (61, "a victim that is not done with keeps others alive"),
    (62, "a victim that is done with is not counted"),
    (63, "who asked for the memory may be the one to go"),
    (64, "counted before the signal"),
    (65, "all who share the memory go"),
    (66, "who shares it with init is not reaped"),
    (67, "reaped once"),
    (68, "two seconds of grace"),
    (69, "a lock of the victim is only tried"),
    (70, "what is refused does not stop the rest"),
    (71, "so many passes, and no more"),
    (72, "no fault is served before the first page goes"),
    (73, "which mappings are reaped"),
    (74, "the reaper never sleeps on a driver"),
    (75, "no second victim before its time"),
    (76, "nobody panics for want of memory"),
    (77, "who may not call a file system kills nobody"),
    (78, "nobody is waited for who cannot go on"),
    (79, "the answers of process_mrelease"),
    (80, "a group goes together"),
    (81, "who dumps its core is not about to end"),
    (82, "a victim gets no more memory"),
    (83, "of pinned pages nobody is told"),
    (87, "what a device has used stays for another round"),
    (88, "who may run callbacks to get memory"),
    (100, "to say that memory is needed leaves no callback open"),
    (101, "every callback runs in its bracket's mode"),
    (102, "a misuse is one report, with a name"),
    (103, "nothing is reported of what is right"),
    (104, "start is over before the page moves"),
    (105, "a callback does not use managed memory"),
    (109, "a bracket inside of one that may not block"),
    (110, "ends have the mode of their bracket"),
    (113, "success in the last pass is success"),
    (114, "a shortage counts, whether or not somebody goes"),
    (115, "ending a subscription in a callback does not hang"),
    (116, "a waiting lookup can be given up"),
    (117, "a bracket over nobody costs nothing"),
    (118, "devices are waited for together"),
    (119, "translations go before the subscription"),
    (120, "each bug that is put back is found"),
];

/// Where tests are that may name an invariant.
const TESTS: &[&str] = &[
    "crates/mm/src/gfp",
    "crates/mm/src/mmu_notifier",
    "crates/mm/src/suite",
    "crates/mm/tests",
    "crates/host/tests",
    "crates/devices/tests",
    "crates/cli/tests",
];

/// A row of the table.
struct Row {
    numbers: Vec<u32>,
    shown_by: Vec<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).expect("a folder of the repository");
    for entry in entries {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|end| end == "rs") {
            into.push(path);
        }
    }
}

/// The names of the tests in a source: functions with the attribute, and rows of a table of cases.
fn tests_in(source: &str) -> impl Iterator<Item = &str> {
    let mut is_test = false;
    source.lines().map(str::trim).filter_map(move |line| {
        if line.starts_with("#[") {
            is_test |= line == "#[test]";
            return None;
        }
        let function = line.split_once("fn ").filter(|_| is_test);
        is_test &= line.starts_with("//");
        let case = || line.strip_suffix(',')?.split_once("::");
        let name = function.or_else(case)?.1;
        let end = name.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        Some(&name[..end.unwrap_or(name.len())])
    })
}

/// The numbers in the name of a test: `n28_n41_...` is of 28 and 41.
fn numbers(test: &str) -> impl Iterator<Item = u32> {
    test.split('_')
        .map_while(|part| part.strip_prefix('n')?.parse().ok())
}

fn rows(table: &str) -> Vec<Row> {
    let cells = |line: &str| -> Option<Row> {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [number, _, _, shown_by] = cells[..] else {
            return None;
        };
        let quoted = shown_by.split('`').skip(1).step_by(2);
        Some(Row {
            numbers: vec![number.parse().ok()?],
            shown_by: quoted.map(str::to_owned).collect(),
        })
    };
    table.lines().filter_map(cells).collect()
}

/// The names in the last cells of rows with three: those of the tests of peers. A row that says
/// `none` has no name, and one that says nothing has an empty one.
fn peers(table: &str) -> Vec<String> {
    let names = |line: &str| -> Option<Vec<String>> {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [peer, _, ours] = cells[..] else {
            return None;
        };
        let is_head = peer == "peer" || peer.starts_with("---");
        if is_head || ours.starts_with("none: ") {
            return Some(Vec::new());
        }
        let quoted: Vec<String> = ours
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect();
        Some(if quoted.is_empty() {
            vec![String::new()]
        } else {
            quoted
        })
    };
    table.lines().filter_map(names).flatten().collect()
}

/// The tests of peers that the table promises and nobody wrote.
fn unwritten(tests: &BTreeSet<String>, table: &str) -> Vec<String> {
    let mut named = peers(table);
    named.retain(|name| name.is_empty() || !tests.contains(name));
    named
}

/// What is wrong: invariants that nothing shows, and rows that nothing shows.
fn findings(tests: &BTreeSet<String>, table: &str, holds_it: impl Fn(&str) -> bool) -> Vec<String> {
    let mut shown: BTreeMap<u32, u32> = BTreeMap::new();
    for number in tests.iter().flat_map(|test| numbers(test)) {
        *shown.entry(number).or_default() += 1;
    }
    let mut findings = Vec::new();
    for row in rows(table) {
        let is_shown = |by: &String| by == "compile_fail" || tests.contains(by) || holds_it(by);
        let missing = row.shown_by.iter().find(|by| !is_shown(by));
        if row.shown_by.is_empty() || missing.is_some() {
            findings.push(format!("the row of {:?} names {missing:?}", row.numbers));
        }
        for number in row.numbers {
            *shown.entry(number).or_default() += 1;
        }
    }
    for (number, what) in INVARIANTS {
        if !shown.contains_key(number) {
            findings.push(format!("{number} ({what}) is in no test and no row"));
        }
    }
    findings
}

/// The names of all tests.
fn tests() -> BTreeSet<String> {
    let mut files = Vec::new();
    for folder in TESTS {
        rust_files(&root().join(folder), &mut files);
    }
    let sources: Vec<String> = files.iter().map(|path| read(path)).collect();
    let names = sources.iter().flat_map(|source| tests_in(source));
    names.map(str::to_owned).collect()
}

#[test]
fn every_test_of_a_peer_has_one_of_ours() {
    let table = read(&root().join("docs/differences.md"));
    assert!(peers(&table).len() > 20, "the table is not there");
    assert_eq!(unwritten(&tests(), &table), Vec::<String>::new());
    // The check can fail: for a name that nobody has, and for a row without any.
    let bad = "| hmm: a | that | `gone` |\n| hmm: b | that | |\n| hmm: c | that | none: so |";
    assert_eq!(unwritten(&tests(), bad), ["gone", ""]);
}

#[test]
fn every_invariant_is_shown() {
    let tests = tests();
    let table = read(&root().join("docs/differences.md"));
    // A file that a row names has a program that must not compile.
    let holds_it = |by: &str| by.contains('/') && read(&root().join(by)).contains("compile_fail");
    let findings = findings(&tests, &table, holds_it);
    assert_eq!(findings, Vec::<String>::new());
}

/// The check can fail: for an invariant without a test, and for a row that names none.
#[test]
fn what_is_not_shown_is_found() {
    let all: BTreeSet<String> = INVARIANTS
        .iter()
        .map(|(number, _)| format!("n{number:02}_something"))
        .collect();
    let nowhere = |_: &str| false;
    assert_eq!(findings(&all, "", nowhere), Vec::<String>::new());
    let mut fewer = all.clone();
    fewer.remove("n54_something");
    assert_eq!(findings(&fewer, "", nowhere).len(), 1);
    let row = "| 54 | that | this | `n53_something` |";
    assert_eq!(findings(&fewer, row, nowhere), Vec::<String>::new());
    let bad = "| 54 | that | this | `gone` |\n| 55 | that | this | |";
    assert_eq!(findings(&all, bad, nowhere).len(), 2);
    let source = "
        #[test]
        #[cfg(unix)]
        fn n28_n41_a() {
            let other = n1();
        }
        fn n2_not_called() {}
        #[cfg(unix)]
        fn n3_nor_this() {}
        cases! {
            of::n5_another,
        }";
    assert!(tests_in(source).eq(["n28_n41_a", "n5_another"]));
    assert!(numbers("n28_n41_not_n42").eq([28, 41]));
    assert!(INVARIANTS.windows(2).all(|two| two[0].0 < two[1].0));
}
