//! The build without notifiers is one: features of a workspace unify, and one dependency that asks
//! for them brings them back unnoticed.

#[test]
fn what_is_left_out_is_not_there() {
    let is_left_out = std::env::var_os("PINLESS_WITHOUT_NOTIFIERS").is_some();
    assert!(
        !(is_left_out && cfg!(feature = "notifiers")),
        "a dependency has switched the feature `notifiers` on: see cargo tree -e features"
    );
}
