//! `autotune`: see `autotune --help`.

use tilekiln::cli::{self, Exit};

fn main() -> Exit {
    cli::autotune(std::env::args_os())
}
