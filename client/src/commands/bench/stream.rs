//! Runs one stream of a load test: calls `Generate` repeatedly and measures
//! when text arrives.

use std::time::{Duration, Instant};

use charlstm_proto::v1::GenerateRequest;
use charlstm_proto::v1::generate_response::Event;
use charlstm_proto::v1::generation_service_client::GenerationServiceClient;
use tonic::{Code, Status};

use crate::connection::{AuthorizedChannel, Connection};
use crate::failure::{self, Failure};
use crate::load_test::LoadStats;

/// Delay after a rejected call if the server does not specify one.
const DEFAULT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Makes one call and waits for its end, without measuring.
pub(super) async fn run_once(
    connection: &Connection,
    request: GenerateRequest,
) -> Result<(), Failure> {
    generate(&mut connection.generation(), request, &mut LoadStats::new()).await?;
    Ok(())
}

/// Repeats a call until `deadline` and returns the measurements. A call that
/// is running at the deadline is cancelled; its text until then counts.
pub(super) async fn run_until(
    deadline: Instant,
    connection: Connection,
    request: GenerateRequest,
) -> Result<LoadStats, Failure> {
    let mut stats = LoadStats::new();
    let calls = repeat(connection, request, &mut stats);
    // One timer for all calls costs less than a check per message.
    match tokio::time::timeout_at(deadline.into(), calls).await {
        Ok(Err(status)) => Err(status.into()),
        Ok(Ok(())) | Err(_) => Ok(stats),
    }
}

/// Repeats a call until it fails with anything but RESOURCE_EXHAUSTED.
async fn repeat(
    connection: Connection,
    request: GenerateRequest,
    stats: &mut LoadStats,
) -> Result<(), Status> {
    let mut client = connection.generation();
    loop {
        match generate(&mut client, request.clone(), stats).await {
            Ok(finish) => stats.record_generation(finish),
            Err(status) if status.code() == Code::ResourceExhausted => {
                stats.record_refusal();
                let delay = failure::retry_delay(&status).unwrap_or(DEFAULT_RETRY_DELAY);
                tokio::time::sleep(delay).await;
            }
            Err(status) => return Err(status),
        }
    }
}

/// Makes one call and records each text. Returns the time from the last text to
/// the end of the call.
async fn generate(
    client: &mut GenerationServiceClient<AuthorizedChannel>,
    request: GenerateRequest,
    stats: &mut LoadStats,
) -> Result<Duration, Status> {
    let mut previous = Instant::now();
    let mut is_first = true;
    let mut stream = client.generate(request).await?.into_inner();
    while let Some(response) = stream.message().await? {
        let Some(Event::Text(text)) = response.event else {
            continue;
        };
        let now = Instant::now();
        if is_first {
            stats.record_first_text(&text.text, now - previous);
        } else {
            stats.record_next_text(&text.text, now - previous);
        }
        (is_first, previous) = (false, now);
    }
    Ok(previous.elapsed())
}
