//! `autotune`: see `autotune --help`.

fn main() {}
