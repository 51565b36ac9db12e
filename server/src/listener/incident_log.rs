//! Limits the rate at which incidents are logged that clients can cause at will.

use std::time::{Duration, Instant};

/// Minimum time between two lines: a log of a day stays readable.
const INTERVAL: Duration = Duration::from_secs(60);

/// Decides which incidents of one kind are logged.
#[derive(Debug, Default)]
pub(super) struct IncidentLog {
    /// Time of the last line.
    logged: Option<Instant>,
    /// Incidents since then.
    since_last: u64,
}

impl IncidentLog {
    /// Counts an incident. If it is to be logged, returns the number of incidents
    /// since the last line, including this one.
    pub(super) fn occurred(&mut self, now: Instant) -> Option<u64> {
        self.since_last += 1;
        let is_due = |logged: Instant| now.saturating_duration_since(logged) >= INTERVAL;
        if !self.logged.is_none_or(is_due) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.since_last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incidents_are_logged_once_a_minute_with_their_number() {
        let start = Instant::now();
        let mut log = IncidentLog::default();
        assert_eq!(log.occurred(start), Some(1));
        for second in 0..59 {
            assert_eq!(log.occurred(start + Duration::from_secs(second)), None);
        }
        assert_eq!(log.occurred(start + INTERVAL), Some(60));
        assert_eq!(log.occurred(start + INTERVAL), None);
    }
}
