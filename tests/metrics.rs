//! The metrics of a running server, and their documentation.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::files::write_secret;
use crate::support::metrics_page::{get, metrics_address, value};
use crate::support::principals::token;
use crate::support::{Server, ask, ask_ok, train_small};

/// Starts a server, trains a model, generates 40 characters in a session, and
/// makes a call that fails; returns the metrics page.
fn page_after_some_calls() -> String {
    // With a principal, so that the page has everything.
    let folder = tempfile::tempdir().unwrap();
    let (token, entry) = token("root", &["admin"]);
    let quotas = "max_streams = 9\nmax_sessions = 9\nmax_trainings = 9\n";
    let (file, secret) = (
        folder.path().join("principals"),
        folder.path().join("token"),
    );
    write_secret(&file, &format!("{entry}{quotas}"));
    write_secret(&secret, &token);
    let principals = ["--principals", file.to_str().unwrap()];
    let flags = ["--metrics-listen", "127.0.0.1:0"];
    let server = Server::start(&[flags, principals].concat());
    let address = metrics_address(&server);
    let as_root = ["--token-file", secret.to_str().unwrap()];
    let trained = train_small(&server, "verse", &as_root);
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    let generate = ["generate", "--prime", "arma ", "--session", "s"];
    ask_ok(
        &server,
        &[&generate[..], &["--length", "40"], &as_root].concat(),
    );
    let show = [&["sessions", "show", "none"][..], &as_root].concat();
    assert_eq!(ask(&server, &show).code, Some(1));

    let (head, page) = get(&address, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("openmetrics-text"), "{head}");
    assert!(get(&address, "/").0.starts_with("HTTP/1.1 404"));
    page
}

#[test]
fn the_metrics_count_trainings_generated_characters_and_failed_calls() {
    let page = page_after_some_calls();
    let labels = |kind: &str, service: &str, method: &str| {
        format!(
            "grpc_type=\"{kind}\",grpc_service=\"charlstm.v1.{service}\",grpc_method=\"{method}\""
        )
    };
    let generate = labels("server_stream", "GenerationService", "Generate");
    let get_session = labels("unary", "SessionService", "GetSession");
    for (name, expected) in [
        (&*format!("grpc_server_started_total{{{generate}}}"), 1.0),
        (
            &*format!("grpc_server_handled_total{{{generate},grpc_code=\"OK\"}}"),
            1.0,
        ),
        (
            // The client asks for the position of a session before it generates.
            &*format!("grpc_server_handled_total{{{get_session},grpc_code=\"NOT_FOUND\"}}"),
            2.0,
        ),
        (
            &*format!("grpc_server_handling_seconds_count{{{generate}}}"),
            1.0,
        ),
        ("charlstm_generated_chars_total", 40.0),
        // The last of the five characters of the prompt is fed to a decode step.
        ("charlstm_prefill_chars_total", 4.0),
        ("charlstm_time_to_first_char_seconds_count", 1.0),
        ("charlstm_sessions", 1.0),
        ("charlstm_session_commit_seconds_count", 1.0),
        ("charlstm_principal_sessions{principal=\"root\"}", 1.0),
        ("charlstm_principal_sessions_limit{principal=\"root\"}", 9.0),
        ("charlstm_principal_streams{principal=\"root\"}", 0.0),
        ("charlstm_models", 1.0),
        ("charlstm_models_loaded", 1.0),
        ("charlstm_generations_running", 0.0),
        ("charlstm_generations_queued", 0.0),
        ("charlstm_trainings{state=\"succeeded\"}", 1.0),
        ("charlstm_trainings{state=\"running\"}", 0.0),
    ] {
        assert_eq!(value(&page, name), expected, "{name}");
    }
    // A single generation has one row in each step. The first of its 40
    // characters may be the result of the prefill or of a step.
    let steps = value(&page, "charlstm_decode_steps_total");
    assert!((39.0..=41.0).contains(&steps), "{steps}");
    assert_eq!(value(&page, "charlstm_batch_rows_count"), steps);
    assert_eq!(value(&page, "charlstm_batch_rows_sum"), steps);
    assert!(page.ends_with("# EOF\n"), "{page}");
}

#[test]
fn every_metric_is_documented_and_every_documented_metric_exists() {
    let exposed = exposed(&page_after_some_calls());
    let documented = documented(include_str!("../docs/metrics.md"));
    for (name, metric) in &exposed {
        assert_eq!(
            Some(metric),
            documented.get(name),
            "{name} in docs/metrics.md"
        );
    }
    for name in documented.keys() {
        assert!(exposed.contains_key(name), "{name} is not on the page");
    }
}

/// A metric, as the page or the documentation describes it.
#[derive(Debug, PartialEq)]
struct Metric {
    kind: String,
    labels: BTreeSet<String>,
}

/// The metrics on a page, by their names in queries: a counter ends in `_total`.
fn exposed(page: &str) -> BTreeMap<String, Metric> {
    let mut metrics = BTreeMap::new();
    let mut current = String::new();
    for line in page.lines() {
        if let Some(declaration) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declaration.split_once(' ').unwrap();
            let suffix = if kind == "counter" { "_total" } else { "" };
            current = format!("{name}{suffix}");
            let metric = Metric {
                kind: kind.to_owned(),
                labels: BTreeSet::new(),
            };
            metrics.insert(current.clone(), metric);
        } else if !line.starts_with('#') {
            let metric = metrics.get_mut(&current).unwrap();
            metric.labels.extend(labels_of(line));
        }
    }
    metrics
}

/// The names of the labels of a sample, without the bucket bound `le`.
fn labels_of(sample: &str) -> impl Iterator<Item = String> {
    let inside = sample
        .split_once('{')
        .map_or("", |(_, rest)| rest.split_once('}').unwrap().0);
    inside
        .split(',')
        .filter_map(|label| label.split_once('='))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name != "le")
}

/// The metrics in the tables of the documentation.
fn documented(text: &str) -> BTreeMap<String, Metric> {
    let names = |cell: &str| -> Vec<String> {
        let in_backticks = cell.split('`').skip(1).step_by(2);
        in_backticks.map(str::to_owned).collect()
    };
    text.lines()
        .filter(|line| line.starts_with("| `"))
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let [name] = <[String; 1]>::try_from(names(cells[1])).unwrap();
            let metric = Metric {
                kind: cells[2].to_owned(),
                labels: names(cells[3]).into_iter().collect(),
            };
            (name, metric)
        })
        .collect()
}
