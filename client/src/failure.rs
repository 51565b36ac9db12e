//! Defines why a command failed, with its message and its exit code.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::display;
use crate::field_names::FieldNames;

/// Delay before a call is repeated whose storage was not available, if the
/// server does not specify one.
const DEFAULT_STORAGE_DELAY: Duration = Duration::from_secs(1);

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// No connection to the server could be established.
    #[error("cannot connect to {address}: {reason}; {remedy}")]
    NoServer {
        /// The address, as a URL.
        address: String,
        /// The error of the operating system or of TLS.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The server answered with an error status.
    #[error("{}", status_text(.0, FieldNames::CONTRACT))]
    Server(Box<Status>),
    /// The server answered, but the operation did not succeed or the answer
    /// violates the contract.
    #[error("{0}")]
    Refused(String),
    /// A flag is invalid.
    #[error("{0}")]
    Usage(String),
    /// A file named on the command line cannot be read.
    #[error("cannot read {}: {reason}", file_name(path))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        reason: String,
    },
    /// Any other I/O error.
    #[error("cannot {action}: {}", io_reason(source))]
    Io {
        /// What failed; completes the sentence "cannot …".
        action: String,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The reader of standard output closed the pipe (`| head`).
    #[error("standard output is closed")]
    ClosedPipe,
    /// The time limit of `--timeout` is over.
    #[error("timed out after {} (--timeout)", display::seconds(.0.as_secs_f64()))]
    TimedOut(Duration),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// A failure with a way out of it.
    #[error("{failure}; {remedy}")]
    WithRemedy {
        /// The failure.
        failure: Box<Failure>,
        /// What to do, usually a command.
        remedy: String,
    },
    /// A bug in the client.
    #[error("internal error of the client: {0}")]
    Internal(String),
}

impl Failure {
    /// Returns the exit code: 0 success, 1 error from the server or the
    /// network, 2 invalid usage, 130 interrupted.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::ClosedPipe => 0,
            Self::NoServer { .. }
            | Self::Server(_)
            | Self::Refused(_)
            | Self::TimedOut(_)
            | Self::Io { .. }
            | Self::Internal(_) => 1,
            Self::Usage(_) | Self::Unreadable { .. } => 2,
            Self::Interrupted => 130,
            Self::WithRemedy { failure, .. } => failure.exit_code(),
        }
    }

    /// Adds what the user can do about the failure.
    pub(crate) fn with_remedy(self, remedy: impl Into<String>) -> Self {
        Self::WithRemedy {
            failure: Box::new(self),
            remedy: remedy.into(),
        }
    }

    /// Returns the message for the user of a command that has these names for
    /// the fields of its requests.
    pub(crate) fn describe(&self, names: FieldNames) -> String {
        match self {
            Self::Server(status) => status_text(status, names),
            Self::Refused(message) => names.translate(message),
            Self::WithRemedy { failure, remedy } => {
                format!("{}; {remedy}", failure.describe(names))
            }
            other => other.to_string(),
        }
    }

    /// Creates the failure of reading `path`.
    pub(crate) fn unreadable(path: &Path, error: &io::Error) -> Self {
        Self::Unreadable {
            path: path.to_owned(),
            reason: io_reason(error),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Server(Box::new(status))
    }
}

/// Returns true if a text has a character that the model does not know.
pub(crate) fn is_unknown_character(status: &Status) -> bool {
    has_reason(status, "UNKNOWN_CHARACTER")
}

/// Returns true if the connection was lost or the server is shutting down, so
/// that the same call may succeed on a new connection.
pub(crate) fn connection_lost(status: &Status) -> bool {
    // Only a status created by this process has a source: it is not sent over
    // the network.
    let is_local = status.source().is_some();
    is_local || (status.code() == Code::Unavailable && storage_delay(status).is_none())
}

/// Returns the delay after which to repeat a call that was rejected because the
/// storage of the server accepts no writes; `None` for any other error.
pub(crate) fn storage_delay(status: &Status) -> Option<Duration> {
    let is_storage =
        status.code() == Code::Unavailable && has_reason(status, "STORAGE_UNAVAILABLE");
    is_storage.then(|| retry_delay(status).unwrap_or(DEFAULT_STORAGE_DELAY))
}

/// Returns the delay after which the server asks the client to retry.
pub(crate) fn retry_delay(status: &Status) -> Option<Duration> {
    status
        .get_details_retry_info()
        .and_then(|info| info.retry_delay)
}

