//! C programs, compiled and linked with both libraries, get the answers that they expect.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The folder with `liblockdep.a` and `liblockdep.so`, made by cargo: tests of libraries for other
/// languages get none built for them.
fn build_libraries() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    // .../target/PROFILE/deps/test
    let folder = test.ancestors().nth(2).expect("two folders above");
    let mut build = Command::new(env!("CARGO"));
    build
        .args([
            "build",
            "--offline",
            "--package",
            "lockdep-capi",
            "--target-dir",
        ])
        .arg(folder.parent().expect("the target folder"));
    if folder.ends_with("release") {
        build.arg("--release");
    }
    let output = build.output().expect("cargo runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the library is built:\n{errors}");
    folder.to_owned()
}

/// Compiles a program of this folder; the arguments say with which library.
fn compile(program: &str, with: &str, libraries: &Path, arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{program}-{with}"));
    let output = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(root.join("include"))
        .arg(root.join("tests").join(program).with_extension("c"))
        .arg("-o")
        .arg(&binary)
        .arg("-L")
        .arg(libraries)
        .args(arguments)
        .output()
        .expect("there is a compiler");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} is compiled:\n{errors}");
    let mut run = Command::new(binary);
    run.env("LD_LIBRARY_PATH", libraries).env_remove("LOCKDEP");
    run.output().expect("it runs")
}

#[test]
fn c_programs_get_the_answers_they_expect() {
    if Command::new("cc").arg("--version").output().is_err() {
        println!("skipped: no C compiler");
        return;
    }
    let libraries = build_libraries();
    let needs = ["-lpthread", "-ldl", "-lm"];
    let statically = [&["-l:liblockdep.a"][..], &needs].concat();
    for (program, expected) in [
        ("drive", "40 of 40"),
        ("plain", "1 of 1"),
        ("partly", "1 of 1"),
    ] {
        for (with, arguments) in [("static", &statically[..]), ("dynamic", &["-llockdep"])] {
            let output = compile(program, with, &libraries, arguments);
            let said = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{program} {with}:\n{said}{errors}");
            assert_eq!(
                said,
                format!("{expected} as expected\n"),
                "{program} {with}"
            );
            // The last fault of the one is told, and only once: the second comes after it.
            let nr_told = errors.matches("taken in a circle").count();
            assert_eq!(nr_told, usize::from(program == "drive"), "{errors}");
        }
    }
}
