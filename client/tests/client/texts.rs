//! Texts that the client reads: every command reads them in the same way.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use crate::fake::FakeServer;
use crate::{client, run, text};

fn write(folder: &Path, name: &str, content: &[u8]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn every_command_removes_the_byte_order_mark_and_converts_line_endings() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let windows = write(folder.path(), "w.txt", "\u{feff}a\r\nb\rc\r\n".as_bytes());
    for arguments in [
        &["train", "--text", &windows, "--model", "m"][..],
        &["score", "--text", &windows],
        &["generate", "--prime-file", &windows],
        &["generate", "--prime", "\u{feff}a\r\nb\rc"],
        &[
            "models", "import", &windows, "--pth", "--text", &windows, "--model", "m",
        ],
    ] {
        let output = run(server.address, arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let messages = text(&output.stderr);
        assert!(messages.contains("removed 1 byte order mark"), "{messages}");
        assert!(messages.contains("from CR LF to LF"), "{messages}");
        assert!(
            messages.contains("converted 1 line ending from CR to LF"),
            "{messages}"
        );
    }
    let received = fake.received.lock().unwrap();
    assert_eq!(text(&received.corpus), "a\nb\nc\n");
    assert_eq!(received.scored, ["a\nb\nc\n", "a\nb\nc\n"]);
    // One line break at the end of a prompt file is dropped.
    let primes: Vec<_> = received
        .generate
        .iter()
        .map(|it| it.prime.as_str())
        .collect();
    assert_eq!(primes, ["a\nb\nc", "a\nb\nc"]);
    let Some(charlstm_proto::v1::import_model_request::Payload::Header(header)) =
        &received.imported[0].payload
    else {
        panic!("the first message is the header");
    };
    assert_eq!(header.vocabulary, "\nabc");
}

#[test]
fn line_endings_are_kept_if_asked_to() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let windows = write(folder.path(), "w.txt", b"a\r\nb\r");
    let arguments = ["score", "--text", &windows, "--crlf", "keep"];
    let output = run(server.address, &arguments);
    assert_eq!(text(&output.stderr), "");
    assert_eq!(fake.received.lock().unwrap().scored, ["a\r\nb\r"]);
}

#[test]
fn a_text_in_another_encoding_is_an_error_that_names_it_and_how_to_convert_it() {
    let server = FakeServer::default().serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let wide = write(folder.path(), "wide.txt", b"\xff\xfea\0b\0");
    let latin = write(folder.path(), "latin.txt", b"Gr\xf6\xdfe");
    let packed = write(folder.path(), "packed.gz", b"\x1f\x8b\x08\0");
    for (path, words) in [
        (&wide, format!("iconv -f UTF-16 -t UTF-8 {wide}")),
        (
            &latin,
            format!(
                "invalid UTF-8 at byte 2; it looks like Latin-1 or Windows-1252 text; convert it with `iconv -f WINDOWS-1252 -t UTF-8 {latin}"
            ),
        ),
        (&packed, "zcat".to_owned()),
    ] {
        for arguments in [
            &["train", "--text", path, "--model", "m"][..],
            &["score", "--text", path],
            &["generate", "--prime-file", path],
            &["run", "--text", path],
        ] {
            let output = run(server.address, arguments);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}");
            let message = text(&output.stderr);
            assert!(message.contains(&words), "{message}");
        }
    }
}

#[test]
fn control_characters_are_reported_and_kept() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let log = write(folder.path(), "log.txt", b"\x1b[31mred\x1b[0m\0\n");
    let output = run(server.address, &["train", "--text", &log, "--model", "m"]);
    assert_eq!(output.status.code(), Some(0));
    let messages = text(&output.stderr);
    assert!(
        messages.contains("U+0000 (once), U+001B (twice)"),
        "{messages}"
    );
    assert_eq!(
        fake.received.lock().unwrap().corpus,
        b"\x1b[31mred\x1b[0m\0\n"
    );
}