/// Returns the machine-readable reason of a status, if it has one.
pub(crate) fn reason(status: &Status) -> Option<String> {
    status
        .get_details_error_info()
        .map(|info| info.reason)
        .filter(|reason| !reason.is_empty())
}

/// Returns true if a status has this reason.
pub(crate) fn has_reason(status: &Status, expected: &str) -> bool {
    reason(status).is_some_and(|reason| reason == expected)
}

/// Describes an I/O error on a file, without the number of the error for the
/// frequent ones.
pub(crate) fn io_reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "no such file".into(),
        ErrorKind::PermissionDenied => "permission denied".into(),
        ErrorKind::IsADirectory => "is a folder, not a file".into(),
        ErrorKind::InvalidData => "invalid UTF-8".into(),
        ErrorKind::StorageFull => "no space left on the disk".into(),
        ErrorKind::ReadOnlyFilesystem => "the file system is read-only".into(),
        _ => error.to_string(),
    }
}

/// Returns how a message refers to a file named on the command line.
fn file_name(path: &Path) -> String {
    if path == Path::new("-") {
        "standard input".into()
    } else {
        display::path(path)
    }
}

/// Returns what helps against an error, if it is the same for all commands.
fn remedy(status: &Status) -> Option<&'static str> {
    if status.code() == Code::Unauthenticated {
        return Some("use --token-file FILE or CHARLSTM_TOKEN_FILE to send a token");
    }
    let remedy = match reason(status)?.as_str() {
        "NO_MODELS" => "train one with `charlstm-client train --text FILE --model NAME`",
        "MODEL_NOT_FOUND" => "`charlstm-client models list` lists the models",
        "TRAINING_NOT_FOUND" => "`charlstm-client trainings list` lists the trainings",
        "SESSION_NOT_FOUND" => "`charlstm-client sessions list` lists the sessions",
        "SESSION_BUSY" => "wait for the other call, or use another session",
        "POSITION_MISMATCH" => "another client has used the session; repeat the command",
        "DISK_FULL" => "delete models with `charlstm-client models delete`, or free disk space",
        _ => return None,
    };
    Some(remedy)
}

