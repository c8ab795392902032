//! `cargo xtask api`: everything that the public interface of `pinless` speaks of has a name there.
//!
//! A type that stands in a signature, and that only the crates below can name, is a part of the
//! interface that nobody can write down, and that changes unseen. It is read off what rustdoc says
//! as JSON. No version promises the format of that: one that is not known here is not judged.

use crate::tidy;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, ExitCode};

/// The format of rustdoc's JSON that this reads.
const FORMAT: u64 = 57;

/// The front door first, and the crates that it speaks of; each with the features that show in an
/// interface.
const PACKAGES: [(&str, &[&str]); 4] = [
    ("pinless", &["--features=tracing,vm-memory"]),
    ("pinless-host", &["--features=vm-memory"]),
    (
        "pinless-mm",
        &["--no-default-features", "--features=notifiers,validate"],
    ),
    ("lockdep", &[]),
];

/// What every program can name.
const EVERYBODYS: [&str; 3] = ["core", "alloc", "std"];

/// A crate, and the number of an item in what rustdoc says of it.
type Item = (String, String);

/// What rustdoc says of some crates.
#[derive(Default)]
struct Docs {
    crates: BTreeMap<String, Value>,
    /// Path and kind of each item, and where it is.
    homes: BTreeMap<(String, String), Item>,
}

/// Where an item is that a crate speaks of.
enum Home {
    Here(Item),
    /// In a crate that was not read; its path.
    Elsewhere(String),
}

fn path_of(summary: &Value) -> String {
    let parts = summary["path"].as_array().into_iter().flatten();
    let parts: Vec<&str> = parts.filter_map(Value::as_str).collect();
    parts.join("::")
}

/// Numbers of items are numbers in lists, and names in tables.
fn ids(list: &Value) -> impl Iterator<Item = String> {
    let ids = list.as_array().into_iter().flatten();
    ids.filter(|id| !id.is_null()).map(Value::to_string)
}

/// An item's kind, and what there is of that kind.
fn inner(item: &Value) -> Option<(&str, &Value)> {
    let (kind, inner) = item["inner"].as_object()?.iter().next()?;
    Some((kind, inner))
}

impl Docs {
    fn add(&mut self, name: &str, docs: Value) {
        for (id, summary) in docs["paths"].as_object().into_iter().flatten() {
            if summary["crate_id"] == 0 {
                let home = (name.to_owned(), id.clone());
                let kind = summary["kind"].to_string();
                self.homes.insert((path_of(summary), kind), home);
            }
        }
        self.crates.insert(name.to_owned(), docs);
    }

    fn item(&self, (krate, id): &Item) -> &Value {
        &self.crates[krate]["index"][id]
    }

    fn home(&self, krate: &str, id: String) -> Home {
        let summary = &self.crates[krate]["paths"][&id];
        if summary.is_null() || summary["crate_id"] == 0 {
            return Home::Here((krate.to_owned(), id));
        }
        let path = path_of(summary);
        let key = (path, summary["kind"].to_string());
        match self.homes.get(&key) {
            Some(home) => Home::Here(home.clone()),
            None => Home::Elsewhere(key.0),
        }
    }

    fn path(&self, (krate, id): &Item) -> String {
        path_of(&self.crates[krate]["paths"][id])
    }
}

/// What a user of a crate can name.
#[derive(Default)]
struct Names {
    items: BTreeSet<Item>,
    /// Of crates that were not read; a crate's name stands for all that is in it.
    elsewhere: BTreeSet<String>,
}

impl Names {
    fn collect(&mut self, docs: &Docs, krate: &str, id: String) {
        let item = match docs.home(krate, id) {
            Home::Here(item) => item,
            Home::Elsewhere(path) => {
                self.elsewhere.insert(path);
                return;
            }
        };
        let krate = item.0.clone();
        match inner(docs.item(&item)) {
            Some(("use", used)) if !used["id"].is_null() => {
                self.collect(docs, &krate, used["id"].to_string());
            }
            Some(("module", module)) => {
                if self.items.insert(item.clone()) {
                    ids(&module["items"]).for_each(|id| self.collect(docs, &krate, id));
                }
            }
            _ => drop(self.items.insert(item)),
        }
    }