#[test]
fn a_folder_is_read_by_extension_and_what_is_used_and_skipped_is_named() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "book.txt", b"book");
    write(folder.path(), "loss.svg", b"<svg/>");
    write(folder.path(), "latin.txt", b"caf\xe9");
    let path = folder.path().to_str().unwrap();
    let output = run(server.address, &["train", "--text", path, "--model", "m"]);
    assert_eq!(output.status.code(), Some(0));
    let messages = text(&output.stderr);
    assert!(messages.contains("reading 1 file: "), "{messages}");
    assert!(
        messages.contains("latin.txt: invalid UTF-8 at byte 3"),
        "{messages}"
    );
    assert!(
        messages.contains("without the extension .txt or .md: "),
        "{messages}"
    );
    assert!(
        messages.contains("loss.svg (use --extensions"),
        "{messages}"
    );
    assert_eq!(fake.received.lock().unwrap().corpus, b"book");
}

#[test]
fn a_prompt_can_come_from_standard_input() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    let arguments = ["generate", "--prime-file", "-", "--length", "3"];
    let mut child = client(server.address, &arguments)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // More than fits on a command line.
    let prompt = "It was. ".repeat(50_000);
    let mut stdin = child.stdin.take().unwrap();
    let content = format!("{prompt}\n");
    let writer = std::thread::spawn(move || stdin.write_all(content.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout) == format!("{prompt}abc"));
    assert!(fake.received.lock().unwrap().generate[0].prime == prompt);
}

#[test]
fn a_prompt_that_is_too_long_for_one_message_is_an_error_that_says_what_to_do() {
    let server = FakeServer::default().serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let long = write(folder.path(), "long.txt", "a".repeat(5_000_000).as_bytes());
    let output = run(server.address, &["generate", "--prime-file", &long]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    let words = "the prompt is too long for one call; split it";
    assert!(message.contains(words), "{message}");
}

#[test]
fn a_text_of_any_size_is_scored_in_parts() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    // More than a message may have, and no chunk ends between characters.
    let content = format!("x{}", "é€\n".repeat(1_000_000));
    let long = write(folder.path(), "long.txt", content.as_bytes());
    let output = run(server.address, &["score", "--json", "--text", &long]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let score: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(score["event"], "score");
    assert_eq!(score["chars"], 3_000_000);
    assert!(fake.received.lock().unwrap().scored == [content]);
}

#[test]
fn several_samples_have_consecutive_seeds_and_a_line_between_them() {
    let fake = FakeServer::default();
    let server = fake.serve("127.0.0.1:0");
    let arguments = [
        "generate", "--prime", "> ", "--length", "3", "-n", "3", "--seed", "7",
    ];
    let output = run(server.address, &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "> abc\n---\n> abc\n---\n> abc\n");
    assert!(text(&output.stderr).contains("sample 2 of 3 (--seed 8)"));
    let received = fake.received.lock().unwrap();
    let seeds = received
        .generate
        .iter()
        .map(|it| it.sampling.as_ref().unwrap().seed);
    assert_eq!(seeds.collect::<Vec<_>>(), [Some(7), Some(8), Some(9)]);
}

#[test]
fn an_imported_model_that_makes_no_sense_of_its_text_is_deleted_again() {
    let fake = FakeServer {
        bits_per_char: Some(15.4),
        ..Default::default()
    };
    let server = fake.serve("127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "rnn.net", b"weights");
    let corpus = write(folder.path(), "book.txt", b"abc\n");
    let arguments = [
        "models", "import", &file, "--pth", "--text", &corpus, "--model", "m",
    ];
    let output = run(server.address, &arguments);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.contains("15.40 bits per character, chance is 2.00"),
        "{message}"
    );
    assert!(message.contains("--vocabulary FILE"), "{message}");
    assert_eq!(fake.received.lock().unwrap().deleted_models, ["m@2"]);
}
