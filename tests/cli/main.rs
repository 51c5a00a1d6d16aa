//! The command line as a user meets it: the real binary, what it prints, and how it ends.

mod databases;
mod doctor;
mod machine;
mod mistakes;
mod packs;
mod reports;
mod runs;
mod shown;
#[path = "../store_samples/mod.rs"]
mod store_samples;
mod sweeping;
mod voice;
