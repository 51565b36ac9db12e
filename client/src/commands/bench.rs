//! `bench`: loads the server with concurrent streams and reports throughput
//! and latency.

mod stream;

use std::time::{Duration, Instant};

use charlstm_proto::v1::{
    DeleteSessionRequest, GenerateRequest, GetServerStatusRequest, ListModelsRequest, Model,
    Sampling,
};
use serde_json::{Value, json};
use tonic::Code;

use super::models;
use crate::args::{BenchArgs, GlobalFlags};
use crate::connection::Connection;
use crate::display;
use crate::failure::Failure;
use crate::json;
use crate::load_test::{LoadStats, LoadSummary, Quantiles};
use crate::output::{self, Output};

/// Maximum time for the sessions of cancelled calls to become free.
const DELETE_TIMEOUT: Duration = Duration::from_secs(10);

/// Measures with each number of streams and prints the result as soon as it is
/// available.
pub(crate) async fn run(
    args: BenchArgs,
    global: &GlobalFlags,
    output: Output,
) -> Result<(), Failure> {
    let mut plot = args.plot.clone().load_plot()?;
    let connection = Connection::open(global).await?;
    let request = request(&args, &connection).await?;
    // Loads the model, and rejects an invalid request before measuring.
    let warm_up = GenerateRequest {
        max_chars: Some(1),
        ..request.clone()
    };
    stream::run_once(&connection, warm_up).await?;
    let shown = fitting(output::stdout_columns());
    if !output.json {
        output.note(&format!(
            "{} per call after {}, {} each",
            display::plural(args.length.into(), "character"),
            display::quoted(&request.prime),
            display::seconds(args.seconds.into())
        ));
        output.line(&heading(shown))?;
    }
    if let Some(plot) = &mut plot {
        plot.set_title(title(&args, &connection).await?);
    }
    for (index, &streams) in args.sessions.iter().enumerate() {
        let connections = connections(&args, global, streams).await?;
        let summary = measure(&args, &connections, &request, streams).await?;
        output.result(
            || object(streams, connections.len(), &summary),
            || row(streams, &summary, shown),
        )?;
        if let Some(plot) = &mut plot {
            plot.add(streams, &summary);
            plot.write(index + 1 == args.sessions.len())?;
        }
    }
    Ok(())
}

/// Describes the load test for its plot: the model, and the machine of the
/// server.
async fn title(args: &BenchArgs, connection: &Connection) -> Result<String, Failure> {
    let model = models::resolve(connection, &args.model).await?;
    let chars = display::plural(args.length.into(), "character");
    let request = GetServerStatusRequest {};
    Ok(match connection.server().get_server_status(request).await {
        Ok(status) => {
            let status = status.into_inner();
            let threads = display::plural(status.threads.into(), "thread");
            format!(
                "Load test of {model}, {chars} per call, on {} ({threads})",
                status.device
            )
        }
        Err(status) if status.code() == Code::Unimplemented => {
            format!("Load test of {model}, {chars} per call")
        }
        Err(status) => return Err(status.into()),
    })
}

/// Creates the request that every stream repeats.
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

/// Returns a character that the model knows, so that the load test works with
/// any model.
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

/// Returns the first lowercase letter of the vocabulary, or its first character.
fn common_character(model: &Model) -> String {
    let vocabulary = &model.vocabulary;
    vocabulary
        .chars()
        .find(|character| character.is_lowercase())
        .or_else(|| vocabulary.chars().next())
        .map_or_else(|| "a".into(), String::from)
}

/// Opens as many connections as `streams` need.
async fn connections(
    args: &BenchArgs,
    global: &GlobalFlags,
    streams: u32,
) -> Result<Vec<Connection>, Failure> {
    let mut connections = Vec::new();
    for _ in 0..streams.div_ceil(args.streams_per_connection) {
        connections.push(Connection::open(global).await?);
    }
    Ok(connections)
}

/// Runs `streams` concurrent streams for `--seconds` and summarizes them.
async fn measure(
    args: &BenchArgs,
    connections: &[Connection],
    request: &GenerateRequest,
    streams: u32,
) -> Result<LoadSummary, Failure> {
    let session_ids = if args.in_sessions {
        session_ids(streams)
    } else {
        Vec::new()
    };
    let start = Instant::now();
    let deadline = start + Duration::from_secs(u64::from(args.seconds));
    let tasks: Vec<_> = (0..streams)
        .map(|index| {
            let connection = connections[index as usize % connections.len()].clone();
            let mut request = request.clone();
            if let Some(sampling) = &mut request.sampling {
                sampling.seed = Some(args.seed.wrapping_add(u64::from(index)));
            }
            request.session_id = session_ids.get(index as usize).cloned();
            tokio::spawn(stream::run_until(deadline, connection, request))
        })
        .collect();
    let mut total = LoadStats::new();
    for task in tasks {
        let stats = task
            .await
            .map_err(|error| Failure::Internal(error.to_string()))??;
        total.add(&stats);
    }
    let summary = total.summary(start.elapsed().as_secs_f64());
    delete(&connections[0], session_ids).await?;
    Ok(summary)
}

