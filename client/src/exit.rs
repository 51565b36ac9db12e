//! How a run ends: every reason, its words and its exit code. What is printed
//! where is in `output`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::human;

/// Why a command did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Nobody listens at the address, or the connection could not be made.
    #[error(
        "no server answers at {address}: {reason}; start one with `charlstm-server`, \
         or name another one with --addr URL or CHARLSTM_ADDR"
    )]
    NoServer {
        /// The address as it was used.
        address: String,
        /// What the operating system or TLS said.
        reason: String,
    },
    /// The server answered with an error status.
    #[error("{}", status_text(.0))]
    Server(Box<Status>),
    /// The server answered, but not as the contract says or not with success.
    #[error("{0}")]
    Refused(String),
    /// A flag or its value cannot be right.
    #[error("{0}")]
    Usage(String),
    /// A file that the command line names cannot be read.
    #[error("cannot read {}: {reason}", file_name(path))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Some other input or output failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, as in "cannot …".
        what: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The reader of standard output has left (`| head`).
    #[error("standard output is closed")]
    ClosedPipe,
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// A fault of the client itself.
    #[error("the client failed: {0}")]
    Internal(String),
}

impl Failure {
    /// The exit code: 0 done, 1 the server or the network said no, 2 wrong
    /// usage, 130 interrupted.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::ClosedPipe => 0,
            Self::NoServer { .. }
            | Self::Server(_)
            | Self::Refused(_)
            | Self::Io { .. }
            | Self::Internal(_) => 1,
            Self::Usage(_) | Self::Unreadable { .. } => 2,
            Self::Interrupted => 130,
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Server(Box::new(status))
    }
}

/// Commands that listen for Ctrl-C themselves just now.
static LISTENERS: AtomicUsize = AtomicUsize::new(0);

/// Every Ctrl-C from a moment on; none is missed between two looks. While a
/// command has one, Ctrl-C means what the command says; at any other moment it
/// ends the program at once.
pub(crate) struct Interrupts {
    signal: Option<Signal>,
}

/// Ctrl-C as the program as a whole hears it.
pub(crate) struct Unclaimed {
    signal: Option<Signal>,
}

impl Interrupts {
    /// Listens from now on, until this is dropped.
    pub(crate) fn listen() -> Self {
        LISTENERS.fetch_add(1, Ordering::SeqCst);
        Self { signal: ctrl_c() }
    }

    /// Resolves at the next Ctrl-C that was not told yet.
    pub(crate) async fn next(&mut self) {
        next(&mut self.signal).await;
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        LISTENERS.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Unclaimed {
    /// Listens from now on. Ctrl-C no longer ends the process by itself.
    pub(crate) fn listen() -> Self {
        Self { signal: ctrl_c() }
    }

    /// Resolves at a Ctrl-C that no command listens for.
    pub(crate) async fn next(&mut self) {
        loop {
            next(&mut self.signal).await;
            if LISTENERS.load(Ordering::SeqCst) == 0 {
                return;
            }
        }
    }
}

fn ctrl_c() -> Option<Signal> {
    // Without a handler the signal ends the process: right as well.
    signal(SignalKind::interrupt()).ok()
}

async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// True where the status was made on this side because the connection broke,
/// or where the server says that it is going away.
pub(crate) fn lost_connection(status: &Status) -> bool {
    // Only a status that was made here has a source; it cannot be sent.
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}

/// When the server says that the call should be repeated.
pub(crate) fn retry_after(status: &Status) -> Option<Duration> {
    status
        .get_details_retry_info()
        .and_then(|info| info.retry_delay)
}

/// The machine-readable reason of a status, where it has one.
pub(crate) fn reason(status: &Status) -> Option<String> {
    status
        .get_details_error_info()
        .map(|info| info.reason)
        .filter(|reason| !reason.is_empty())
}

/// A file as the command line names it.
fn file_name(path: &Path) -> String {
    if path == Path::new("-") {
        "standard input".into()
    } else {
        path.display().to_string()
    }
}

/// A status in words: its message, the violations that the message leaves
/// out, and when to try again.
fn status_text(status: &Status) -> String {
    let mut text = match status.message() {
        "" => format!("{:?}", status.code()),
        message if std::error::Error::source(status).is_some() => {
            format!("the connection to the server broke: {message}")
        }
        message => message.to_owned(),
    };
    if status.code() == Code::Unimplemented {
        text = match status.message() {
            "" => "this server does not offer that yet".into(),
            message => format!("this server does not offer that yet: {message}"),
        };
    }
    if status.code() == Code::Unauthenticated {
        text.push_str(" (--token-file FILE sends a token)");
    }
    for violation in status
        .get_details_bad_request()
        .into_iter()
        .flat_map(|details| details.field_violations)
    {
        if !text.contains(&violation.description) {
            text.push_str(&format!(
                "\n  {}: {}",
                violation.field, violation.description
            ));
        }
    }
    if let Some(delay) = retry_after(status) {
        text.push_str(&format!(
            "; try again in {}",
            human::seconds(delay.as_secs_f64())
        ));
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_full_server_says_when_to_try_again() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(2)));
        let status =
            Status::with_error_details(Code::ResourceExhausted, "the queue is full", details);
        let failure = Failure::from(status);
        assert_eq!(failure.to_string(), "the queue is full; try again in 2.0 s");
        assert_eq!(failure.exit_code(), 1);
    }

    #[test]
    fn a_violation_that_the_message_tells_is_not_repeated() {
        let details = ErrorDetails::with_bad_request_violation("epochs", "must be at least 1");
        let told = Status::with_error_details(
            Code::InvalidArgument,
            "epochs: must be at least 1",
            details.clone(),
        );
        assert_eq!(
            Failure::from(told).to_string(),
            "epochs: must be at least 1"
        );
        let untold = Status::with_error_details(Code::InvalidArgument, "bad spec", details);
        assert_eq!(
            Failure::from(untold).to_string(),
            "bad spec\n  epochs: must be at least 1"
        );
    }

    #[test]
    fn only_a_broken_connection_counts_as_lost() {
        assert!(lost_connection(&Status::unavailable("stopping")));
        assert!(lost_connection(&Status::from_error(Box::new(
            io::Error::other("connection reset")
        ))));
        assert!(!lost_connection(&Status::internal("a fault")));
        assert!(!lost_connection(&Status::not_found("no model")));
    }

    #[test]
    fn a_closed_pipe_is_a_quiet_end_and_ctrl_c_is_130() {
        assert_eq!(Failure::ClosedPipe.exit_code(), 0);
        assert_eq!(Failure::Interrupted.exit_code(), 130);
        assert_eq!(Failure::Usage("no".into()).exit_code(), 2);
    }
}
