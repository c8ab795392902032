//! The workspace is tidy, and each rule catches its canary.

use super::edges::{Dependency, Package, check_edges, check_outside};
use super::*;

#[test]
fn the_workspace_is_tidy() {
    let findings = check_workspace();
    let told: Vec<String> = findings.iter().map(Finding::to_string).collect();
    assert!(
        findings.is_empty(),
        "{} findings:\n{}",
        told.len(),
        told.join("\n")
    );
}

/// Checks that `text`, as a file at `path`, breaches exactly the rules that `expected` names by a
/// part of their message, one a finding.
#[track_caller]
fn check(path: &str, text: &str, expected: &[&str]) {
    let mut findings = Vec::new();
    check_source(path, &format!("//! Sample.\n{text}\n"), None, &mut findings);
    expect(&findings, expected, text);
}

#[track_caller]
fn expect(findings: &[Finding], expected: &[&str], sample: &str) {
    let told: Vec<String> = findings.iter().map(Finding::to_string).collect();
    let matches = told.len() == expected.len()
        && told
            .iter()
            .zip(expected)
            .all(|(finding, part)| finding.contains(part));
    assert!(
        matches,
        "sample:\n{sample}\nexpected: {expected:?}\nfound: {told:#?}"
    );
}

const MM: &str = "crates/mm/src/sample.rs";
const HOST: &str = "crates/host/src/sample.rs";
const DEVICE: &str = "crates/devices/src/sample.rs";
const CLI: &str = "crates/cli/src/sample.rs";
const MM_TEST: &str = "crates/mm/tests/it/sample.rs";

#[test]
fn header_comes_first() {
    for (text, expected) in [
        ("//! Header.\nfn a() {}\n", &[][..]),
        ("fn a() {}\n", &[":1: no module header"]),
        ("\n//! Header.\n", &[":1: no module header"]),
        ("// Header.\n", &[":1: no module header"]),
        ("", &[":1: no module header"]),
    ] {
        let mut findings = Vec::new();
        check_source(MM, text, None, &mut findings);
        expect(&findings, expected, text);
    }
}

#[test]
fn text_is_plain() {
    for (text, expected) in [
        ("fn a() {} // fine".to_owned(), &[][..]),
        (format!("// {}", "x".repeat(97)), &[]),
        (format!("// {}", "x".repeat(98)), &["101 columns"]),
        ("// caf\u{e9}".to_owned(), &["is not ASCII"]),
        (["// TO", "DO later"].concat(), &["the mark"]),
        (["const A: &str = \"FIX", "ME\";"].concat(), &["the mark"]),
        (["// TO", "DOS"].concat(), &[]),
        ("fn (".to_owned(), &["is not Rust"]),
    ] {
        check(MM, &text, expected);
    }
}

#[test]
fn files_are_small() {
    let mut findings = Vec::new();
    text::check_bytes("docs/picture.png", 256 * 1024, &mut findings);
    expect(&findings, &[], "256 KiB");
    text::check_bytes("docs/picture.png", 256 * 1024 + 1, &mut findings);
    expect(&findings, &["docs/picture.png:1: 262145 bytes"], "one more");
    check(MM, &"// line\n".repeat(798), &[]);
    check(MM, &"// line\n".repeat(799), &["the file has 801 lines"]);
}

#[test]
fn functions_are_short() {
    let function =
        |head: &str, lines: usize| format!("{head} {{\n{}}}", "    ();\n".repeat(lines - 2));
    for (text, expected) in [
        (function("fn a()", 70), &[][..]),
        (function("fn a()", 71), &["the function `a` has 71 lines"]),
        (
            format!("impl A {{ {} }}", function("fn b()", 71)),
            &["the function `b` has 71"],
        ),
        (
            format!("m! {{ {} }}", function("fn c()", 71)),
            &["the function `c` has 71"],
        ),
        (
            function("fn d<T>() -> [u8; 2]\nwhere T: Fn()", 70),
            &["the function `d` has 71"],
        ),
        (
            format!("trait T {{ fn e(); }} {}", function("mod m", 90)),
            &[],
        ),
        (format!("type F = fn(u8); {}", function("mod m", 90)), &[]),
    ] {
        check(MM, &text, expected);
    }
}