    fn has_elsewhere(&self, path: &str) -> bool {
        let krate = path.split("::").next().unwrap_or(path);
        EVERYBODYS.contains(&krate) || [path, krate].iter().any(|of| self.elsewhere.contains(*of))
    }
}

/// Gathers the numbers of the types and traits that a part of a signature mentions.
fn mentions(part: &Value, found: &mut Vec<String>) {
    match part {
        Value::Object(fields) => {
            for (name, value) in fields {
                let is_mention = matches!(name.as_str(), "resolved_path" | "trait");
                match value.get("id") {
                    Some(id) if is_mention && !id.is_null() => found.push(id.to_string()),
                    _ => {}
                }
                mentions(value, found);
            }
        }
        Value::Array(parts) => parts.iter().for_each(|part| mentions(part, found)),
        _ => {}
    }
}

/// What an item says itself, and the items that are a part of it.
fn parts(kind: &str, inner: &Value) -> (Vec<String>, Vec<String>) {
    let mut said = Vec::new();
    let mut lists = Vec::new();
    match kind {
        "module" | "use" | "macro" | "proc_macro" => {}
        "impl" if inner["is_synthetic"] == true || !inner["blanket_impl"].is_null() => {}
        "struct" | "variant" => {
            let shape = &inner["kind"];
            lists.extend([
                &shape["plain"]["fields"],
                &shape["tuple"],
                &shape["struct"]["fields"],
            ]);
            lists.push(&inner["impls"]);
            mentions(&inner["generics"], &mut said);
        }
        "enum" | "trait" | "impl" => {
            lists.extend([&inner["variants"], &inner["items"], &inner["impls"]]);
            mentions(&inner["generics"], &mut said);
            mentions(&inner["bounds"], &mut said);
            said.extend((!inner["trait"].is_null()).then(|| inner["trait"]["id"].to_string()));
        }
        _ => mentions(inner, &mut said),
    }
    (said, lists.into_iter().flat_map(ids).collect())
}

/// What the items that can be named speak of that cannot, each with an item that does.
fn leaks(docs: &Docs, names: &Names) -> BTreeMap<String, String> {
    let mut leaks = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut left: Vec<(Item, String)> = names
        .items
        .iter()
        .map(|item| (item.clone(), docs.path(item)))
        .collect();
    while let Some((item, within)) = left.pop() {
        let description = docs.item(&item);
        let Some((kind, inner)) = inner(description) else {
            continue;
        };
        let is_public = matches!(
            description["visibility"].as_str(),
            Some("public" | "default")
        );
        if !is_public || !seen.insert(item.clone()) {
            continue;
        }
        let (said, parts) = parts(kind, inner);
        let own_path = docs.path(&item);
        let speaker = match description["name"].as_str() {
            _ if !own_path.is_empty() => own_path,
            Some(name) => format!("{within}::{name}"),
            None => within,
        };
        for id in said {
            match docs.home(&item.0, id) {
                // A trait that is sealed is public, and has no name, on purpose.
                Home::Here(of) if docs.path(&of).contains("::sealed::") => {}
                Home::Here(of) => {
                    if !names.items.contains(&of) {
                        leaks.insert(docs.path(&of), speaker.clone());
                    }
                    let path = docs.path(&of);
                    left.push((of, path));
                }
                Home::Elsewhere(path) if names.has_elsewhere(&path) => {}
                Home::Elsewhere(path) => drop(leaks.insert(path, speaker.clone())),
            }
        }
        left.extend(
            parts
                .into_iter()
                .map(|id| ((item.0.clone(), id), speaker.clone())),
        );
    }
    leaks
}

/// Has rustdoc describe a package, and reads that.
fn describe(package: &str, features: &[&str]) -> Result<Value, String> {
    let folder = tidy::root().join("target/api");
    let status = Command::new(tidy::cargo())
        .args(["rustdoc", "--quiet", "--lib", "--package", package])
        .args(features)
        .args(["--", "-Zunstable-options", "--output-format=json"])
        // The compiler of the workspace, whose format is known, and no nightly one. Apart from
        // other builds, which the variable would have begin again.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", &folder)
        .current_dir(tidy::root())
        .status();
    match status {
        Err(error) => return Err(format!("cannot start cargo: {error}")),
        Ok(status) if !status.success() => {
            return Err(format!("cargo rustdoc of {package} failed"));
        }
        Ok(_) => {}
    }
    let file = format!("doc/{}.json", package.replace('-', "_"));
    let text = std::fs::read(folder.join(&file));
    let text = text.map_err(|error| format!("{file}: {error}"))?;
    serde_json::from_slice(&text).map_err(|error| format!("{file}: {error}"))
}

