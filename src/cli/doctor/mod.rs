//! `autotune doctor`: a line for each thing that a run needs, and what to do about it. Nothing is changed.

mod check;
mod kept;
mod machine;

use std::fmt;

use serde::Serialize;

use self::check::{Check, State};
use super::args::CommonArgs;
use super::context::{self, Paths};
use super::voice::answer;
use super::{CliError, Exit};

/// Looks at everything; a failure if anything is an error.
pub fn run(common: &CommonArgs, paths: &Paths) -> Result<Exit, CliError> {
    let gpu = match context::spec(common) {
        Ok(gpu) => gpu,
        Err(error) if error.exit() == Exit::Usage => return Err(error),
        // The GPU at hand cannot be used: its own line says why.
        Err(_) => context::default_gpu()?.clone(),
    };
    let mut checks = machine::gpu(common.device);
    let (nvrtc, version) = machine::nvrtc(paths, &gpu);
    checks.push(machine::python(nvrtc.state == State::Ok));
    checks.insert(checks.len() - 1, nvrtc);
    checks.push(machine::cache(paths));
    checks.extend(kept::database(paths));
    checks.push(kept::snapshot(paths, &gpu, version.as_deref()));
    checks.push(kept::packs(&gpu, version.as_deref()));
    let n_errors = checks.iter().filter(|check| check.state == State::Error).count();
    answer(common.json, &Checks(checks))?;
    match n_errors {
        0 => Ok(Exit::Done),
        1 => Err(CliError::failed("expected no errors, found 1", None)),
        n => Err(CliError::failed(format!("expected no errors, found {n}"), None)),
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct Checks(Vec<Check>);

impl fmt::Display for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|check| writeln!(f, "{check}"))
    }
}
