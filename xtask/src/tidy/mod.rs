//! The house rules, as a test: every source file and every crate edge is checked.
//!
//! `STYLE.md` says why each rule is there; exceptions stand in `lists.rs`, each with its reason.

mod banned;
mod edges;
mod guarantees;
mod lists;
mod orderings;
mod packages;
mod size;
mod source;
mod text;
mod unsafety;

#[cfg(test)]
mod tests;

use source::Source;
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The document whose tables are checked.
const ARCHITECTURE: &str = "ARCHITECTURE.md";

/// One breach of a rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    path: String,
    /// From one.
    line: usize,
    what: String,
    to_do: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}: {}: {}",
            self.path, self.line, self.what, self.to_do
        )
    }
}

/// Collects findings of one file.
struct Report<'a> {
    path: &'a str,
    findings: &'a mut Vec<Finding>,
}

impl Report<'_> {
    /// Reports a breach on `line` (from zero).
    fn add(&mut self, line: usize, what: impl Into<String>, to_do: impl Into<String>) {
        let (what, to_do) = (what.into(), to_do.into());
        let finding = Finding {
            path: self.path.to_owned(),
            line: line + 1,
            what,
            to_do,
        };
        self.findings.push(finding);
    }
}

/// Checks everything and prints what is wrong.
pub(crate) fn run() -> ExitCode {
    let findings = check_workspace();
    for finding in &findings {
        println!("{finding}");
    }
    if let Some(packages) = packages::outside(&root(), &[]) {
        println!(
            "tidy: {} packages from outside under `pinless`",
            packages.len()
        );
    }
    println!("tidy: {} findings", findings.len());
    if findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest
        .parent()
        .expect("xtask lies in the workspace")
        .to_owned()
}

/// The cargo that runs us.
pub(crate) fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// Every breach in the workspace, sorted.
fn check_workspace() -> Vec<Finding> {
    let root = root();
    let paths = files(&root);
    let mut findings = Vec::new();
    let mut functions = BTreeSet::new();
    for path in &paths {
        let Ok(metadata) = fs::symlink_metadata(root.join(path)) else {
            continue;
        };
        text::check_bytes(path, metadata.len(), &mut findings);
        if path.ends_with(".rs") && metadata.is_file() {
            let text = fs::read_to_string(root.join(path)).unwrap_or_default();
            let lock_order = banned::lock_order_of(path)
                .and_then(|order| fs::read_to_string(root.join(order)).ok());
            let source = check_source(path, &text, lock_order.as_deref(), &mut findings);
            if let Some(source) = source {
                guarantees::collect_functions(&source, &mut functions);
            }
        }
    }
    text::check_lists(&paths, &mut findings);
    let architecture = fs::read_to_string(root.join(ARCHITECTURE)).unwrap_or_default();
    edges::check_workspace(&root, &architecture, &mut findings);
    let mut report = Report {
        path: ARCHITECTURE,
        findings: &mut findings,
    };
    guarantees::check(&architecture, &functions, &mut report);
    findings.sort();
    findings
}

/// Collects every breach in one Rust file, and gives the file taken apart if it lexes.
fn check_source(
    path: &str,
    text: &str,
    lock_order: Option<&str>,
    findings: &mut Vec<Finding>,
) -> Option<Source> {
    let mut report = Report { path, findings };
    text::check(text, &mut report);
    let source = match Source::parse(path, text) {
        Ok(source) => source,
        Err(line) => {
            report.add(line, "this is not Rust", "make it lex");
            return None;
        }
    };
    unsafety::check(&source, &mut report);
    orderings::check(&source, &mut report);
    banned::check(&source, &mut report);
    if let Some(lock_order) = lock_order {
        banned::check_lock_classes(&source, lock_order, &mut report);
    }
    size::check(&source, &mut report);
    Some(source)
}

/// The files of the project: tracked, or new and not ignored. Without git: all outside `target`.
fn files(root: &Path) -> Vec<String> {
    let listed = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root)
        .output();
    let mut paths: Vec<String> = match listed {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .split_terminator('\0')
            .map(str::to_owned)
            .collect(),
        _ => {
            let mut paths = Vec::new();
            walk(root, root, &mut paths);
            paths
        }
    };
    paths.sort();
    paths.dedup();
    paths
}

fn walk(root: &Path, folder: &Path, paths: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() && entry.file_name() != "target" && entry.file_name() != ".git" {
            walk(root, &path, paths);
        } else if kind.is_file()
            && let Ok(relative) = path.strip_prefix(root)
        {
            paths.push(relative.to_string_lossy().into_owned());
        }
    }
}
