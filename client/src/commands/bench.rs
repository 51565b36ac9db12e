//! `bench`: loads the server with a number of streams at a time and tells
//! how fast text comes. What a stream measures is in `load`.

use std::time::{Duration, Instant};

use charlstm_proto::v1::{GenerateRequest, ListModelsRequest, Model, Sampling};
use serde_json::{Value, json};
use tonic::Code;

use super::load::{self, Load, Summary};
use crate::args::{BenchArgs, Global};
use crate::connect::Connection;
use crate::exit::Failure;
use crate::human;
use crate::json;
use crate::output::Output;
use crate::plot::{
    self,
    load::{Figures, LoadChart},
};

/// Measures each number of streams and shows it as soon as it is known.
pub(crate) async fn run(args: BenchArgs, global: &Global, output: Output) -> Result<(), Failure> {
    let connection = Connection::open(global).await?;
    let request = request(&args, &connection).await?;
    // Loads the model, and finds a wrong request out before anything counts.
    let warm_up = GenerateRequest {
        max_chars: Some(1),
        ..request.clone()
    };
    load::once(&connection, warm_up).await?;
    if !output.json {
        output.note(&format!(
            "{} characters a call from {}, {} s each",
            args.length,
            human::quoted(&request.prime),
            args.seconds
        ));
        output.line(&heading())?;
    }
    let mut drawn = Vec::new();
    for &streams in &args.sessions {
        let connections = connections(&args, global, streams).await?;
        let measured = measure(&args, &connections, &request, streams).await?;
        output.result(
            || object(streams, connections.len(), &measured),
            || row(streams, &measured),
        )?;
        if let Some(path) = &args.plot {
            drawn.push(figures(streams, &measured));
            plot::write(path, &LoadChart::new(drawn.clone()))?;
        }
    }
    Ok(())
}

/// The call that every stream repeats.
async fn request(args: &BenchArgs, connection: &Connection) -> Result<GenerateRequest, Failure> {
    let prime = match &args.prime {
        Some(prime) => prime.clone(),
        None => known_character(&args.model, connection).await?,
    };
    Ok(GenerateRequest {
        model: args.model.clone(),
        prime,
        max_chars: Some(args.length),
        sampling: Some(Sampling {
            top_k: Some(3),
            seed: Some(args.seed),
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// A character that the model knows, so that the load test runs on any model.
async fn known_character(name: &str, connection: &Connection) -> Result<String, Failure> {
    let models = match connection.models().list_models(ListModelsRequest {}).await {
        Ok(response) => response.into_inner().models,
        Err(status) if status.code() == Code::Unimplemented => Vec::new(),
        Err(status) => return Err(status.into()),
    };
    let name = name.split('@').next().unwrap_or_default();
    let model = models
        .iter()
        .find(|model| name.is_empty() || model.name == name);
    Ok(model.map_or_else(|| "a".into(), common_character))
}

/// The first letter of the vocabulary, or its first character.
fn common_character(model: &Model) -> String {
    let vocabulary = &model.vocabulary;
    vocabulary
        .chars()
        .find(|character| character.is_lowercase())
        .or_else(|| vocabulary.chars().next())
        .map_or_else(|| "a".into(), String::from)
}

/// As many connections as `streams` need.
async fn connections(
    args: &BenchArgs,
    global: &Global,
    streams: u32,
) -> Result<Vec<Connection>, Failure> {
    let mut connections = Vec::new();
    for _ in 0..streams.div_ceil(args.streams_per_connection) {
        connections.push(Connection::open(global).await?);
    }
    Ok(connections)
}

/// Runs `streams` streams back to back for the time that is asked for.
async fn measure(
    args: &BenchArgs,
    connections: &[Connection],
    request: &GenerateRequest,
    streams: u32,
) -> Result<Summary, Failure> {
    let began = Instant::now();
    let deadline = began + Duration::from_secs(u64::from(args.seconds));
    let tasks: Vec<_> = (0..streams)
        .map(|stream| {
            let connection = connections[stream as usize % connections.len()].clone();
            let mut request = request.clone();
            if let Some(sampling) = &mut request.sampling {
                sampling.seed = Some(args.seed.wrapping_add(u64::from(stream)));
            }
            tokio::spawn(load::until(deadline, connection, request))
        })
        .collect();
    let mut total = Load::new();
    for task in tasks {
        let load = task
            .await
            .map_err(|error| Failure::Internal(error.to_string()))??;
        total.add(&load);
    }
    Ok(total.summary(began.elapsed().as_secs_f64()))
}

fn figures(sessions: u32, summary: &Summary) -> Figures {
    Figures {
        sessions,
        chars_per_second: summary.chars_per_second,
        first_p50: summary.first.p50 / 1e6,
        first_p99: summary.first.p99 / 1e6,
        between_p50: summary.between.p50 / 1e6,
        between_p99: summary.between.p99 / 1e6,
    }
}

const COLUMNS: [(&str, usize); 9] = [
    ("STREAMS", 7),
    ("CHARS/S", 10),
    ("FIRST p50", 10),
    ("p99", 10),
    ("BETWEEN p50", 11),
    ("p90", 10),
    ("p99", 10),
    ("CHARS/MESSAGE", 13),
    ("REFUSED", 7),
];

fn heading() -> String {
    columns(COLUMNS.map(|(name, _)| name.to_owned()))
}

fn row(streams: u32, summary: &Summary) -> String {
    let milliseconds = |microseconds: f64| human::seconds(microseconds / 1e6);
    columns([
        streams.to_string(),
        human::rate(summary.chars_per_second),
        milliseconds(summary.first.p50),
        milliseconds(summary.first.p99),
        milliseconds(summary.between.p50),
        milliseconds(summary.between.p90),
        milliseconds(summary.between.p99),
        format!("{:.2}", summary.chars_per_message),
        human::count(summary.refused),
    ])
}

fn columns(cells: [String; COLUMNS.len()]) -> String {
    let cells: Vec<String> = cells
        .iter()
        .zip(COLUMNS)
        .map(|(cell, (_, width))| format!("{cell:>width$}"))
        .collect();
    cells.join("  ")
}

fn object(streams: u32, connections: usize, summary: &Summary) -> Value {
    let quantiles = |quantiles: &load::Quantiles| {
        json!({
            "count": quantiles.count,
            "mean": quantiles.mean,
            "p50": quantiles.p50,
            "p90": quantiles.p90,
            "p99": quantiles.p99,
            "max": quantiles.max,
        })
    };
    json::named(
        "bench",
        json!({
            "sessions": streams,
            "connections": connections,
            "seconds": summary.seconds,
            "chars": summary.chars,
            "messages": summary.messages,
            "generations": summary.generations,
            "refused": summary.refused,
            "chars_per_second": summary.chars_per_second,
            "chars_per_message": summary.chars_per_message,
            "first_microseconds": quantiles(&summary.first),
            "between_microseconds": quantiles(&summary.between),
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prime_is_a_letter_that_the_model_knows() {
        let model = |vocabulary: &str| Model {
            vocabulary: vocabulary.into(),
            ..Default::default()
        };
        assert_eq!(common_character(&model("\n Aéz")), "é");
        assert_eq!(common_character(&model("0123")), "0");
    }

    #[test]
    fn rows_stand_below_their_heading() {
        let summary = Load::new().summary(1.0);
        assert_eq!(heading().len(), row(8, &summary).len());
    }
}