#[test]
fn unsafe_keeps_to_its_rooms() {
    let block = "fn a() {\n    // SAFETY: nothing is done.\n    unsafe {}\n}";
    let room = "unsafe outside its rooms";
    for (path, expected) in [
        (HOST, &[][..]),
        ("crates/host/tests/it/sample.rs", &[]),
        ("crates/lockdep/src/lock_api.rs", &[]),
        ("crates/lockdep-capi/src/lib.rs", &[]),
        (MM, &[room]),
        (MM_TEST, &[room]),
        ("crates/lockdep/src/sync/mutex.rs", &[room]),
        ("crates/hosted/src/lib.rs", &[room]),
        ("xtask/src/sample.rs", &[room]),
    ] {
        check(path, block, expected);
    }
    check(MM, "m! { unsafe {} }", &[room, "unsafe without its reason"]);
    check(MM, "// unsafe\nconst A: &str = \"unsafe\";", &[]);
}

#[test]
fn unsafe_gives_its_reason() {
    let wanted = &["unsafe without its reason"][..];
    for (text, expected) in [
        ("fn a() {\n    unsafe { b() }\n}", wanted),
        ("fn a() {\n    // SAFETY: so.\n    unsafe { b() }\n}", &[]),
        (
            "fn a() {\n    // SAFETY: so,\n    // and so.\n    let c =\n        unsafe { b() };\n}",
            &[],
        ),
        (
            "fn a() {\n    // SAFETY: so.\n    b();\n    unsafe { b() }\n}",
            wanted,
        ),
        (
            "fn a() {\n    // SAFETY: so.\n\n    unsafe { b() }\n}",
            wanted,
        ),
        ("fn a() {\n    // Sure.\n    unsafe { b() }\n}", wanted),
        (
            "fn a() {\n    let t = \"// SAFETY: so.\";\n    unsafe { b() }\n}",
            wanted,
        ),
        (
            "fn a() {\n    // SAFETY: so.\n    c(unsafe { b() },\n        unsafe { b() })\n}",
            wanted,
        ),
        ("unsafe impl Send for A {}", wanted),
        ("// SAFETY: so.\nunsafe impl Send for A {}", &[]),
        ("unsafe fn a() {}", wanted),
        (
            "/// Does.\n///\n/// # Safety\n///\n/// Call it so.\n#[inline]\nunsafe fn a() {}",
            &[],
        ),
        ("pub unsafe trait A {}", wanted),
        ("unsafe extern \"C\" fn a() {}", wanted),
        ("unsafe extern \"C\" {\n    fn a();\n}", wanted),
        ("#[unsafe(no_mangle)]\nfn a() {}", wanted),
        (
            "// SAFETY: the name is ours.\n#[unsafe(no_mangle)]\nfn a() {}",
            &[],
        ),
        (
            "type A = unsafe fn(u8);\ntype B = unsafe extern \"C\" fn(u8);",
            &[],
        ),
        (
            "// SAFETY: so.\nunsafe impl A for B {\n    unsafe fn a() {}\n}",
            &[],
        ),
        (
            "impl<T> A for B<T>\nwhere\n    T: C,\n{\n    unsafe fn a() {}\n}",
            &[],
        ),
        ("impl B {\n    unsafe fn a() {}\n}", wanted),
        (
            "impl A for B {\n    fn a() {\n        unsafe fn c() {}\n    }\n}",
            wanted,
        ),
        ("#![deny(unsafe_op_in_unsafe_fn)]", &[]),
    ] {
        check(HOST, text, expected);
    }
}

