//! Defines how often a call is repeated after the connection was lost.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Delays before the attempts: the first ones bridge a network hiccup, the last
/// ones a restart of the server. About 16 seconds in total.
const DELAYS: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(100))
    .with_factor(2.2)
    .with_max_delay(Duration::from_secs(4))
    .with_max_times(8);

/// Returns the delays before the next attempts; when there is none left, it is
/// time to give up. After an attempt that made progress, the caller starts over
/// with new delays.
pub(super) fn delays() -> ExponentialBackoff {
    DELAYS.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delays_grow_and_end_after_about_16_seconds() {
        let delays: Vec<_> = delays().collect();
        assert!(delays.is_sorted());
        assert_eq!(delays[0], Duration::from_millis(100));
        let total: Duration = delays.iter().sum();
        assert!((15..18).contains(&total.as_secs()), "{delays:?}");
    }
}
