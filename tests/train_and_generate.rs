//! The main use of the programs: start a server, train on a text, generate
//! text, continue in a session, restart.

use crate::support::{Server, ask, ask_ok, train_small, verse};

/// Returns the arguments of `generate` for the model of these tests.
fn generate(further: &[&'static str]) -> Vec<&'static str> {
    let mut arguments = vec!["generate", "--model", "verse"];
    arguments.extend_from_slice(further);
    arguments
}

fn trained() -> Server {
    let server = Server::start(&[]);
    let output = train_small(&server, "verse", &[]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    server
}

#[test]
fn a_model_is_trained_and_generates_exactly_the_requested_number_of_characters() {
    let server = Server::start(&[]);
    let output = train_small(&server, "verse", &["--sample-prime", "arma "]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert!(
        output.stderr.contains("6,00"),
        "characters: {}",
        output.stderr
    );
    assert!(output.stdout.contains("epoch 1"), "{}", output.stdout);
    assert!(
        output.stdout.contains("arma "),
        "the sample: {}",
        output.stdout
    );

    let text = ask_ok(&server, &generate(&["--prime", "arma", "--length", "300"]));
    assert_eq!(text.chars().count(), 4 + 300);
    assert!(text.starts_with("arma"));
    let rest = ask_ok(
        &server,
        &generate(&["--prime", "arma", "--length", "30", "--no-echo"]),
    );
    assert_eq!(rest.chars().count(), 30);

    let listed = ask_ok(&server, &["models", "list"]);
    assert!(listed.contains("verse"), "{listed}");
    let status = ask_ok(&server, &["status"]);
    assert!(status.contains("cpu"), "{status}");
}

#[test]
fn the_same_seed_gives_the_same_text_and_another_seed_another() {
    let server = trained();
    let with_seed = |seed| {
        let arguments = [
            "--prime", "arma ", "--length", "200", "--top-k", "0", "--seed", seed,
        ];
        ask_ok(&server, &generate(&arguments))
    };
    assert_eq!(with_seed("1"), with_seed("1"));
    assert_ne!(with_seed("1"), with_seed("2"));

    let greedy = |seed| {
        let arguments = [
            "--prime", "arma ", "--length", "100", "--greedy", "--seed", seed,
        ];
        ask_ok(&server, &generate(&arguments))
    };
    let cold = ["--prime", "arma ", "--length", "100", "--temperature", "0"];
    assert_eq!(greedy("1"), greedy("2"));
    assert_eq!(greedy("1"), ask_ok(&server, &generate(&cold)));
    let best = [
        "--prime", "arma ", "--length", "100", "--top-k", "1", "--seed", "9",
    ];
    assert_eq!(greedy("1"), ask_ok(&server, &generate(&best)));
}

#[test]
fn a_session_continues_at_its_position_also_after_a_restart() {
    let server = trained();
    let whole = ["--prime", "arma ", "--length", "90", "--seed", "3"];
    let whole = ask_ok(&server, &generate(&whole));

    let first = [
        "--prime",
        "arma ",
        "--length",
        "30",
        "--seed",
        "3",
        "--session",
        "s",
    ];
    let mut pieces = ask_ok(&server, &generate(&first));
    let next = generate(&["--length", "30", "--session", "s"]);
    pieces += &ask_ok(&server, &next);
    let server = Server::start_in(server.stop(), &[]);
    pieces += &ask_ok(&server, &next);
    assert_eq!(pieces, whole);

    // The model generates the same text as before.
    let again = ["--prime", "arma ", "--length", "90", "--seed", "3"];
    assert_eq!(ask_ok(&server, &generate(&again)), whole);
}

#[test]
fn a_session_stays_with_its_version_when_a_newer_one_is_trained() {
    let server = trained();
    let first = [
        "--prime",
        "arma ",
        "--length",
        "20",
        "--seed",
        "3",
        "--session",
        "s",
    ];
    ask_ok(&server, &generate(&first));
    let fork = ask(&server, &["sessions", "fork", "s", "twin"]);
    assert_eq!(fork.code, Some(0), "{}", fork.stderr);
    let expected = ask_ok(&server, &generate(&["--length", "40", "--session", "twin"]));

    let output = train_small(&server, "verse", &["--seed", "99"]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let shown = ask_ok(&server, &["--json", "models", "list"]);
    assert!(shown.contains("\"version\":2"), "{shown}");
    let pinned = ask_ok(&server, &generate(&["--length", "40", "--session", "s"]));
    assert_eq!(pinned, expected);
}

#[test]
fn a_training_continues_without_its_client_and_can_be_watched_from_the_start() {
    let server = Server::start(&[]);
    let output = train_small(&server, "verse", &["--detach"]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let id = output.stdout.trim();
    let watched = ask_ok(&server, &["--json", "trainings", "watch", id]);
    for event in ["\"accepted\"", "\"epoch\":1", "\"epoch\":2", "\"finished\""] {
        assert!(watched.contains(event), "{event} in {watched}");
    }
    let list = ask_ok(&server, &["trainings", "list"]);
    assert!(list.contains(id), "{list}");
}

#[test]
fn a_text_is_scored_better_when_the_model_knows_it() {
    let server = trained();
    let bits = |text: &str| -> f64 {
        let file = server.folder().join("page.txt");
        std::fs::write(&file, text).unwrap();
        let arguments = ["--json", "score", "--text", file.to_str().unwrap()];
        let output = ask_ok(&server, &arguments);
        let (_, rest) = output.split_once("\"bits_per_char\":").unwrap();
        rest.split([',', '}']).next().unwrap().parse().unwrap()
    };
    let known = bits(&verse(1000));
    let strange = bits(&"oooo rrrr uuuu mmmm ".repeat(50));
    assert!(known < strange, "{known} {strange}");
}