#[test]
fn roots_rule_unsafe_out() {
    for (path, text, expected) in [
        ("crates/mm/src/lib.rs", "#![forbid(unsafe_code)]", &[][..]),
        (
            "crates/mm/src/lib.rs",
            "",
            &["unsafe code is not ruled out"],
        ),
        (
            "crates/mm/src/lib.rs",
            "// #![forbid(unsafe_code)]",
            &["unsafe code is not ruled out"],
        ),
        (
            "crates/mm/src/lib.rs",
            "#![deny(unsafe_code)]",
            &["unsafe code is not ruled out"],
        ),
        ("crates/lockdep/src/lib.rs", "#![deny(unsafe_code)]", &[]),
        (
            "crates/lockdep/src/lib.rs",
            "",
            &["unsafe code is not ruled out"],
        ),
        ("crates/host/src/lib.rs", "", &[]),
    ] {
        check(path, text, expected);
    }
}

#[test]
fn orderings_are_explained() {
    let wanted = &["without a comment"][..];
    for (text, expected) in [
        ("fn a() {\n    x.load(Ordering::Relaxed);\n}", &[][..]),
        ("fn a() {\n    x.load(Ordering::Acquire);\n}", wanted),
        ("fn a() {\n    x.load(atomic::Ordering::SeqCst);\n}", wanted),
        (
            "fn a() {\n    x.load(Ordering::Acquire); // Pairs with b.\n}",
            &[],
        ),
        (
            "fn a() {\n    // Pairs with b.\n    x.load(Ordering::Acquire);\n}",
            &[],
        ),
        (
            "fn a() {\n    // Pairs.\n    c();\n    x.load(Ordering::Acquire);\n}",
            &[],
        ),
        (
            "// Far.\n\n\n\n\nfn a() { x.load(Ordering::Acquire) }",
            wanted,
        ),
        ("/// Gets it.\nfn a() { x.load(Ordering::Acquire) }", wanted),
        (
            "/// Gets it; pairs with the store in b.\nfn a() { x.load(Ordering::Acquire) }",
            &[],
        ),
        (
            "fn a() {\n    let t = \"// Pairs\"; x.load(Ordering::Acquire);\n}",
            wanted,
        ),
        (
            "use s::Ordering::{Acquire, Relaxed};\n\n\nfn a() { x.load(Acquire) }",
            wanted,
        ),
        ("use s::Ordering::*;\nfn a() { x.swap(1, AcqRel) }", wanted),
        ("use crate::Event::Acquire;\nfn a() { b(Acquire) }", &[]),
        ("fn a() { b(Event::Release) }", &[]),
        ("use s::Ordering as O;", &["an ordering under another name"]),
        (
            "use s::{Ordering as AtomicOrdering};\nfn a() { b(AtomicOrdering::SeqCst) }",
            wanted,
        ),
        ("m! { x.store(1, Ordering::Release) }", wanted),
    ] {
        check(MM, text, expected);
    }
}

#[test]
fn paths_keep_out() {
    let found = &["may not be used here"][..];
    for (path, text, expected) in [
        (MM, "use std::sync::Mutex;", found),
        (CLI, "use std::{fs, sync::{Arc, RwLock as L}};", found),
        (CLI, "fn a() { ::std::sync::Condvar::new(); }", found),
        (CLI, "use std::sync::*;", found),
        (CLI, "use std::sync;", found),
        (CLI, "use std::sync::{self, Arc};", found),
        (CLI, "use std::sync::{Arc, OnceLock, atomic};", &[]),
        (MM_TEST, "use std::sync::Mutex;", found),
        (
            "crates/lockdep/src/sync/mutex.rs",
            "use std::sync::Mutex;",
            &[],
        ),
        (
            "crates/lockdep/src/graph.rs",
            "use std::sync::Mutex;",
            found,
        ),
        (MM, "use lockdep::sync::Mutex;", &[]),
        (MM, "fn a() { std::thread::yield_now() }", found),
        (MM, "use std::time::{Duration, Instant};", found),
        (MM, "use core::time::Duration;", &[]),
        (MM, "use std::fs::File;", found),
        (MM, "fn a() { rand::random() }", found),
        (MM, "fn a(rand: u64) { b(rand) }", &[]),
        (MM, "use std::collections::{BTreeMap, HashMap};", found),
        (MM_TEST, "use std::thread;", &[]),
        (MM, "fn a() { std::thread::panicking() }", &[]),
        ("crates/mm/src/page/tests.rs", "use std::thread;", &[]),
        (
            MM,
            "#[cfg(test)]\nmod tests {\n    use std::thread;\n}",
            &[],
        ),
        (
            MM,
            "#[cfg(test)]\nmod tests;\nmod a {\n    use std::thread;\n}",
            found,
        ),
        (
            MM,
            "#[cfg(test)]\nmod tests {\n    use std::sync::Mutex;\n}",
            found,
        ),
        (HOST, "use std::{fs, thread, time::Instant};", &[]),
    ] {
        check(path, text, expected);
    }
}

