//! The whole zoo: each fault is found in each driver that can have it, and no driver without one
//! is convicted.

use pinless_devices::{BugInfo, zoo, zoo::Home};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Schedules of each scene: few, for this is every driver with every fault.
const SCHEDULES: &str = "150";

fn pinless(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pinless"))
        .args(arguments)
        .output()
        .expect("the command that was built");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn the_zoo_is_accounted_for_and_nobody_is_wronged() {
    let (code, out, err) = pinless(&["conform", "--schedules", SCHEDULES, "--json", "-"]);
    let report: Value = serde_json::from_str(&out).expect("JSON");
    let zoo = &report["zoo"];
    assert_eq!(zoo["accounted"], zoo["total"], "{err}");
    assert_eq!(zoo["false_convictions"], 0, "{err}");
    assert_eq!(code, Some(0), "{err}");
    let drivers = report["drivers"].as_array().expect("a list");
    assert!(drivers.iter().all(|driver| driver["ok"] == true));
    // What is shown of a fault names what broke, and nearly all can be read at a glance.
    let [shown, short] = ["shown", "short"].map(|name| zoo["lengths"][name].as_u64());
    let (shown, short) = (shown.expect("a number"), short.expect("a number"));
    assert!(shown > 40 && 10 * short >= 9 * shown, "{short} of {shown}");
}

#[test]
fn a_fault_is_shown_with_its_schedule_and_repeats() {
    let arguments = ["conform", "umem_odp-now", "--bug", "19", "--seed", "3"];
    let (code, first, err) = pinless(&arguments);
    assert_eq!(code, Some(0), "{err}");
    for part in [
        "seed 3",
        "R1",
        "umem_odp-now",
        "kit.fetched",
        "to see it again: pinless conform umem_odp-now --bug 19 --scene race --seed 3",
    ] {
        assert!(first.contains(part), "no `{part}` in:\n{first}");
    }
    let (_, second, _) = pinless(&arguments);
    assert_eq!(first, second, "a seed repeats its run");
}

/// The source in which a test of this whole name stands.
fn source_of(test: &str) -> String {
    let devices = Path::new(env!("CARGO_MANIFEST_DIR")).join("../devices");
    let modules: Vec<&str> = test.split("::").collect();
    let [modules @ .., _] = &modules[..] else {
        return String::new();
    };
    let place = match modules.strip_suffix(&["tests"]) {
        Some(inside) => format!("src/{}.rs", inside.join("/")),
        None => format!("tests/it/{}.rs", modules.join("/")),
    };
    fs::read_to_string(devices.join(place)).unwrap_or_default()
}

/// Whether the proof that a fault names is there.
fn has_proof(home: Home) -> bool {
    match home {
        Home::Model | Home::Core(_) => true,
        Home::Property(test) => {
            let name = test.rsplit("::").next().unwrap_or(test);
            let line = format!("#[test]\nfn {name}() {{");
            let source = source_of(test);
            let lines: Vec<&str> = source.lines().map(str::trim_start).collect();
            lines.join("\n").contains(&line)
        }
        Home::Inexpressible(place) => {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
            let Some((file, error)) = place.split_once(": ") else {
                return false;
            };
            let text = fs::read_to_string(root.join(file)).unwrap_or_default();
            text.contains(&format!("//! ```compile_fail,{error}\n"))
        }
    }
}

#[test]
fn each_test_that_a_fault_names_is_there() {
    let missing: Vec<&BugInfo> = zoo().iter().filter(|info| !has_proof(info.home)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
    for home in [
        Home::Property("models::each_fault_is_found"),
        Home::Property("each_fault_is_found_in_each_model_that_has_it"),
        Home::Inexpressible("devices::gntdev"),
        Home::Inexpressible("crates/devices/src/gntdev.rs: E0382"),
    ] {
        assert!(!has_proof(home), "{home:?} is there");
    }
}

#[test]
fn what_there_is_not_is_named() {
    for (arguments, part) in [
        (
            &["conform", "nvidia"][..],
            "there is no driver `nvidia`; there is: test_hmm-now",
        ),
        (&["conform", "--bug", "200"], "bug 200 is no switch"),
        (
            &["conform", "test_hmm", "--bug", "19"],
            "test_hmm has no switch for bug 19",
        ),
        (
            &["conform", "--scene", "opera"],
            "there is no scene `opera`; there is: race",
        ),
        (&["conform", "--json", "/"], "cannot be written"),
    ] {
        let (code, _, err) = pinless(arguments);
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains(part), "{err}");
    }
}
