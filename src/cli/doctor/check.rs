//! What was looked at, how it is, and what to do about it.

use std::fmt;

use serde::Serialize;

/// One line of the doctor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub thing: &'static str,
    /// How it is.
    pub state: State,
    /// A sentence.
    pub says: String,
    /// What to do about it, where it is not well.
    pub hint: Option<String>,
}

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// Runs work, but not as well.
    Warning,
    /// Runs fail.
    Error,
}

impl Check {
    /// A thing that is well.
    pub fn ok(thing: &'static str, says: impl Into<String>) -> Self {
        Self { thing, state: State::Ok, says: says.into(), hint: None }
    }

    /// A thing that could be better.
    pub fn warning(thing: &'static str, says: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { thing, state: State::Warning, says: says.into(), hint: Some(hint.into()) }
    }

    /// A thing that makes runs fail.
    pub fn error(thing: &'static str, says: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { thing, state: State::Error, says: says.into(), hint: Some(hint.into()) }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { thing, state, says, hint } = self;
        let state = match state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Error => "error",
        };
        write!(f, "{state:<8} {thing:<9} {says}")?;
        hint.iter().try_for_each(|hint| write!(f, "\n{:<18} {hint}", ""))
    }
}
