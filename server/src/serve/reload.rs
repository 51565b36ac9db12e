//! Reloads files that have changed: principals, tokens and certificates.

use std::fmt::Display;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::shutdown::Reload;

/// Interval between two checks of the files: a change is to take effect within two
/// seconds. They are read, and not watched: notifications are lost for files on
/// network file systems and for mounted secrets, which are links.
const INTERVAL: Duration = Duration::from_secs(1);

/// Reads something again. Returns whether it has changed; if that fails, what
/// was read before stays in force. Blocks.
type ReloadStep = Box<dyn FnMut() -> Result<bool, String> + Send>;

/// What is reloaded.
pub(super) struct Reloader {
    sources: Vec<Source>,
}

struct Source {
    /// For the log.
    name: &'static str,
    step: ReloadStep,
    /// The error that was reported, if the last attempt failed.
    error: Option<String>,
}

impl Reloader {
    pub(super) fn new() -> Self {
        Self {
            sources: Vec::new(),
        }
    }

    /// Adds a step, with its name for the log.
    pub(super) fn add<E: Display + 'static>(
        &mut self,
        name: &'static str,
        mut step: impl FnMut() -> Result<bool, E> + Send + 'static,
    ) {
        self.sources.push(Source {
            name,
            step: Box::new(move || step().map_err(|error| error.to_string())),
            error: None,
        });
    }

    /// Reloads when something has changed, or on request, until `shutdown`.
    pub(super) async fn run(mut self, reload: Reload, shutdown: CancellationToken) {
        loop {
            let is_requested = tokio::select! {
                () = shutdown.cancelled() => return,
                () = reload.requested() => true,
                () = tokio::time::sleep(INTERVAL) => false,
            };
            let reloaded = tokio::task::spawn_blocking(move || {
                self.reload(is_requested);
                self
            });
            match reloaded.await {
                Ok(reloader) => self = reloader,
                Err(error) => {
                    tracing::error!(%error, "files are no longer reloaded");
                    return;
                }
            }
        }
    }

    fn reload(&mut self, is_requested: bool) {
        for source in &mut self.sources {
            source.reload(is_requested);
        }
    }
}

impl Source {
    fn reload(&mut self, is_requested: bool) {
        let name = self.name;
        match (self.step)() {
            Ok(changed) => {
                if changed || is_requested || self.error.is_some() {
                    tracing::info!(name, changed, "reloaded");
                }
                self.error = None;
            }
            // Once, and not every second.
            Err(error) if !is_requested && self.error.as_ref() == Some(&error) => {}
            Err(error) => {
                tracing::error!(
                    name,
                    error,
                    "cannot reload; what was read before stays in force"
                );
                self.error = Some(error);
            }
        }
    }
}
