//! `--json`: every command of the client prints what docs/cli.md documents.

use crate::support::{Server, ask, train_small, verse};
use serde_json::Value;

/// Runs a command and returns its objects, one from each line of standard
/// output.
fn objects(server: &Server, arguments: &[&str]) -> Vec<Value> {
    let output = ask(server, &[&["--json"], arguments].concat());
    let parsed = output.stdout.lines().map(serde_json::from_str);
    let objects: Vec<Value> = parsed
        .collect::<Result<_, _>>()
        .unwrap_or_else(|error| panic!("{arguments:?}: {error} in\n{}", output.stdout));
    assert!(
        objects.iter().all(Value::is_object),
        "{arguments:?}: {objects:?}"
    );
    objects
}

/// Asserts that a command prints one object with these fields, and returns it.
fn one(server: &Server, arguments: &[&str], fields: &[&str]) -> Value {
    let mut objects = objects(server, arguments);
    assert_eq!(objects.len(), 1, "{arguments:?}: {objects:?}");
    let object = objects.remove(0);
    for field in fields {
        assert!(
            object.get(field).is_some(),
            "{arguments:?}: no {field} in {object}"
        );
    }
    object
}

/// Returns the `event` of each object.
fn events(objects: &[Value]) -> Vec<&str> {
    objects
        .iter()
        .map(|object| object["event"].as_str().unwrap_or_default())
        .collect()
}

#[test]
fn every_command_prints_the_objects_in_its_documentation() {
    let server = Server::start(&[]);
    let file = |name: &str| server.folder().join(name).to_str().unwrap().to_owned();

    let output = train_small(&server, "verse", &["--json"]);
    let trained: Vec<Value> = output
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let reported = events(&trained);
    assert_eq!(reported.first(), Some(&"accepted"));
    assert_eq!(reported.last(), Some(&"finished"));
    assert!(reported.contains(&"step") && reported.contains(&"epoch"));
    let id = trained[0]["training_id"].as_str().unwrap();
    assert_eq!(trained.last().unwrap()["state"], "STATE_SUCCEEDED");

    let watched = objects(&server, &["trainings", "watch", id]);
    assert_eq!(events(&watched).last(), Some(&"finished"));
    let training = ["training_id", "state", "spec", "step", "total_steps"];
    one(&server, &["trainings", "list"], &training);
    one(&server, &["trainings", "show", id], &training);

    let generate = ["generate", "--prime", "arma", "--length", "5"];
    let generated = objects(&server, &[&generate[..], &["--session", "s"]].concat());
    assert_eq!(events(&generated).first(), Some(&"started"));
    assert_eq!(events(&generated).last(), Some(&"finished"));
    let pieces = generated.iter().filter_map(|event| event["text"].as_str());
    assert_eq!(pieces.collect::<String>().chars().count(), 5);

    std::fs::write(file("page.txt"), verse(100)).unwrap();
    let score = ["chars", "bits_per_char", "loss", "perplexity"];
    one(&server, &["score", "--text", &file("page.txt")], &score);

    let model = ["name", "version"];
    one(&server, &["models", "list"], &model);
    one(&server, &["models", "show", "verse"], &["model"]);
    let exported = file("verse.safetensors");
    let export = ["models", "export", "verse", "--output", &exported];
    assert_eq!(one(&server, &export, &[])["event"], "exported");
    let import = ["models", "import", &exported, "--model", "copy"];
    assert_eq!(one(&server, &import, &[])["event"], "imported");
    let delete = ["models", "delete", "copy"];
    assert_eq!(one(&server, &delete, &[])["event"], "deleted");

    let session = ["session_id", "position"];
    one(&server, &["sessions", "list"], &session);
    one(&server, &["sessions", "show", "s"], &session);
    let forked = one(&server, &["sessions", "fork", "s", "twin"], &session);
    assert_eq!(forked["event"], "forked");
    let snapshot = file("s.session");
    let export = ["sessions", "export", "s", "--output", &snapshot];
    assert_eq!(one(&server, &export, &["bytes"])["event"], "exported");
    let delete = one(&server, &["sessions", "delete", "s"], &["session_id"]);
    assert_eq!(delete["event"], "deleted");
    let imported = one(&server, &["sessions", "import", &snapshot], &session);
    assert_eq!(imported["event"], "imported");

    let bench = [
        "bench",
        "--sessions",
        "2",
        "--seconds",
        "1",
        "--length",
        "20",
        "--in-sessions",
    ];
    let fields = ["chars_per_second", "first_microseconds"];
    let measured = one(&server, &bench, &fields);
    for latency in ["between_microseconds", "finish_microseconds"] {
        assert!(measured[latency]["p99"].as_f64().is_some(), "{latency}");
    }
    let status = one(
        &server,
        &["status"],
        &["addr", "health", "server", "models"],
    );
    assert_eq!(status["event"], "status");
}

#[test]
fn a_failure_is_the_last_object_with_its_code_and_its_reason() {
    let server = Server::start(&[]);
    let error = one(&server, &["models", "show", "nobody"], &["message"]);
    assert_eq!(error["event"], "error");
    assert_eq!(error["code"], "NOT_FOUND");
    assert_eq!(error["reason"], "MODEL_NOT_FOUND");
    assert_eq!(error["exit_code"], 1);
    let unread = ["train", "--text", "/nowhere", "--model", "m"];
    let error = one(&server, &unread, &["message"]);
    assert_eq!(error["exit_code"], 2);
}

#[test]
fn a_cancelled_training_reports_it_and_ends() {
    let server = Server::start(&[]);
    let output = train_small(&server, "verse", &["--detach", "--epochs", "1000"]);
    let id = output.stdout.trim();
    let cancelled = one(&server, &["trainings", "cancel", id], &["training_id"]);
    assert_eq!(cancelled["event"], "cancelling");
    let watched = objects(&server, &["trainings", "watch", id]);
    let end = watched.iter().find(|event| event["event"] == "finished");
    assert_eq!(end.unwrap()["state"], "STATE_CANCELLED");
}
