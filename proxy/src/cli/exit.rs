//! How a command ends when it does not end well.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::admin::client::ClientError;
use crate::app::RunError;
use crate::config::ConfigFailure;

/// Exit codes, after sysexits.h.
pub(super) const FAILED: u8 = 1;
/// The command line makes no sense.
pub(super) const USAGE: u8 = 2;
/// No sidecar can be reached (EX_UNAVAILABLE).
pub(super) const UNAVAILABLE: u8 = 69;
/// Not now (EX_TEMPFAIL).
pub(super) const TRY_AGAIN: u8 = 75;
/// The configuration is wrong (EX_CONFIG).
pub(super) const CONFIG: u8 = 78;

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
    hint: Option<String>,
    /// Whether the message stands for itself, as a rendered diagnostic does.
    bare: bool,
}

impl Failure {
    /// A failure with an exit code.
    pub(super) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, bare: false }
    }

    /// A failure of the configuration, as it was rendered.
    pub(super) fn config(rendered: impl Into<String>) -> Self {
        Self { code: CONFIG, message: rendered.into(), hint: None, bare: true }
    }

    /// A failure that has printed all there is to say.
    pub(super) fn silent(code: u8) -> Self {
        Self { code, message: String::new(), hint: None, bare: true }
    }

    /// Adds what to do about it.
    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }

    /// Prints it to standard error.
    pub fn report(&self) -> ExitCode {
        let mut text = match (self.bare, self.message.is_empty()) {
            (_, true) => String::new(),
            (true, _) => format!("{}\n", self.message.trim_end()),
            (false, _) => format!("error: {}\n", self.message),
        };
        if let Some(hint) = &self.hint {
            text += &format!("hint: {hint}\n");
        }
        // There is nowhere to complain to.
        let _ = io::stderr().write_all(text.as_bytes());
        ExitCode::from(self.code)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        match error {
            ClientError::Unreachable { .. } => Self::new(UNAVAILABLE, message)
                .hint("start one with `qudag-sidecar run`, or give its address with --admin"),
            ClientError::Broken { .. } => {
                Self::new(UNAVAILABLE, message).hint("is it a sidecar's admin API that listens there?")
            }
            ClientError::Refused(refusal) => {
                let code = match refusal.status.as_u16() {
                    422 => CONFIG,
                    503 => TRY_AGAIN,
                    _ => FAILED,
                };
                Self { code, message, hint: refusal.hint, bare: false }
            }
        }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Config(failure) => Self::from(*failure),
            RunError::Refused(problems) => Self::new(CONFIG, problems.join("\n")),
            RunError::Process { .. } => Self::new(FAILED, error.to_string()),
        }
    }
}

impl From<ConfigFailure> for Failure {
    fn from(failure: ConfigFailure) -> Self {
        Self::config(failure.render(super::output::colour_on_stderr()))
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::admin::client::Refusal;

    #[test]
    fn each_way_to_fail_has_its_code() {
        let refused = |status: u16| {
            let status = StatusCode::from_u16(status).unwrap();
            let refusal = Refusal { status, error: "no".into(), hint: None, problems: vec!["x".into()] };
            Failure::from(ClientError::Refused(refusal))
        };
        for (status, code) in [(401, 1), (403, 1), (404, 1), (400, 1), (422, 78), (503, 75), (500, 1)] {
            assert_eq!(refused(status).code(), code, "{status}");
        }
        assert_eq!(refused(422).message, "no\n  x");
        let gone = ClientError::Unreachable { address: "a".into(), why: "b".into() };
        assert_eq!(Failure::from(gone).code(), 69);
        let broken = ClientError::Broken { address: "a".into(), why: "b".into() };
        assert_eq!(Failure::from(broken).code(), 69);
        let wrong = crate::config::parse("version: 1\nnonsense: 1\n").unwrap_err();
        assert_eq!(Failure::from(RunError::Config(Box::new(wrong))).code(), 78);
        assert_eq!(Failure::from(RunError::Refused(vec![])).code(), 78);
        let process = RunError::Process { what: "x", why: io::Error::other("y") };
        assert_eq!(Failure::from(process).code(), 1);
    }
}