#[test]
fn devices_know_little() {
    let found = &["a device uses"][..];
    for (text, expected) in [
        ("use pinless_mm::mmu_notifier::{Notifier, Range};", &[][..]),
        (
            "use pinless_mm::{addr::Vaddr, bus::Bus, fault::FaultError, gfp, event};",
            &[],
        ),
        ("use pinless_mm::primary_mmu::Access;", &[]),
        ("use pinless_mm::primary_mmu::PrimaryMmu;", found),
        ("use pinless_mm::{addr::Vaddr, reclaim};", found),
        ("use pinless_mm::*;", found),
        ("use pinless_mm as mm;", found),
        ("fn a() { pinless_mm::page::b() }", found),
    ] {
        check(DEVICE, text, expected);
        check("crates/devices/tests/it/sample.rs", text, &[]);
    }
}

#[test]
fn macros_and_attributes_keep_out() {
    for (path, text, expected) in [
        (MM, "fn a() { todo!() }", &["`todo!`"][..]),
        (
            CLI,
            "fn a() { unimplemented!(\"b\") }",
            &["`unimplemented!`"],
        ),
        (CLI, "fn a() { dbg!(b); }", &["`dbg!`"]),
        (MM, "fn a(todo: u8) { todo != 1; }", &[]),
        (MM, "fn a() { println!(\"b\") }", &["`println!`"]),
        (MM_TEST, "fn a() { eprintln!(\"b\") }", &[]),
        (MM_TEST, "fn a() { println!(\"skipped: no zram\") }", &[]),
        (
            MM,
            "fn a() { println!(\"skipped: no zram\") }",
            &["`println!`"],
        ),
        (CLI, "fn a() { println!(\"b\") }", &[]),
        (MM, "#[test]\n#[ignore]\nfn a() {}", &["`#[ignore]`"]),
        (MM, "#[ignore = \"slow\"]\nfn a() {}", &["`#[ignore]`"]),
        (
            MM,
            "#[should_panic(expected = \"b\")]\nfn a() {}",
            &["`#[should_panic]`"],
        ),
        (MM, "#[cfg_attr(miri, ignore)]\nfn a() {}", &["`#[ignore]`"]),
        (MM, "/// Does not ignore.\nfn a() {}", &[]),
    ] {
        check(path, text, expected);
    }
}

#[test]
fn lock_classes_have_a_place() {
    for (text, expected) in [
        ("fn a() { Mutex::new(\"mm.known\", 1) }", &[][..]),
        (
            "fn a() { sync::RwLock::new(\"mm.new\", 1) }",
            &["the lock class \"mm.new\""],
        ),
        ("fn a() { Cell::new(\"mm.new\") }", &[]),
        (
            "#[cfg(test)]\nmod tests {\n    fn a() { Mutex::new(\"test\", 1) }\n}",
            &[],
        ),
        ("fn a(class: &'static str) { Mutex::new(class, 1) }", &[]),
    ] {
        let text = format!("//! Sample.\n{text}\n");
        let mut findings = Vec::new();
        check_source(MM, &text, Some("[\"mm.known\"]"), &mut findings);
        expect(&findings, expected, &text);
    }
}

/// A dependency: name, kind.
type Line = (&'static str, Option<&'static str>);

