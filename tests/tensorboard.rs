//! The event files of `--tensorboard`, read with the reader of TensorBoard.

use std::process::Command;

use crate::support::process::run;
use crate::support::tools::python_tool;
use crate::support::{Server, train_small};

#[test]
fn tensorboard_reads_the_losses_that_the_client_received() {
    let Some(python) = python_tool("python") else {
        return;
    };
    let server = Server::start(&["--tensorboard"]);
    let flags = ["--epochs", "3", "--validation-fraction", "0.1"];
    let output = train_small(&server, "verse", &[&flags[..], &["--json"]].concat());
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    let reported: Vec<serde_json::Value> = output
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|event: &serde_json::Value| event["event"] == "epoch")
        .collect();
    assert_eq!(reported.len(), 3);

    let trainings = server.data_dir().join("trainings");
    let id = reported[0]["training_id"].as_str().unwrap();
    let folder = trainings.join(id).join("tensorboard");
    let mut reader = Command::new(python);
    reader.arg("tests/python/read_tensorboard.py").arg(&folder);
    let read: serde_json::Value = serde_json::from_str(&run(&mut reader)).unwrap();
    for (tag, field) in [
        ("loss/epoch", "train_loss"),
        ("loss/validation", "validation_loss"),
        ("bits_per_char", "bits_per_char"),
    ] {
        let scalars = read[tag].as_array().unwrap();
        assert_eq!(scalars.len(), 3, "{tag} in {read}");
        for (scalar, epoch) in scalars.iter().zip(&reported) {
            assert_eq!(scalar[0], epoch["step"], "{tag}");
            // The files hold single precision.
            let value = epoch[field].as_f64().unwrap();
            let difference = scalar[1].as_f64().unwrap() - value;
            assert!(difference.abs() < 1e-6 * value.abs().max(1.0), "{tag}");
        }
    }
    for tag in [
        "loss/step",
        "learning_rate",
        "gradient_norm",
        "chars_per_second",
    ] {
        assert!(!read[tag].as_array().unwrap().is_empty(), "{tag} in {read}");
    }
}
