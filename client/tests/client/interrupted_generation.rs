//! Generations that are interrupted: by lost connections, a full disk, or a
//! server that shuts down. Run with the compiled client and a fake server.

use std::io::Read;
use std::process::{Command, Output};
use std::sync::atomic::Ordering;
use std::time::Duration;

use charlstm_proto::v1::GenerateRequest;

use crate::fake::{CuttingProxy, FakeServer, alphabet, free_address};
use crate::{client, text};

fn generate(address: impl std::fmt::Display, arguments: &[&str]) -> Command {
    let call = ["generate", "--prime", "> ", "--length", "40"];
    client(address, &[&call, arguments].concat())
}

fn run(address: impl std::fmt::Display, arguments: &[&str]) -> Output {
    generate(address, arguments).output().unwrap()
}

/// Asserts that the client has printed the prompt and 40 characters.
fn assert_complete(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), format!("> {}", alphabet(0, 40)));
}

fn seed(request: &GenerateRequest) -> Option<u64> {
    request.sampling.as_ref().unwrap().seed
}

#[test]
fn every_call_in_a_session_names_the_position_and_a_first_call_its_seed() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    assert_complete(&run(server.address, &["--session", "s"]));
    run(server.address, &["--session", "s"]);
    run(server.address, &["--session", "s", "--seed", "7"]);
    let received = fake.received.lock().unwrap();
    let positions = received
        .generate
        .iter()
        .map(|request| request.expected_position);
    assert_eq!(positions.collect::<Vec<_>>(), [Some(0), Some(42), Some(84)]);
    assert!(seed(&received.generate[0]).is_some());
    // A session keeps its random state.
    assert_eq!(seed(&received.generate[1]), None);
    assert_eq!(seed(&received.generate[2]), Some(7));
}

#[test]
fn a_connection_that_breaks_anywhere_does_not_change_the_text() {
    for session in [&["--session", "s"][..], &[]] {
        for trial in 0..12 {
            let fake = FakeServer::default();
            let server = fake.serve("127.0.0.1:0");
            // The first places are within the setup of the connection.
            let cuts = vec![60 + 97 * trial, 150 + 61 * trial];
            let proxy = CuttingProxy::start(server.address, cuts.clone());
            let output = run(proxy.address, session);
            let errors = text(&output.stderr);
            if errors.contains("cannot connect") {
                // The connection broke before it was established.
                continue;
            }
            assert_eq!(output.status.code(), Some(0), "{cuts:?}: {errors}");
            assert_eq!(
                text(&output.stdout),
                format!("> {}", alphabet(0, 40)),
                "{cuts:?}: {errors}"
            );
            let received = fake.received.lock().unwrap();
            let seeds: Vec<_> = received.generate.iter().map(seed).collect();
            assert!(seeds[0].is_some());
            assert!(seeds.iter().all(|seed| *seed == seeds[0]), "{seeds:?}");
        }
    }
}

#[test]
fn a_repeated_first_call_uses_the_version_and_the_precision_that_the_server_reported() {
    let address = free_address().to_string();
    let first = FakeServer {
        stall_after: Some(10),
        ..Default::default()
    };
    let running = first.serve(&address);
    let mut child = generate(&address, &["--session", "s"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut seen = vec![0; 2 + 10];
    stdout.read_exact(&mut seen).unwrap();
    drop(running);
    // The restarted server has lost the session and has a newer version.
    let second = FakeServer::default();
    second.publish();
    let _running = second.serve(&address);

    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&seen), format!("> {}", alphabet(0, 10)));
    assert_eq!(rest, alphabet(10, 30));
    assert!(text(&output.stderr).contains("repeating the call from position 0"));
    let (first, second) = (
        first.received.lock().unwrap(),
        second.received.lock().unwrap(),
    );
    let (original, repeated) = (&first.generate[0], second.generate.last().unwrap());
    assert_eq!(original.model, "");
    assert_eq!(repeated.model, "m@1");
    assert_eq!(repeated.precision(), "float32");
    assert_eq!(repeated.expected_position, Some(0));
    assert_eq!(seed(repeated), seed(original));
    assert_eq!(repeated.prime, "> ");
}