/// Returns one id per stream that no other load test uses.
fn session_ids(streams: u32) -> Vec<String> {
    let run: u64 = rand::random();
    (0..streams)
        .map(|index| format!("bench-{run:016x}-{index}"))
        .collect()
}

/// Deletes the sessions of the streams. A call that was cancelled at the deadline may
/// keep its session busy for a moment.
async fn delete(connection: &Connection, session_ids: Vec<String>) -> Result<(), Failure> {
    let deadline = Instant::now() + DELETE_TIMEOUT;
    let mut client = connection.sessions();
    for session_id in session_ids {
        let request = DeleteSessionRequest {
            session_id,
            owner: None,
        };
        loop {
            match client.delete_session(request.clone()).await {
                Ok(_) => break,
                Err(status) if status.code() == Code::NotFound => break,
                Err(status) if status.code() == Code::Aborted && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(status) => return Err(status.into()),
            }
        }
    }
    Ok(())
}

/// Columns of the table: heading and width.
const COLUMNS: [(&str, usize); 10] = [
    ("STREAMS", 7),
    ("CHARS/S", 10),
    ("FIRST p50", 10),
    ("p99", 10),
    ("BETWEEN p50", 11),
    ("p90", 10),
    ("p99", 10),
    ("FINISH p99", 10),
    ("CHARS/MESSAGE", 13),
    ("REFUSED", 7),
];

/// Indices of the columns that are left out, in this order, if the terminal is
/// too narrow for all.
const DROP_FIRST: [usize; 6] = [8, 7, 5, 9, 6, 3];

/// Returns which columns fit in `columns` columns of a terminal.
fn fitting(columns: Option<usize>) -> [bool; COLUMNS.len()] {
    let mut shown = [true; COLUMNS.len()];
    for index in DROP_FIRST {
        let widths = COLUMNS.iter().zip(shown).filter(|(_, shown)| *shown);
        let width: usize = widths.map(|((_, width), _)| width + 2).sum();
        if columns.is_none_or(|columns| width <= columns + 2) {
            break;
        }
        shown[index] = false;
    }
    shown
}

fn heading(shown: [bool; COLUMNS.len()]) -> String {
    columns(COLUMNS.map(|(name, _)| name.to_owned()), shown)
}

fn row(streams: u32, summary: &LoadSummary, shown: [bool; COLUMNS.len()]) -> String {
    let duration = |microseconds: f64| display::seconds(microseconds / 1e6);
    let cells = [
        streams.to_string(),
        display::rate(summary.chars_per_second),
        duration(summary.first_microseconds.p50),
        duration(summary.first_microseconds.p99),
        duration(summary.between_microseconds.p50),
        duration(summary.between_microseconds.p90),
        duration(summary.between_microseconds.p99),
        duration(summary.finish_microseconds.p99),
        format!("{:.2}", summary.chars_per_message),
        display::count(summary.refused),
    ];
    columns(cells, shown)
}

fn columns(cells: [String; COLUMNS.len()], shown: [bool; COLUMNS.len()]) -> String {
    let cells: Vec<String> = cells
        .iter()
        .zip(COLUMNS)
        .zip(shown)
        .filter(|(_, shown)| *shown)
        .map(|((cell, (_, width)), _)| format!("{cell:>width$}"))
        .collect();
    cells.join("  ")
}

fn object(streams: u32, connections: usize, summary: &LoadSummary) -> Value {
    let quantiles = |quantiles: &Quantiles| {
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
            "first_microseconds": quantiles(&summary.first_microseconds),
            "between_microseconds": quantiles(&summary.between_microseconds),
            "finish_microseconds": quantiles(&summary.finish_microseconds),
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_prompt_is_a_letter_that_the_model_knows() {
        let model = |vocabulary: &str| Model {
            vocabulary: vocabulary.into(),
            ..Default::default()
        };
        assert_eq!(common_character(&model("\n Aéz")), "é");
        assert_eq!(common_character(&model("0123")), "0");
    }

    #[test]
    fn a_row_is_as_wide_as_the_heading_and_fits_the_terminal() {
        let summary = LoadStats::new().summary(1.0);
        for (columns, width) in [
            (None, 116),
            (Some(116), 116),
            (Some(80), 77),
            (Some(60), 56),
        ] {
            let shown = fitting(columns);
            assert_eq!(heading(shown).len(), width);
            assert_eq!(row(8, &summary, shown).len(), width);
        }
    }
}
