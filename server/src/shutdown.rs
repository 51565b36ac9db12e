//! Signals that stop the server: the first one starts a clean shutdown, the
//! second one ends the process.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit codes that shells report for these signals.
const INTERRUPTED: i32 = 130;
const TERMINATED: i32 = 143;

/// Returns a token that the first SIGINT or SIGTERM cancels. The second signal
/// ends the process immediately, with exit code 130 or 143. Must be called in a
/// tokio runtime.
///
/// # Errors
/// The signal handlers cannot be installed.
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
                tracing::warn!("second signal: exiting immediately");
                std::process::exit(code);
            }
            tracing::info!("shutting down; a second signal ends the server immediately");
            token.cancel();
        }
    });
    Ok(shutdown)
}
