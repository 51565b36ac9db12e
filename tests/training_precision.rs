//! The number format of a training: how it is chosen and where it is reported.

use crate::support::{Server, ask, ask_ok, train_small};

/// Returns what `accepted` reports as the precision of a training with a flag.
fn resolved(server: &Server, precision: &str) -> String {
    let flags = ["--epochs", "1", "--json", "--precision", precision];
    let output = train_small(server, precision, &flags);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let accepted = output
        .stdout
        .lines()
        .find(|line| line.contains("\"event\":\"accepted\""))
        .expect("the training is accepted");
    let accepted: serde_json::Value = serde_json::from_str(accepted).expect("a line of JSON");
    let precision = &accepted["resolved_spec"]["precision"];
    precision.as_str().expect("a string").to_owned()
}

#[test]
fn the_precision_of_a_training_is_resolved_once_and_reported_with_its_model() {
    let server = Server::start(&[]);
    for precision in ["float32", "bf16"] {
        assert_eq!(resolved(&server, precision), precision);
        let shown = ask_ok(&server, &["models", "show", precision]);
        assert!(shown.contains(&format!(", {precision}, on ")), "{shown}");
    }
    let automatic = resolved(&server, "auto");
    assert!(
        ["float32", "bf16"].contains(&automatic.as_str()),
        "{automatic}"
    );
}

#[test]
fn without_instructions_for_bfloat16_auto_is_float32() {
    let server = Server::start(&["--kernels", "portable"]);
    assert_eq!(resolved(&server, "auto"), "float32");
    assert_eq!(resolved(&server, "bf16"), "bf16");
}

#[test]
fn an_unknown_precision_and_impossible_techniques_are_rejected_by_their_flags() {
    let server = Server::start(&[]);
    for (flag, value, expected) in [
        ("--precision", "int8", "must be one of auto, float32, bf16"),
        ("--weight-decay", "2", "must be 0 to 1"),
        ("--recurrent-dropout", "1", "at least 0, under 1"),
        ("--input-dropout", "-0.1", "at least 0, under 1"),
        ("--average-decay", "1", "at least 0, under 1"),
    ] {
        let output = train_small(&server, "m", &[flag, value]);
        assert_eq!(output.code, Some(1), "{}", output.stderr);
        assert!(output.stderr.contains(flag), "{}", output.stderr);
        assert!(output.stderr.contains(expected), "{}", output.stderr);
    }
    assert!(ask(&server, &["models", "show", "m"]).code != Some(0));
}
