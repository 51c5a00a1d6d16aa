//! `dsv4`: see `dsv4 --help`.

use tilekiln::cli::{self, Exit};

fn main() -> Exit {
    cli::dsv4(std::env::args_os())
}
