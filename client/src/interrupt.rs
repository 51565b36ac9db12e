//! Delivers Ctrl-C to the command that listens for it, or to the program as a
//! whole if none does.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Number of `Interrupts` that exist.
static LISTENERS: AtomicUsize = AtomicUsize::new(0);

/// Receives each Ctrl-C from its creation until it is dropped. While one
/// exists, its command decides what Ctrl-C means; otherwise Ctrl-C ends the
/// program.
pub(crate) struct Interrupts {
    signal: Option<Signal>,
}

/// Receives each Ctrl-C that arrives while no command listens.
pub(crate) struct UnclaimedInterrupts {
    signal: Option<Signal>,
}

impl Interrupts {
    /// Starts to listen.
    pub(crate) fn listen() -> Self {
        LISTENERS.fetch_add(1, Ordering::SeqCst);
        Self { signal: ctrl_c() }
    }

    /// Waits for the next Ctrl-C. Cancel safe: a Ctrl-C between two calls is
    /// not lost.
    pub(crate) async fn next(&mut self) {
        next(&mut self.signal).await;
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        LISTENERS.fetch_sub(1, Ordering::SeqCst);
    }
}

impl UnclaimedInterrupts {
    /// Starts to listen. From now on Ctrl-C no longer ends the process by
    /// itself.
    pub(crate) fn listen() -> Self {
        Self { signal: ctrl_c() }
    }

    /// Waits for the next Ctrl-C that no command listens for.
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
    // Without a handler, Ctrl-C ends the process, which is acceptable too.
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