/// Returns the message of a status, with the field violations and the retry
/// delay that it does not mention itself.
fn status_text(status: &Status, names: FieldNames) -> String {
    let violations = status
        .get_details_bad_request()
        .map_or_else(Vec::new, |details| details.field_violations);
    let message = status.message();
    // "FIELD: what is wrong" is the usual form of a message.
    let translated = violations
        .iter()
        .find_map(|violation| {
            let rest = message.strip_prefix(&violation.field)?.strip_prefix(':')?;
            let name = names.name(&violation.field);
            Some(format!("{name}:{}", names.translate(rest)))
        })
        .unwrap_or_else(|| names.translate(message));

    let mut text = match (status.code(), message) {
        (Code::Unimplemented, "") => "the server does not support this call".into(),
        (Code::Unimplemented, _) => format!("the server does not support this call: {translated}"),
        (code, "") => format!("{code:?}"),
        _ if status.source().is_some() => {
            format!("lost the connection to the server: {message}")
        }
        _ => translated,
    };
    if let Some(remedy) = remedy(status) {
        text.push_str(&format!("; {remedy}"));
    }
    for violation in &violations {
        if !message.contains(&violation.description) {
            text.push_str(&format!(
                "\n  {}: {}",
                names.name(&violation.field),
                names.translate(&violation.description)
            ));
        }
    }
    if let Some(delay) = retry_delay(status) {
        text.push_str(&format!(
            "; try again in {}",
            display::seconds(delay.as_secs_f64())
        ));
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;
    use tonic_types::ErrorDetails;

    use super::*;
    use crate::args::CommandLine;

    fn names(arguments: &[&str]) -> FieldNames {
        let line = ["charlstm-client"].iter().chain(arguments);
        FieldNames::of_command(&CommandLine::try_parse_from(line).unwrap().command)
    }

    /// A status as the server creates it for an invalid field.
    fn invalid(field: &str, description: &str) -> Failure {
        let details = ErrorDetails::with_bad_request_violation(field, description);
        let message = format!("{field}: {description}");
        Status::with_error_details(Code::InvalidArgument, message, details).into()
    }

    #[test]
    fn an_error_of_a_disk_does_not_name_a_temporary_file() {
        let wrapped = io::Error::new(ErrorKind::StorageFull, "os error 28 at path \"/x/.tmp\"");
        assert_eq!(io_reason(&wrapped), "no space left on the disk");
        let original = io::Error::from_raw_os_error(28);
        assert_eq!(io_reason(&original), "no space left on the disk");
    }

    #[test]
    fn a_saturated_server_reports_when_to_retry() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(2)));
        let status =
            Status::with_error_details(Code::ResourceExhausted, "the queue is full", details);
        let failure = Failure::from(status);
        assert_eq!(failure.to_string(), "the queue is full; try again in 2.0 s");
        assert_eq!(failure.exit_code(), 1);
    }

    #[test]
    fn an_error_says_which_command_helps() {
        let details = ErrorDetails::with_error_info("NO_MODELS", "charlstm.v1", []);
        let status = Status::with_error_details(Code::NotFound, "there is no model", details);
        assert_eq!(
            Failure::from(status).to_string(),
            "there is no model; train one with `charlstm-client train --text FILE --model NAME`"
        );
        let token = Failure::from(Status::unauthenticated("a token is needed"));
        assert!(token.to_string().contains("--token-file FILE"), "{token}");
    }

    #[test]
    fn an_invalid_field_is_reported_by_its_flag() {
        let generate = names(&["generate", "--prime", "p"]);
        let train = names(&["train", "--text", "-", "--model", "m"]);
        for (names, field, description, expected) in [
            (
                generate,
                "max_chars",
                "must be 0 to 1000000, is 1000001",
                "--length: must be 0 to 1000000, is 1000001",
            ),
            (
                generate,
                "sampling.top_p",
                "must be over 0 and at most 1, is 3",
                "--top-p: must be over 0 and at most 1, is 3",
            ),
            (
                generate,
                "stop[1]",
                "must not be empty",
                "--stop: must not be empty",
            ),
            (
                train,
                "corpus",
                "the model does not know 'é'; extend_vocabulary adds it",
                "--text: the model does not know 'é'; --extend-vocabulary adds it",
            ),
        ] {
            let failure = invalid(field, description);
            assert_eq!(failure.describe(names), expected);
        }
    }

    #[test]
    fn a_violation_that_the_message_omits_is_appended_once() {
        let train = names(&["train", "--text", "-", "--model", "m"]);
        let details = ErrorDetails::with_bad_request_violation("clip_norm", "must be over 0");
        let status = Status::with_error_details(Code::InvalidArgument, "bad spec", details);
        assert_eq!(
            Failure::from(status).describe(train),
            "bad spec\n  --clip-norm: must be over 0"
        );
        let mentioned = invalid("clip_norm", "must be over 0");
        assert_eq!(mentioned.describe(train), "--clip-norm: must be over 0");
        assert_eq!(mentioned.to_string(), "clip_norm: must be over 0");
    }

    #[test]
    fn an_unknown_character_is_recognised_by_its_reason() {
        let mut details = ErrorDetails::with_bad_request_violation("prime", "'é' is unknown");
        let without = Status::with_error_details(
            Code::InvalidArgument,
            "prime: character 'é' is not in the model's vocabulary",
            details.clone(),
        );
        assert!(!is_unknown_character(&without));
        details.set_error_info("UNKNOWN_CHARACTER", "charlstm.v1", []);
        let with = Status::with_error_details(Code::InvalidArgument, "other words", details);
        assert!(is_unknown_character(&with));
    }

    #[test]
    fn a_broken_connection_counts_as_lost_and_an_error_of_the_server_does_not() {
        assert!(connection_lost(&Status::unavailable("shutting down")));
        assert!(connection_lost(&Status::from_error(Box::new(
            io::Error::other("connection reset")
        ))));
        assert!(!connection_lost(&Status::internal("a fault")));
        assert!(!connection_lost(&Status::not_found("no model")));
        let details = ErrorDetails::with_error_info("STORAGE_UNAVAILABLE", "charlstm.v1", []);
        let storage = Status::with_error_details(Code::Unavailable, "disk full", details);
        assert!(!connection_lost(&storage));
        assert_eq!(storage_delay(&storage), Some(DEFAULT_STORAGE_DELAY));
        assert_eq!(storage_delay(&Status::unavailable("stopping")), None);
    }

    #[test]
    fn a_closed_pipe_exits_with_0_and_ctrl_c_with_130() {
        assert_eq!(Failure::ClosedPipe.exit_code(), 0);
        assert_eq!(Failure::Interrupted.exit_code(), 130);
        assert_eq!(Failure::Usage("no".into()).exit_code(), 2);
    }
}
