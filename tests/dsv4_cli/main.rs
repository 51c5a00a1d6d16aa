//! The command line of `dsv4` as a user meets it: the real binary on the oracle checkpoints, without a GPU.

mod bench;
mod check;
mod compare;
mod generate;
mod logits;
mod mistakes;
mod place;
mod text;
mod watching;
