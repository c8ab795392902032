//! The pages of the book, so that its programs are compiled.

macro_rules! pages {
    ($($name:ident = $path:literal,)*) => {
        $(#[doc = include_str!(concat!("../../../docs/", $path))]
        pub(super) struct $name;)*
    };
}

pages! {
    Why = "README.md",
    Quickstart = "quickstart.md",
    FaultModes = "fault-modes.md",
    Limits = "limits.md",
    Devices = "devices.md",
    Lockdep = "lockdep.md",
    Cannot = "cannot.md",
    Glossary = "glossary.md",
}
