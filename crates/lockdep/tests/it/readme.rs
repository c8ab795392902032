//! The README shows what the crate really prints.

use lockdep::Validator;

#[path = "../../examples/bank.rs"]
mod bank;

#[test]
fn the_report_in_the_readme_is_what_is_printed() {
    // The names of threads are those of the operating system, which knows nothing of Miri's.
    if cfg!(miri) {
        return;
    }
    let validator = Validator::new();
    bank::run(|| validator.enter());
    let reports = validator.reports();
    let [report] = &reports[..] else {
        panic!("one report: {reports:?}");
    };
    let printed = report.text();
    let printed = printed.replace("tests/it/../../examples/", "examples/");
    let readme = include_str!("../../README.md");
    assert!(
        readme.contains(&format!("```text\n{printed}```\n")),
        "the README should have:\n{printed}"
    );
}
