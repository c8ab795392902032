//! Rules about the crates: which may depend on which, and on what from outside.
//!
//! The edges inside the workspace stand here. The packages from outside stand in the table of
//! `ARCHITECTURE.md`, each with its reason; the table and the manifests must agree both ways.

use super::{ARCHITECTURE, Finding, Report, cargo};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Crate, and what it may depend on.
type Edges = &'static [(&'static str, &'static [&'static str])];

const EDGES: Edges = &[
    ("lockdep-macros", &[]),
    ("lockdep", &["lockdep-macros"]),
    ("lockdep-capi", &["lockdep"]),
    ("pinless-mm", &["lockdep"]),
    ("pinless-host", &["pinless-mm", "lockdep"]),
    ("pinless-sim", &["pinless-mm", "lockdep"]),
    ("pinless-devices", &["pinless-mm", "lockdep"]),
    ("pinless", &["pinless-host", "pinless-mm", "lockdep"]),
    (
        "pinless-cli",
        &[
            "pinless",
            "pinless-host",
            "pinless-sim",
            "pinless-devices",
            "pinless-mm",
            "lockdep",
        ],
    ),
    (
        "xtask",
        &[
            "pinless",
            "pinless-host",
            "pinless-mm",
            "pinless-sim",
            "pinless-devices",
            "lockdep",
        ],
    ),
];

/// What a crate's tests may depend on besides.
const TEST_EDGES: Edges = &[
    ("pinless-mm", &["pinless-sim"]),
    ("pinless-devices", &["pinless-sim"]),
];

/// Where the table of packages from outside begins in `ARCHITECTURE.md`.
const TABLE_HEADING: &str = "## Dependencies";

/// What `cargo metadata` says.
#[derive(Deserialize)]
pub(super) struct Metadata {
    pub(super) packages: Vec<Package>,
}

/// A crate of the workspace.
#[derive(Deserialize)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) dependencies: Vec<Dependency>,
}

/// A line in a manifest.
#[derive(Deserialize)]
pub(super) struct Dependency {
    pub(super) name: String,
    /// Absent for a normal one; else `dev` or `build`.
    pub(super) kind: Option<String>,
}

impl Dependency {
    fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("normal")
    }
}

/// Checks the manifests and the table.
pub(super) fn check_workspace(root: &Path, architecture: &str, findings: &mut Vec<Finding>) {
    let mut report = Report {
        path: "Cargo.toml",
        findings,
    };
    let metadata = match read_metadata(root) {
        Ok(metadata) => metadata,
        Err(error) => {
            report.add(
                0,
                format!("cargo metadata failed: {error}"),
                "repair the manifests",
            );
            return;
        }
    };
    check_edges(&metadata.packages, report.findings);
    check_outside(&metadata.packages, architecture, report.findings);
}

fn read_metadata(root: &Path) -> Result<Metadata, String> {
    let output = Command::new(cargo())
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
}

/// Checks the edges inside the workspace.
pub(super) fn check_edges(packages: &[Package], findings: &mut Vec<Finding>) {
    let ours: BTreeSet<&str> = packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    for package in packages {
        let mut report = Report {
            path: &package.name,
            findings,
        };
        let Some(allowed) = row(EDGES, &package.name) else {
            report.add(
                0,
                "a crate without a row",
                "give it one in `EDGES` and ARCHITECTURE.md",
            );
            continue;
        };
        let in_tests = row(TEST_EDGES, &package.name).unwrap_or(&[]);
        for dependency in package
            .dependencies
            .iter()
            .filter(|d| ours.contains(d.name.as_str()))
        {
            let name = dependency.name.as_str();
            let holds = match dependency.kind() {
                "normal" => allowed.contains(&name),
                "dev" => allowed.contains(&name) || in_tests.contains(&name),
                _ => false,
            };
            if !holds {
                let what = format!("the {} edge to `{name}`", dependency.kind());
                report.add(
                    0,
                    what,
                    "take it out: the layers in ARCHITECTURE.md forbid it",
                );
            }
        }
    }
}

fn row(edges: Edges, name: &str) -> Option<&'static [&'static str]> {
    edges.iter().find(|row| row.0 == name).map(|row| row.1)
}

/// Checks the packages from outside against the table in `architecture`, both ways.
pub(super) fn check_outside(packages: &[Package], architecture: &str, findings: &mut Vec<Finding>) {
    let ours: BTreeSet<&str> = packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    let table = table_rows(architecture, findings);
    let mut used = BTreeSet::new();
    for package in packages {
        for dependency in package
            .dependencies
            .iter()
            .filter(|d| !ours.contains(d.name.as_str()))
        {
            let row = [
                package.name.as_str(),
                dependency.name.as_str(),
                dependency.kind(),
            ];
            let row = row.map(str::to_owned);
            if !table.contains_key(&row) {
                let what = format!("the {} dependency on `{}`", row[2], row[1]);
                let to_do = "give it a row with its reason in ARCHITECTURE.md, or do without";
                Report {
                    path: &package.name,
                    findings,
                }
                .add(0, what, to_do);
            }
            used.insert(row);
        }
    }
    for (row, line) in table.iter().filter(|(row, _)| !used.contains(*row)) {
        let what = format!("`{}` has no {} dependency on `{}`", row[0], row[2], row[1]);
        Report {
            path: ARCHITECTURE,
            findings,
        }
        .add(*line, what, "take out the row");
    }
}

/// The rows `| crate | package | kind | reason |` and their lines, from zero.
fn table_rows(architecture: &str, findings: &mut Vec<Finding>) -> BTreeMap<[String; 3], usize> {
    let mut report = Report {
        path: ARCHITECTURE,
        findings,
    };
    let mut rows = BTreeMap::new();
    let mut in_section = false;
    for (at, line) in architecture.lines().enumerate() {
        if line.starts_with("## ") {
            in_section = line == TABLE_HEADING;
        }
        if !in_section || !line.starts_with('|') {
            continue;
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, package, kind, reason] = cells[..] else {
            report.add(
                at,
                "a row without four cells",
                "crate, package, kind, reason",
            );
            continue;
        };
        if name == "crate" || name.starts_with("--") {
            continue;
        }
        if reason.is_empty() {
            report.add(
                at,
                format!("`{package}` without a reason"),
                "say why it is there",
            );
        }
        rows.insert(
            [name, package, kind].map(|cell| cell.trim_matches('`').to_owned()),
            at,
        );
    }
    if rows.is_empty() {
        report.add(
            0,
            format!("no table under `{TABLE_HEADING}`"),
            "list the packages there",
        );
    }
    rows
}
