//! How many packages from outside a user of `pinless` builds.

use super::cargo;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// The packages from outside that `pinless` is built of, with these arguments of cargo.
pub(super) fn outside(root: &Path, features: &[&str]) -> Option<BTreeSet<String>> {
    let output = Command::new(cargo())
        .args(["tree", "--package=pinless", "--edges=normal", "--offline"])
        .args(["--prefix=none", "--format={p}"])
        .args(features)
        .current_dir(root)
        .output()
        .ok()?;
    output.status.success().then(|| {
        let text = String::from_utf8_lossy(&output.stdout);
        parse(&text)
    })
}

/// The names in what `cargo tree` says; the workspace's own have a path.
fn parse(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| !line.contains("(/"));
    let packages = lines.map(|line| line.trim_end_matches(" (*)").to_owned());
    packages.filter(|package| !package.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy;

    #[test]
    fn the_own_and_the_repeated_are_not_counted() {
        let text = "pinless v0.1.0 (/src/pinless)\nlibc v0.2.1\nlibc v0.2.1 (*)\nlibc v0.1.0\n\n";
        assert_eq!(parse(text).len(), 2);
    }

    /// A package more is a decision: it is made here and argued in `ARCHITECTURE.md`.
    #[test]
    fn no_package_comes_in_unnoticed() {
        for (features, most) in [(&["--no-default-features"][..], 12), (&[], 16)] {
            let found = outside(&tidy::root(), features).expect("cargo tree works");
            assert!(found.len() <= most, "{features:?}: {found:?}");
        }
    }
}
