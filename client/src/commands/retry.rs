//! Decides whether and when a failed call is repeated.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tonic::Status;

use crate::display;
use crate::failure::{Failure, connection_lost, storage_delay};
use crate::output::Output;

/// Delays before the attempts after the connection was lost: the first ones
/// bridge a network hiccup, the last ones a restart of the server. About a
/// minute in total.
const DELAYS: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(100))
    .with_factor(2.2)
    .with_max_delay(Duration::from_secs(4))
    .with_max_times(19);

/// How long to wait in total for a server whose storage accepts no writes:
/// enough for somebody to free disk space, short enough for a script to notice.
const STORAGE_PATIENCE: Duration = Duration::from_secs(120);

/// Maximum number of times that a text is generated again because the storage
/// failed at its end. The server rejects calls that it could not store before
/// they generate, so this happens only if the storage fails repeatedly.
const MAX_REGENERATIONS: u32 = 2;

/// How long the failures of one call have been waited for.
pub(super) struct RetryPolicy {
    delays: ExponentialBackoff,
    storage_wait: Duration,
    regenerations: u32,
}

/// A pause before the next attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Pause {
    /// Until the server may be reachable again.
    Reconnect(Duration),
    /// Until the storage of the server may accept writes again.
    Storage(Duration),
}

impl RetryPolicy {
    pub(super) fn new() -> Self {
        Self {
            delays: DELAYS.build(),
            storage_wait: Duration::ZERO,
            regenerations: 0,
        }
    }

    /// Starts over, because an attempt made progress.
    pub(super) fn reset(&mut self) {
        *self = Self::new();
    }

    /// Returns the pause after which the same call may succeed, or `None` if it
    /// is time to give up or a repetition cannot help. `had_started` is true if
    /// the server had begun to work on the call.
    pub(super) fn pause(&mut self, status: &Status, had_started: bool) -> Option<Pause> {
        if let Some(delay) = storage_delay(status) {
            self.regenerations += u32::from(had_started);
            self.storage_wait += delay;
            let has_patience =
                self.storage_wait <= STORAGE_PATIENCE && self.regenerations <= MAX_REGENERATIONS;
            return has_patience.then_some(Pause::Storage(delay));
        }
        if connection_lost(status) {
            return self.next_delay().map(Pause::Reconnect);
        }
        None
    }

    /// Returns the delay before the next attempt to reach a server that is
    /// gone or busy, or `None` if it is time to give up.
    pub(super) fn next_delay(&mut self) -> Option<Duration> {
        self.delays.next()
    }
}

/// Returns the message about waiting `delay` for the storage of the server.
pub(super) fn storage_message(status: &Status, delay: Duration) -> String {
    format!(
        "the server's storage accepts no writes: {}; trying again in {} (for at most {})",
        status.message(),
        display::seconds(delay.as_secs_f64()),
        display::seconds(STORAGE_PATIENCE.as_secs_f64()),
    )
}

/// Makes a call that changes a session, and repeats it while the storage of the
/// server accepts no writes: such a call was rejected before it did anything. A
/// lost connection is an error, because the change may have happened.
pub(super) async fn while_storage_fails<Call, Response>(
    output: Output,
    call: impl Fn() -> Call,
) -> Result<Response, Failure>
where
    Call: Future<Output = Result<tonic::Response<Response>, Status>>,
{
    let mut policy = RetryPolicy::new();
    loop {
        let status = match call().await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => status,
        };
        let pause = storage_delay(&status).and_then(|_| policy.pause(&status, false));
        let Some(Pause::Storage(delay)) = pause else {
            return Err(status.into());
        };
        output.note(&storage_message(&status, delay));
        tokio::time::sleep(delay).await;
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    fn storage_unavailable(seconds: u64) -> Status {
        let delay = Duration::from_secs(seconds);
        let mut details = ErrorDetails::with_retry_info(Some(delay));
        details.set_error_info("STORAGE_UNAVAILABLE", "charlstm.v1", []);
        Status::with_error_details(Code::Unavailable, "the disk is full", details)
    }

    #[test]
    fn the_delays_of_a_lost_connection_grow_and_end_after_about_a_minute() {
        let delays: Vec<_> = RetryPolicy::new().delays.collect();
        assert!(delays.is_sorted());
        assert_eq!(delays[0], Duration::from_millis(100));
        let total: Duration = delays.iter().sum();
        assert!((55..65).contains(&total.as_secs()), "{delays:?}");
    }

    #[test]
    fn storage_is_waited_for_as_long_as_the_server_says_and_for_two_minutes_in_total() {
        let mut policy = RetryPolicy::new();
        let status = storage_unavailable(40);
        let pause = Some(Pause::Storage(Duration::from_secs(40)));
        for _ in 0..3 {
            assert_eq!(policy.pause(&status, false), pause);
        }
        assert_eq!(policy.pause(&status, false), None);
        policy.reset();
        assert_eq!(policy.pause(&status, false), pause);
        assert_eq!(policy.pause(&storage_unavailable(3600), false), None);
    }

    #[test]
    fn a_text_is_not_generated_again_and_again_for_a_storage_that_keeps_failing() {
        let mut policy = RetryPolicy::new();
        let status = storage_unavailable(1);
        assert!(policy.pause(&status, true).is_some());
        assert!(policy.pause(&status, true).is_some());
        assert_eq!(policy.pause(&status, true), None);
    }

    #[test]
    fn an_error_that_is_not_transient_is_not_waited_for() {
        let mut policy = RetryPolicy::new();
        assert_eq!(policy.pause(&Status::not_found("no model"), false), None);
        let lost = policy.pause(&Status::unavailable("shutting down"), false);
        assert_eq!(lost, Some(Pause::Reconnect(Duration::from_millis(100))));
    }
}
