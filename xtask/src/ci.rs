//! What continuous integration runs, step by step.

use crate::tidy;
use std::process::{Command, ExitCode};
use std::time::Instant;

/// The command that passes every test; `README.md` gives the same one.
const TEST: &[&str] = &["test", "--workspace"];

/// One step: a title, the arguments of cargo, and variables to set.
pub(crate) struct Step {
    pub(crate) title: &'static str,
    /// The first may name a toolchain: `+nightly`.
    pub(crate) cargo: &'static [&'static str],
    pub(crate) env: &'static [(&'static str, &'static str)],
}

impl Step {
    fn command(&self) -> Command {
        let names_toolchain = self.cargo.iter().any(|argument| argument.starts_with('+'));
        // The `cargo` that is found on the path is rustup's, which knows the toolchains.
        let program = if names_toolchain {
            "cargo".to_owned()
        } else {
            tidy::cargo()
        };
        let mut command = Command::new(program);
        command
            .args(self.cargo)
            .envs(self.env.iter().copied())
            .current_dir(tidy::root());
        command
    }
}

const STEPS: &[Step] = &[
    Step {
        title: "format",
        cargo: &["fmt", "--all", "--check"],
        env: &[],
    },
    Step {
        title: "lints",
        cargo: &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
        env: &[],
    },
    Step {
        title: "documentation",
        cargo: &[
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ],
        env: &[("RUSTDOCFLAGS", "-D warnings")],
    },
    Step {
        title: "public interface",
        cargo: &["run", "--quiet", "--package", "xtask", "--", "api"],
        env: &[],
    },
    Step {
        title: "tests",
        cargo: TEST,
        env: &[],
    },
    Step {
        title: "tests of the front door with all features",
        cargo: &[
            "test",
            "-p",
            "pinless",
            "--all-features",
            "--test",
            "vm_memory",
            "--test",
            "tracing",
        ],
        env: &[],
    },
    Step {
        title: "tests without notifiers",
        cargo: &["test", "-p", "pinless-mm", "--no-default-features"],
        env: &[("PINLESS_WITHOUT_NOTIFIERS", "1")],
    },
    Step {
        title: "locks that nothing watches",
        cargo: &["test", "-p", "lockdep", "--no-default-features", "--tests"],
        env: &[],
    },
    Step {
        title: "teardown on cgroup v2",
        cargo: &["run", "--quiet", "--package", "xtask", "--", "vm-test"],
        env: &[],
    },
    Step {
        title: "memory orders",
        cargo: &["test", "-p", "pinless-mm", "--release", "--lib", "loom_"],
        // Apart from the others, which another set of flags would build again.
        env: &[
            ("RUSTFLAGS", "--cfg loom"),
            ("CARGO_TARGET_DIR", "target/loom"),
        ],
    },
];

/// Runs what continuous integration runs.
pub(crate) fn run() -> ExitCode {
    run_all(STEPS)
}

/// Runs every step, also after one that failed, and says at the end which failed.
pub(crate) fn run_all(steps: &[Step]) -> ExitCode {
    let mut failed = Vec::new();
    for step in steps {
        println!("==> {}: cargo {}", step.title, step.cargo.join(" "));
        let begun = Instant::now();
        let passed = match step.command().status() {
            Ok(status) => status.success(),
            Err(error) => {
                eprintln!("cannot start cargo: {error}");
                false
            }
        };
        let verdict = if passed { "passed" } else { "FAILED" };
        println!(
            "==> {}: {verdict} in {} s",
            step.title,
            begun.elapsed().as_secs()
        );
        if !passed {
            failed.push(step.title);
        }
    }
    if failed.is_empty() {
        println!("==> all steps passed");
        return ExitCode::SUCCESS;
    }
    println!("==> failed: {}", failed.join(", "));
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readme_gives_the_test_command() {
        let readme = std::fs::read_to_string(tidy::root().join("README.md")).expect("README.md");
        let command = format!("cargo {}\n", TEST.join(" "));
        assert!(
            readme.contains(&command),
            "README.md does not give `{}`",
            command.trim()
        );
    }
}