/// Checks the interface of `pinless`.
pub(crate) fn run() -> ExitCode {
    let mut docs = Docs::default();
    for (package, features) in PACKAGES {
        match describe(package, features) {
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
            Ok(described) if described["format_version"] != FORMAT => {
                println!("skipped: rustdoc's format is not {FORMAT}");
                return ExitCode::SUCCESS;
            }
            Ok(described) => docs.add(&package.replace('-', "_"), described),
        }
    }
    let names = names_of(&docs, "pinless");
    println!("{} items have a name in pinless", names.items.len());
    let leaks = leaks(&docs, &names);
    for (leak, speaker) in &leaks {
        println!("{speaker} speaks of {leak}, which has no name in pinless: export it there");
    }
    if leaks.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn names_of(docs: &Docs, krate: &str) -> Names {
    let mut names = Names::default();
    names.collect(docs, krate, docs.crates[krate]["root"].to_string());
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A front door that exports these items of the crate below: 1 is a type, whose method answers
    /// with 4, and 5 is a trait that is sealed.
    fn docs(exported: &[u32]) -> Docs {
        let uses = exported.iter().map(|id| {
            let used = json!({"visibility": "public", "inner": {"use": {"id": id}}});
            ((10 + id).to_string(), used)
        });
        let items: Vec<u32> = exported.iter().map(|id| 10 + id).collect();
        let root = json!({"visibility": "public", "inner": {"module": {"items": items}}});
        let index: BTreeMap<_, _> = uses.chain([("0".to_owned(), root)]).collect();
        let paths = |crate_id: u32| {
            let summary = |path: &str, kind: &str| {
                let path: Vec<_> = path.split("::").collect();
                json!({"crate_id": crate_id, "path": path, "kind": kind})
            };
            json!({
                "1": summary("below::Shown", "struct"),
                "4": summary("below::inside::Answer", "struct"),
                "5": summary("below::sealed::Sealed", "trait"),
            })
        };
        let of_type = |id: u32| json!({"resolved_path": {"id": id, "path": "", "args": null}});
        let shape = json!({"plain": {"fields": [6]}});
        let below = json!({
            "1": {"name": "Shown", "visibility": "public",
                "inner": {"struct": {"kind": shape, "generics": {}, "impls": [2]}}},
            "2": {"name": null, "visibility": "default", "inner": {"impl": {
                "is_synthetic": false, "blanket_impl": null, "generics": {}, "items": [3],
                "trait": {"id": 5, "path": "", "args": null}}}},
            "3": {"name": "answer", "visibility": "public",
                "inner": {"function": {"sig": {"inputs": [], "output": of_type(4)}}}},
            "4": {"name": "Answer", "visibility": "public",
                "inner": {"struct": {"kind": "unit", "generics": {}, "impls": []}}},
            "5": {"name": "Sealed", "visibility": "public",
                "inner": {"trait": {"generics": {}, "bounds": [], "items": []}}},
            "6": {"name": "private", "visibility": {"restricted": {}},
                "inner": {"struct_field": of_type(7)}},
        });
        let mut docs = Docs::default();
        docs.add(
            "front",
            json!({"root": 0, "index": index, "paths": paths(1)}),
        );
        docs.add(
            "below",
            json!({"root": 9, "index": below, "paths": paths(0)}),
        );
        docs
    }

    #[track_caller]
    fn check(exported: &[u32], expected: &[(&str, &str)]) {
        let docs = docs(exported);
        let found = leaks(&docs, &names_of(&docs, "front"));
        let found: Vec<_> = found.iter().map(|(leak, by)| (&**leak, &**by)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_an_export_speaks_of_is_exported() {
        check(&[1, 4], &[]);
        check(&[4], &[]);
        check(&[1], &[("below::inside::Answer", "below::Shown::answer")]);
    }
}
