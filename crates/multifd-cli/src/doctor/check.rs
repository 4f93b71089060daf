//! What was looked at, what was found, and what to do.

use std::fmt;

use serde::Serialize;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// Nothing to do.
    Ok,
    /// A migration works, and something should be known or mended.
    Warn,
    /// A migration would fail.
    Fail,
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) check: &'static str,
    pub(super) state: State,
    pub(super) found: String,
    /// A command, or what people have to do; of a check that is not `ok`.
    pub(super) advice: Option<String>,
}

impl Check {
    pub(super) fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            state: State::Ok,
            found: found.into(),
            advice: None,
        }
    }

    pub(super) fn warn(
        check: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            state: State::Warn,
            advice: Some(advice.into()),
            ..Self::ok(check, found)
        }
    }

    pub(super) fn fail(
        check: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            state: State::Fail,
            ..Self::warn(check, found, advice)
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (state, check) = (self.state.as_str(), self.check);
        write!(f, "{state:<5} {check:<13} {}", self.found)?;
        match &self.advice {
            // A line of its own, so that it can be copied.
            Some(advice) => write!(f, "\n      {:<13} do: {advice}", ""),
            None => Ok(()),
        }
    }
}