#[test]
fn a_repeated_call_that_generates_another_text_is_an_error() {
    let address = free_address().to_string();
    let first = FakeServer {
        stall_after: Some(10),
        ..Default::default()
    };
    let running = first.serve(&address);
    let mut child = generate(&address, &["--session", "s"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut seen = vec![0; 2 + 10];
    stdout.read_exact(&mut seen).unwrap();
    drop(running);
    let second = FakeServer {
        text: Some("abcdeXYZ"),
        ..Default::default()
    };
    let _running = second.serve(&address);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(rest, "");
    let message = text(&output.stderr);
    assert!(
        message.contains("another text after 5 of 10 characters"),
        "{message}"
    );
}

#[test]
fn a_server_whose_storage_accepts_no_writes_is_waited_for_without_generating() {
    let fake = FakeServer {
        storage_delay: Duration::from_millis(20),
        ..Default::default()
    };
    fake.storage_failures.store(3, Ordering::SeqCst);
    let server = fake.serve("127.0.0.1:0");
    let output = run(server.address, &["--session", "s"]);
    assert_complete(&output);
    let messages = text(&output.stderr);
    assert_eq!(
        messages
            .matches("accepts no writes: the disk is full")
            .count(),
        3
    );
    assert!(messages.contains("trying again in 20.0 ms"), "{messages}");
    assert_eq!(fake.received.lock().unwrap().generate.len(), 4);
}

#[test]
fn a_storage_that_stays_unavailable_is_given_up() {
    let fake = FakeServer {
        storage_delay: Duration::from_secs(3600),
        ..Default::default()
    };
    fake.storage_failures.store(1, Ordering::SeqCst);
    let server = fake.serve("127.0.0.1:0");
    let output = run(server.address, &["--session", "s"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.contains("error: the disk is full; try again in 1 h"),
        "{message}"
    );
}

#[test]
fn a_storage_that_fails_at_the_end_of_a_text_does_not_make_it_repeat_for_ever() {
    let fake = FakeServer {
        storage_delay: Duration::from_millis(1),
        ..Default::default()
    };
    fake.failed_commits.store(100, Ordering::SeqCst);
    let server = fake.serve("127.0.0.1:0");
    let output = run(server.address, &["--session", "s"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), format!("> {}", alphabet(0, 40)));
    assert!(fake.received.lock().unwrap().generate.len() <= 4);
}

#[test]
fn a_call_that_a_shutdown_ends_is_continued_once_the_server_is_back() {
    let fake = FakeServer::default();
    *fake.shutdown_after.lock().unwrap() = Some(10);
    fake.unavailable.store(0, Ordering::SeqCst);
    let server = fake.serve("127.0.0.1:0");
    let arguments = ["--session", "s", "--seed", "5"];
    let output = run(server.address, &arguments);
    assert_complete(&output);
    let messages = text(&output.stderr);
    assert!(
        messages.contains("the server is shutting down; continuing at position 12"),
        "{messages}"
    );
    let received = fake.received.lock().unwrap();
    let rest = &received.generate[1];
    assert_eq!(rest.prime, "");
    assert_eq!(rest.max_chars, Some(30));
    assert_eq!(rest.expected_position, Some(12));
    assert_eq!(rest.model, "m@1");
    assert_eq!(seed(rest), None);
}

#[test]
fn the_shutdown_of_a_server_is_one_generation_with_json() {
    let fake = FakeServer::default();
    *fake.shutdown_after.lock().unwrap() = Some(10);
    let server = fake.serve("127.0.0.1:0");
    let output = run(server.address, &["--session", "s", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let events: Vec<serde_json::Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let count = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    assert_eq!(
        (count("started"), count("text"), count("finished")),
        (1, 40, 1)
    );
    let finished = events.last().unwrap();
    assert_eq!(finished["chars"], 40);
    assert_eq!(finished["position"], 42);
}

#[test]
fn a_call_that_is_rejected_because_the_server_is_shutting_down_is_repeated() {
    let fake = FakeServer::default();
    fake.unavailable.store(2, Ordering::SeqCst);
    let server = fake.serve("127.0.0.1:0");
    assert_complete(&run(server.address, &["--session", "s"]));
    assert_eq!(fake.received.lock().unwrap().generate.len(), 3);
}

#[test]
fn a_session_that_does_not_exist_is_not_continued_and_a_similar_one_is_suggested() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    assert_complete(&run(server.address, &["--session", "tale"]));
    let output = crate::run(server.address, &["generate", "--session", "talee"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.contains("there is no session \"talee\" (did you mean \"tale\"?); use --prime"),
        "{message}"
    );
}

#[test]
fn an_evicted_session_is_an_error_that_says_how_to_free_its_name() {
    let fake = FakeServer::default();
    fake.evicted.lock().unwrap().insert("z".into());
    let server = fake.serve("127.0.0.1:0");
    let output = run(server.address, &["--session", "z"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.contains("`charlstm-client sessions delete z`"),
        "{message}"
    );
    assert!(fake.received.lock().unwrap().generate.is_empty());
}