/// A workspace of one crate for each row: name, and its dependencies.
fn packages(rows: &[(&str, &[Line])]) -> Vec<Package> {
    let dependency = |&(name, kind): &Line| Dependency {
        name: name.to_owned(),
        kind: kind.map(str::to_owned),
    };
    rows.iter()
        .map(|(name, dependencies)| Package {
            name: (*name).to_owned(),
            dependencies: dependencies.iter().map(dependency).collect(),
        })
        .collect()
}

#[test]
fn edges_point_down() {
    let dev = Some("dev");
    for (name, dependency, kind, expected) in [
        ("pinless-mm", "lockdep", None, &[][..]),
        (
            "lockdep",
            "pinless-mm",
            None,
            &["the normal edge to `pinless-mm`"],
        ),
        (
            "pinless-mm",
            "pinless-sim",
            None,
            &["the normal edge to `pinless-sim`"],
        ),
        ("pinless-mm", "pinless-sim", dev, &[]),
        ("pinless-devices", "pinless-sim", dev, &[]),
        (
            "pinless-devices",
            "pinless-host",
            dev,
            &["the dev edge to `pinless-host`"],
        ),
        (
            "pinless-host",
            "pinless-sim",
            dev,
            &["the dev edge to `pinless-sim`"],
        ),
        (
            "pinless-sim",
            "pinless-host",
            None,
            &["the normal edge to `pinless-host`"],
        ),
        (
            "pinless-host",
            "pinless-mm",
            Some("build"),
            &["the build edge to `pinless-mm`"],
        ),
        (
            "pinless",
            "pinless-devices",
            None,
            &["the normal edge to `pinless-devices`"],
        ),
        ("pinless-cli", "pinless-devices", None, &[]),
        (
            "newcomer",
            "lockdep",
            None,
            &["newcomer:1: a crate without a row"],
        ),
    ] {
        let packages = packages(&[(name, &[(dependency, kind)]), (dependency, &[])]);
        let mut findings = Vec::new();
        check_edges(&packages, &mut findings);
        expect(
            &findings,
            expected,
            &format!("{name} -> {dependency} {kind:?}"),
        );
    }
}

#[test]
fn outside_packages_have_a_reason() {
    let packages = packages(&[
        ("lockdep", &[]),
        ("pinless-mm", &[("lockdep", None), ("lz4", Some("dev"))]),
    ]);
    for (table, expected) in [
        ("| `pinless-mm` | `lz4` | dev | it is fast |\n", &[][..]),
        ("", &["no table", "the dev dependency on `lz4`"]),
        (
            "| pinless-mm | lz4 | dev | |\n",
            &["`lz4` without a reason"],
        ),
        (
            "| pinless-mm | lz4 | dev |\n",
            &["four cells", "no table", "on `lz4`"],
        ),
        (
            "| pinless-mm | lz4 | normal | fast |\n",
            &[
                "the dev dependency on `lz4`",
                "no normal dependency on `lz4`: take out the row",
            ],
        ),
    ] {
        let header = "## Dependencies\n\n| crate | package | kind | reason |\n|---|---|---|---|\n";
        let table = [header, table, "\n## Next\n| a | b |\n"].concat();
        let mut findings = Vec::new();
        check_outside(&packages, &table, &mut findings);
        expect(&findings, expected, &table);
    }
}

#[test]
fn guarantees_name_tests_that_exist() {
    let source = Source::parse(MM, "#[test]\nfn it_holds() {}").unwrap_or_else(|_| panic!("lexes"));
    let mut functions = BTreeSet::new();
    guarantees::collect_functions(&source, &mut functions);
    for (row, expected) in [
        ("| G1 | holds | `it_holds` |", &[][..]),
        ("| G1 | holds | |", &[]),
        (
            "| G12 | holds | `it_holds` and `it_fails` |",
            &["G12 is shown by `it_fails`"],
        ),
        ("| Guard | holds | `it_fails` |", &[]),
    ] {
        let mut findings = Vec::new();
        let mut report = Report {
            path: ARCHITECTURE,
            findings: &mut findings,
        };
        guarantees::check(row, &functions, &mut report);
        expect(&findings, expected, row);
    }
}
