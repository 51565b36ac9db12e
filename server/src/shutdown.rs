//! Signals to stop: the first asks the server to end in good order, the
//! second ends the process.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit codes that shells give for these signals.
const INTERRUPTED: i32 = 130;
const TERMINATED: i32 = 143;

/// A token that is cancelled by the first SIGINT or SIGTERM. The second one
/// ends the process at once, with code 130 or 143. Needs a tokio runtime.
///
/// # Errors
/// Where the signals cannot be listened to.
pub fn on_signals() -> io::Result<CancellationToken> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terminations = signal(SignalKind::terminate())?;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        loop {
            let code = tokio::select! {
                _ = interrupts.recv() => INTERRUPTED,
                _ = terminations.recv() => TERMINATED,
            };
            if token.is_cancelled() {
                tracing::warn!("a second signal: the server ends at once");
                std::process::exit(code);
            }
            tracing::info!("the server stops; a second signal ends it at once");
            token.cancel();
        }
    });
    Ok(shutdown)
}
