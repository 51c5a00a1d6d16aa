//! What only a GPU can show, as one binary that needs neither cargo nor the checkout: `gpu [FILTER] [--list]`.
//!
//! Without a GPU it says how many cases it did not run, and none counts as passed.

mod bits;
mod context;
mod dense;
mod experts;
mod fewer;
mod mixes;
mod moe;
mod oracles;
mod recovery;
mod runner;
mod runner_attention;
mod runner_entries;
mod runner_step;
mod runner_timings;
mod serving;

use std::process::ExitCode;
use std::time::Instant;

use context::{Case, Context};

fn main() -> ExitCode {
    if let Some(exit) = recovery::serve_if_asked() {
        return exit;
    }
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !HARNESS_FLAGS.contains(&word.as_str())).collect();
    let is_list = words.iter().any(|word| word == "--list");
    let filter = words.iter().find(|word| !word.starts_with("--")).cloned().unwrap_or_default();
    let rooms = [
        bits::cases(),
        dense::cases(),
        moe::cases(),
        experts::cases(),
        fewer::cases(),
        mixes::cases(),
        serving::cases(),
        oracles::cases(),
        runner::cases(),
        runner_attention::cases(),
        runner_entries::cases(),
        runner_timings::cases(),
        recovery::cases(),
    ];
    let mut cases: Vec<Case> = rooms.into_iter().flatten().collect();
    cases.retain(|case| case.name.contains(&filter));
    if is_list {
        cases.iter().for_each(|case| println!("{}", case.name));
        return ExitCode::SUCCESS;
    }
    let mut context = match Context::open() {
        Ok(context) => context,
        Err(reason) => {
            println!("gpu: {} cases not run: {reason}", cases.len());
            return ExitCode::SUCCESS;
        }
    };
    println!("gpu: {} cases on {}", cases.len(), context.describe());
    run(&mut context, &cases)
}

fn run(context: &mut Context, cases: &[Case]) -> ExitCode {
    let started = Instant::now();
    let (mut failures, mut checks) = (Vec::new(), 0);
    for (case_idx, case) in cases.iter().enumerate() {
        let case_started = Instant::now();
        let result = (case.run)(context);
        let seconds = case_started.elapsed().as_secs_f64();
        match result {
            Ok(checked) => {
                checks += checked;
                println!("ok      {:<64} {checked:>6} checks {seconds:>7.2} s", case.name);
            }
            Err(failure) => {
                println!("FAILED  {}: {}", case.name, failure.reason);
                failures.push(case.name.clone());
                if failure.is_sticky {
                    println!("gpu: the context is lost, {} cases not run", cases.len() - case_idx - 1);
                    break;
                }
            }
        }
    }
    println!(
        "gpu: {} of {} cases failed, {checks} checks in {:.1} s",
        failures.len(),
        cases.len(),
        started.elapsed().as_secs_f64()
    );
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What `cargo test` passes on to every test binary.
const HARNESS_FLAGS: [&str; 4] = ["--nocapture", "--quiet", "-q", "--test-threads=1"];
