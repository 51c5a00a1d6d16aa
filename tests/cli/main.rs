//! The command line as a user meets it: the real binary, what it prints, and how it ends.

mod machine;
mod mistakes;
mod runs;
mod shown;
#[path = "../store_samples/mod.rs"]
mod store_samples;
mod voice;
