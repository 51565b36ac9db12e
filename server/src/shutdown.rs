//! Signals: SIGINT and SIGTERM stop the server, the second one immediately.
//! SIGHUP stops it too if it was started from a terminal, because then it says
//! that the terminal was closed; otherwise it reloads files.

use std::fs::{self, File};
use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Exit codes that shells report for these signals.
const HUNG_UP: i32 = 129;
const INTERRUPTED: i32 = 130;
const TERMINATED: i32 = 143;

/// Requests to read changed files again, by SIGHUP. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Reload(Arc<Notify>);

impl Reload {
    /// Completes at the next request, immediately if there was one since the
    /// last call.
    pub(crate) async fn requested(&self) {
        self.0.notified().await;
    }
}

/// What signals request.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// Cancelled by the first signal to stop.
    pub shutdown: CancellationToken,
    /// SIGHUP, unless the program was started from a terminal.
    pub reload: Reload,
}

/// Handles the signals of this process. The first signal to stop cancels
/// [`Signals::shutdown`]; the second one ends the process immediately, with the
/// exit code that shells report for it. Must be called in a tokio runtime.
///
/// A SIGHUP that was ignored when the program was started, as under `nohup`,
/// stays ignored.
///
/// # Errors
/// The signal handlers cannot be installed.
pub fn on_signals() -> io::Result<Signals> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terminations = signal(SignalKind::terminate())?;
    let mut hang_ups = match hang_up_is_ignored() {
        true => None,
        false => Some(signal(SignalKind::hangup())?),
    };
    let has_terminal = File::open("/dev/tty").is_ok();
    let signals = Signals::default();
    let (token, reload) = (signals.shutdown.clone(), signals.reload.clone());
    tokio::spawn(async move {
        loop {
            let code = tokio::select! {
                _ = interrupts.recv() => INTERRUPTED,
                _ = terminations.recv() => TERMINATED,
                () = next(&mut hang_ups) => HUNG_UP,
            };
            if code == HUNG_UP && !has_terminal {
                reload.0.notify_one();
                continue;
            }
            if token.is_cancelled() {
                tracing::warn!("second signal: exiting immediately");
                std::process::exit(code);
            }
            token.cancel();
            tracing::info!("shutting down; a second signal ends the server immediately");
        }
    });
    Ok(signals)
}

/// Completes when the signal arrives; never if there is none to wait for.
async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Whether SIGHUP is ignored: bit 0 of the mask of ignored signals. Systems
/// that do not report the mask count as not ignoring it.
fn hang_up_is_ignored() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hang_up(&status))
}

fn ignores_hang_up(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_bit_of_the_mask_is_sighup() {
        assert!(ignores_hang_up("Name:\tx\nSigIgn:\t0000000000001001\n"));
        assert!(!ignores_hang_up("Name:\tx\nSigIgn:\t0000000000001000\n"));
        assert!(!ignores_hang_up("Name:\tx\n"));
    }
}
