//! The REPL with its input in a pipe.

use std::io::Write;
use std::process::{Output, Stdio};

use crate::fake::FakeServer;
use crate::{client, text};

/// Runs the REPL with `typed` as its input.
fn repl(fake: &FakeServer, flags: &[&str], typed: &[u8]) -> Output {
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let mut child = client(
        server.address,
        &[&["repl", "--length", "3"], flags].concat(),
    )
    .env("XDG_STATE_HOME", folder.path())
    .stdin(Stdio::piped())
    .spawn()
    .unwrap();
    // A client that has ended says why.
    let _ = child.stdin.take().unwrap().write_all(typed);
    child.wait_with_output().unwrap()
}

fn assert_success(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn every_line_that_cannot_be_continued_is_reported_and_the_others_are() {
    let fake = FakeServer::default();
    let output = repl(&fake, &[], b"Line 1\ncaf\xe9\nLine 3\n/set heat 1\n");
    assert_eq!(text(&output.stdout), "abc\ndef\n");
    assert_eq!(output.status.code(), Some(1));
    let messages = text(&output.stderr);
    assert!(
        messages.contains("error: line 2: invalid UTF-8 at byte 3"),
        "{messages}"
    );
    assert!(
        messages.contains("error: line 4: unknown setting"),
        "{messages}"
    );
    assert!(
        messages.contains("2 lines of the input could not be continued"),
        "{messages}"
    );
}

#[test]
fn an_evicted_session_or_an_unknown_model_is_an_error_at_the_start() {
    let fake = FakeServer::default();
    fake.evicted.lock().unwrap().insert("z".into());
    let output = repl(&fake, &["--session", "z"], b"text\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("sessions delete z"));
    let output = repl(&fake, &["--model", "nope"], b"text\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("nope"));
    assert!(fake.received.lock().unwrap().generate.is_empty());
}

#[test]
fn undo_continues_where_the_last_text_began_and_retry_takes_another_seed() {
    let fake = FakeServer::default();
    let output = repl(
        &fake,
        &[],
        b"one\ntwo\n/undo\nthree\n/retry\n/set seed 9\n/retry\n",
    );
    assert_success(&output);
    assert_eq!(text(&output.stdout), "abc\ndef\ndef\ndef\ndef\n");
    let received = fake.received.lock().unwrap();
    let calls: Vec<_> = received
        .generate
        .iter()
        .map(|call| (call.prime.as_str(), call.expected_position.unwrap()))
        .collect();
    let expected = [
        ("one", 0),
        ("two", 6),
        ("three", 6),
        ("three", 6),
        ("three", 6),
    ];
    assert_eq!(calls, expected);
    let seed = |index: usize| received.generate[index].sampling.as_ref().unwrap().seed;
    assert!(seed(0).is_some() && seed(3).is_some());
    assert_eq!((seed(1), seed(2), seed(4)), (None, None, Some(9)));
}

#[test]
fn undo_without_a_text_and_a_copy_of_an_undone_text_are_rejected() {
    let fake = FakeServer::default();
    let output = repl(
        &fake,
        &[],
        b"/undo\n/save\none\n/undo\n/undo\n/save\n/fork x\n",
    );
    assert_eq!(output.status.code(), Some(1));
    let messages = text(&output.stderr);
    assert_eq!(
        messages.matches("there is nothing to undo").count(),
        2,
        "{messages}"
    );
    assert!(
        messages.contains("line 2: the session is empty"),
        "{messages}"
    );
    assert_eq!(
        messages.matches("undone is still part").count(),
        2,
        "{messages}"
    );
}

#[test]
fn a_saved_session_is_loaded_under_another_id_and_not_overwritten() {
    let fake = FakeServer::default();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("my tale.session");
    let path = file.to_str().unwrap();
    let typed = format!("one\n/save {path}\n/reset\n/load {path}\ntwo\n/save --force {path}\n");
    let output = repl(&fake, &[], typed.as_bytes());
    assert_success(&output);
    let received = fake.received.lock().unwrap();
    let (first, second) = (&received.generate[0], &received.generate[1]);
    assert_ne!(first.session_id(), second.session_id());
    assert_eq!(second.expected_position, Some(6));
    assert_eq!(second.model, "m@1");
    drop(received);
    assert_eq!(std::fs::read(&file).unwrap(), b"12 1");
    let output = repl(&fake, &[], format!("one\n/save {path}\n").as_bytes());
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("exists already"));
}

#[test]
fn another_model_starts_another_session() {
    let fake = FakeServer::default();
    fake.publish();
    let output = repl(
        &fake,
        &["--model", "m@1"],
        b"one\n/model m\ntwo\n/model nope\n/model\n",
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("line 4: there is no model \"nope\""));
    assert!(text(&output.stderr).contains("using m@2; available: m"));
    let received = fake.received.lock().unwrap();
    let models: Vec<_> = received
        .generate
        .iter()
        .map(|it| it.model.as_str())
        .collect();
    assert_eq!(models, ["m@1", "m@2"]);
    assert_eq!(received.generate[1].expected_position, Some(0));
}

#[test]
fn a_stop_text_can_be_set() {
    let fake = FakeServer::default();
    let output = repl(&fake, &[], b"/set stop The End\none\n");
    assert_success(&output);
    assert_eq!(fake.received.lock().unwrap().generate[0].stop, ["The End"]);
}

#[test]
fn a_session_that_the_repl_has_named_is_deleted_at_the_end() {
    let fake = FakeServer::default();
    assert_success(&repl(&fake, &[], b"one\n"));
    assert!(fake.sessions.lock().unwrap().is_empty());
    assert_success(&repl(&fake, &["--session", "mine"], b"one\n"));
    assert_success(&repl(&fake, &["--session", "mine"], b"\n"));
    assert_eq!(
        fake.sessions.lock().unwrap()["mine"].end.position,
        3 + 3 + 3
    );
}
