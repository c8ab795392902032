//! The `pinless` command.

fn main() {}
