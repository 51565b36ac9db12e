//! One stream of a load test: calls `Generate` again and again and measures
//! when text comes. It shares the machine with the server it measures, so it
//! does as little as it can for each message: it reads the clock, counts, and
//! adds to a histogram of fixed size.

use std::time::{Duration, Instant};

use charlstm_proto::v1::GenerateRequest;
use charlstm_proto::v1::generate_response::Event;
use hdrhistogram::Histogram;
use tonic::{Code, Status};

use crate::connect::{Connection, Service};
use crate::exit::{self, Failure};

use charlstm_proto::v1::generation_service_client::GenerationServiceClient;

/// Longest time that is told apart: a minute, in microseconds.
const LONGEST_MICROSECONDS: u64 = 60_000_000;

/// Wait after a refusal that does not say when to come again.
const REFUSED_WAIT: Duration = Duration::from_millis(100);

/// What one stream, or all of them together, have measured.
pub(crate) struct Load {
    chars: u64,
    messages: u64,
    generations: u64,
    refused: u64,
    /// From the call to its first text, in microseconds.
    first: Histogram<u32>,
    /// From one text to the next, in microseconds.
    between: Histogram<u32>,
}

/// The figures of a measurement.
pub(crate) struct Summary {
    pub(crate) seconds: f64,
    pub(crate) chars: u64,
    pub(crate) messages: u64,
    pub(crate) generations: u64,
    pub(crate) refused: u64,
    pub(crate) chars_per_second: f64,
    pub(crate) chars_per_message: f64,
    pub(crate) first: Quantiles,
    pub(crate) between: Quantiles,
}

/// How times are distributed, in microseconds.
pub(crate) struct Quantiles {
    pub(crate) count: u64,
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Load {
    pub(crate) fn new() -> Self {
        // Three digits: a permille of error, in some 70 KB each.
        let histogram = || {
            Histogram::new_with_bounds(1, LONGEST_MICROSECONDS, 3)
                .expect("the bounds are constants that fit")
        };
        Self {
            chars: 0,
            messages: 0,
            generations: 0,
            refused: 0,
            first: histogram(),
            between: histogram(),
        }
    }

    /// Adds what another stream has measured.
    pub(crate) fn add(&mut self, other: &Self) {
        self.chars += other.chars;
        self.messages += other.messages;
        self.generations += other.generations;
        self.refused += other.refused;
        for (mine, theirs) in [
            (&mut self.first, &other.first),
            (&mut self.between, &other.between),
        ] {
            mine.add(theirs)
                .expect("all histograms have the same bounds");
        }
    }

    /// The figures, over a time of `seconds`.
    pub(crate) fn summary(&self, seconds: f64) -> Summary {
        Summary {
            seconds,
            chars: self.chars,
            messages: self.messages,
            generations: self.generations,
            refused: self.refused,
            chars_per_second: self.chars as f64 / seconds,
            chars_per_message: self.chars as f64 / self.messages.max(1) as f64,
            first: quantiles(&self.first),
            between: quantiles(&self.between),
        }
    }
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

/// Makes `request` once and waits for its end.
pub(crate) async fn once(connection: &Connection, request: GenerateRequest) -> Result<(), Failure> {
    generation(&mut connection.generation(), request, &mut Load::new())
        .await
        .map_err(Failure::from)
}

/// Makes `request` again and again until `deadline`. A call that is under way
/// then is dropped; what came until then counts.
pub(crate) async fn until(
    deadline: Instant,
    connection: Connection,
    request: GenerateRequest,
) -> Result<Load, Failure> {
    let mut load = Load::new();
    let endless = endless(connection, request, &mut load);
    // One timer for the whole time, not one for each message.
    let outcome = tokio::time::timeout_at(deadline.into(), endless).await;
    match outcome {
        Ok(Err(status)) => Err(status.into()),
        Ok(Ok(())) | Err(_) => Ok(load),
    }
}

async fn endless(
    connection: Connection,
    request: GenerateRequest,
    load: &mut Load,
) -> Result<(), Status> {
    let mut client = connection.generation();
    loop {
        match generation(&mut client, request.clone(), load).await {
            Ok(()) => load.generations += 1,
            Err(status) if status.code() == Code::ResourceExhausted => {
                load.refused += 1;
                tokio::time::sleep(exit::retry_after(&status).unwrap_or(REFUSED_WAIT)).await;
            }
            Err(status) => return Err(status),
        }
    }
}

/// One call, from its beginning to its end.
async fn generation(
    client: &mut GenerationServiceClient<Service>,
    request: GenerateRequest,
    load: &mut Load,
) -> Result<(), Status> {
    let mut last = Instant::now();
    let mut first = true;
    let mut stream = client.generate(request).await?.into_inner();
    while let Some(response) = stream.message().await? {
        let Some(Event::Text(text)) = response.event else {
            continue;
        };
        let now = Instant::now();
        // A time beyond the longest counts as the longest.
        let microseconds = (now - last).as_micros() as u64;
        let histogram = if first {
            &mut load.first
        } else {
            &mut load.between
        };
        histogram.saturating_record(microseconds);
        (first, last) = (false, now);
        load.messages += 1;
        load.chars += text.text.chars().count() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_add_up_and_give_quantiles_of_all() {
        let (mut one, mut other) = (Load::new(), Load::new());
        for time in 1..=50 {
            one.between.saturating_record(time);
            other.between.saturating_record(time + 50);
        }
        (one.chars, one.messages) = (60, 50);
        (other.chars, other.messages) = (60, 50);
        one.add(&other);
        let summary = one.summary(2.0);
        assert_eq!(summary.chars_per_second, 60.0);
        assert_eq!(summary.chars_per_message, 1.2);
        assert_eq!(summary.between.count, 100);
        assert_eq!(summary.between.p50, 50.0);
        assert_eq!(summary.between.p99, 99.0);
        assert_eq!(summary.between.max, 100.0);
    }

    #[test]
    fn a_time_beyond_the_longest_is_kept_as_the_longest() {
        let mut load = Load::new();
        load.first.saturating_record(u64::MAX);
        assert_eq!(load.summary(1.0).first.count, 1);
    }
}
