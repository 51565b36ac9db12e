//! What those who collect metrics get from a server at work.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::{Server, ask, ask_ok, train_small};

/// An HTTP request as a collector makes it; head and body of the answer.
fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// Where the log says that metrics are served.
fn address(server: &Server) -> String {
    let log = std::fs::read_to_string(server.folder().join("server.log")).unwrap();
    let line = log
        .lines()
        .find(|line| line.contains("metrics are served"))
        .unwrap();
    let (_, rest) = line.split_once("address=").unwrap();
    rest.split_whitespace().next().unwrap().to_owned()
}

/// The number of a line that begins with `name`, which has its labels.
fn number(metrics: &str, name: &str) -> f64 {
    metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        .unwrap_or_else(|| panic!("{name} is not in\n{metrics}"))
}

#[test]
fn a_collector_sees_what_was_trained_and_generated_and_refused() {
    let server = Server::start(&["--metrics-listen", "127.0.0.1:0"]);
    let address = address(&server);
    let said = train_small(&server, "verse", &[]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let generate = ["generate", "--prime", "arma ", "--session", "s"];
    ask_ok(&server, &[&generate[..], &["--length", "40"]].concat());
    assert_eq!(ask(&server, &["sessions", "show", "none"]).code, Some(1));

    let (head, metrics) = get(&address, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("openmetrics-text"), "{head}");
    let calls = |method: &str, code: u32| {
        let name = format!(
            "charlstm_grpc_calls_total{{method=\"/charlstm.v1.{method}\",code=\"{code}\"}}"
        );
        number(&metrics, &name)
    };
    assert_eq!(calls("GenerationService/Generate", 0), 1.0);
    assert_eq!(calls("SessionService/GetSession", 5), 1.0);
    for (name, expected) in [
        ("charlstm_generated_chars_total", 40.0),
        ("charlstm_first_char_seconds_count", 1.0),
        ("charlstm_sessions", 1.0),
        ("charlstm_models", 1.0),
        ("charlstm_models_loaded", 1.0),
        ("charlstm_generations_running", 0.0),
        ("charlstm_trainings{state=\"succeeded\"}", 1.0),
        ("charlstm_trainings{state=\"running\"}", 0.0),
    ] {
        assert_eq!(number(&metrics, name), expected, "{name}");
    }
    // One text alone has one row in each step. (The first of 40 characters
    // comes out of the priming, or out of a step.)
    let steps = number(&metrics, "charlstm_steps_total");
    assert!((39.0..=41.0).contains(&steps), "{steps}");
    assert_eq!(number(&metrics, "charlstm_step_rows_total"), steps);
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");

    assert!(get(&address, "/").0.starts_with("HTTP/1.1 404"));
}
