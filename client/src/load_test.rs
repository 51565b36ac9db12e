//! Collects the measurements of a load test and summarizes them. Performs no
//! I/O.
//!
//! The client shares the machine with the server that it measures, so each
//! message costs as little as possible: two counters and an entry in a
//! histogram of fixed size.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Upper limit of the histograms, in microseconds. A longer latency counts as
/// this one: beyond a minute, the exact value no longer matters.
const MAX_MICROSECONDS: u64 = 60_000_000;

/// Significant digits of the histograms: an error of 0.1 % for about 70 kB.
const DIGITS: u8 = 3;

/// The measurements of one stream, or of several together.
pub(crate) struct LoadStats {
    chars: u64,
    messages: u64,
    generations: u64,
    refused: u64,
    /// Time from a call to its first text.
    first_microseconds: Histogram<u32>,
    /// Time from one text to the next.
    between_microseconds: Histogram<u32>,
    /// Time from the last text of a call to its end.
    finish_microseconds: Histogram<u32>,
}

/// The result of a load test.
pub(crate) struct LoadSummary {
    /// Duration of the measurement.
    pub(crate) seconds: f64,
    /// Characters received.
    pub(crate) chars: u64,
    /// Messages with text received.
    pub(crate) messages: u64,
    /// Calls that were completed.
    pub(crate) generations: u64,
    /// Calls that were rejected because the server was saturated.
    pub(crate) refused: u64,
    pub(crate) chars_per_second: f64,
    pub(crate) chars_per_message: f64,
    /// Time to first character.
    pub(crate) first_microseconds: Quantiles,
    /// Inter-character latency (between messages, if they hold several).
    pub(crate) between_microseconds: Quantiles,
    /// Time from the last text of a call to its end. In sessions, it includes
    /// the commit.
    pub(crate) finish_microseconds: Quantiles,
}

/// The distribution of a latency.
pub(crate) struct Quantiles {
    pub(crate) count: u64,
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl LoadStats {
    /// Creates empty statistics.
    pub(crate) fn new() -> Self {
        let histogram = || {
            Histogram::new_with_bounds(1, MAX_MICROSECONDS, DIGITS)
                .expect("the bounds are valid constants")
        };
        Self {
            chars: 0,
            messages: 0,
            generations: 0,
            refused: 0,
            first_microseconds: histogram(),
            between_microseconds: histogram(),
            finish_microseconds: histogram(),
        }
    }

    /// Records the first text of a call, `latency` after the call.
    pub(crate) fn record_first_text(&mut self, text: &str, latency: Duration) {
        record(&mut self.first_microseconds, latency);
        self.count_text(text);
    }

    /// Records another text, `latency` after the previous one.
    pub(crate) fn record_next_text(&mut self, text: &str, latency: Duration) {
        record(&mut self.between_microseconds, latency);
        self.count_text(text);
    }

    /// Records a completed call, which ended `latency` after its last text.
    pub(crate) fn record_generation(&mut self, latency: Duration) {
        record(&mut self.finish_microseconds, latency);
        self.generations += 1;
    }

    /// Records a rejected call.
    pub(crate) fn record_refusal(&mut self) {
        self.refused += 1;
    }

    /// Adds the measurements of another stream.
    pub(crate) fn add(&mut self, other: &Self) {
        self.chars += other.chars;
        self.messages += other.messages;
        self.generations += other.generations;
        self.refused += other.refused;
        for (sum, addend) in [
            (&mut self.first_microseconds, &other.first_microseconds),
            (&mut self.between_microseconds, &other.between_microseconds),
            (&mut self.finish_microseconds, &other.finish_microseconds),
        ] {
            sum.add(addend)
                .expect("all histograms have the same bounds");
        }
    }

    /// Summarizes measurements that took `seconds`.
    pub(crate) fn summary(&self, seconds: f64) -> LoadSummary {
        LoadSummary {
            seconds,
            chars: self.chars,
            messages: self.messages,
            generations: self.generations,
            refused: self.refused,
            chars_per_second: self.chars as f64 / seconds,
            chars_per_message: self.chars as f64 / self.messages.max(1) as f64,
            first_microseconds: quantiles(&self.first_microseconds),
            between_microseconds: quantiles(&self.between_microseconds),
            finish_microseconds: quantiles(&self.finish_microseconds),
        }
    }

    fn count_text(&mut self, text: &str) {
        self.messages += 1;
        self.chars += text.chars().count() as u64;
    }
}

fn record(histogram: &mut Histogram<u32>, latency: Duration) {
    // In range: 2^64 microseconds are 500,000 years.
    histogram.saturating_record(latency.as_micros() as u64);
}

fn quantiles(histogram: &Histogram<u32>) -> Quantiles {
    let at = |quantile| histogram.value_at_quantile(quantile) as f64;
    Quantiles {
        count: histogram.len(),
        mean: histogram.mean(),
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        max: histogram.max() as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_several_streams_have_the_quantiles_of_all() {
        let (mut one, mut other) = (LoadStats::new(), LoadStats::new());
        for microseconds in 1..=50 {
            one.record_next_text("a", Duration::from_micros(microseconds));
            other.record_next_text("é", Duration::from_micros(microseconds + 50));
        }
        other.record_first_text("twenty characters...", Duration::from_micros(7));
        one.add(&other);
        let summary = one.summary(2.0);
        assert_eq!(summary.chars, 120);
        assert_eq!(summary.chars_per_second, 60.0);
        assert_eq!(summary.messages, 101);
        assert_eq!(summary.first_microseconds.count, 1);
        assert_eq!(summary.between_microseconds.count, 100);
        assert_eq!(summary.between_microseconds.p50, 50.0);
        assert_eq!(summary.between_microseconds.p99, 99.0);
        assert_eq!(summary.between_microseconds.max, 100.0);
    }

    #[test]
    fn a_latency_above_the_limit_is_counted_at_the_limit() {
        let mut stats = LoadStats::new();
        stats.record_first_text("a", Duration::from_secs(3600));
        assert_eq!(stats.summary(1.0).first_microseconds.count, 1);
    }
}
