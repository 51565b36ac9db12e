//! A corpus, and the model that most tests train on it.

use super::{CommandOutput, Server, ask};

/// Returns lines of verse of about `chars` characters with a simple rule, so
/// that a small network learns something of it within seconds.
pub(crate) fn verse(chars: usize) -> String {
    let words = [
        "arma", "virumque", "cano", "Troiæ", "qui", "primus", "ab", "oris",
    ];
    let mut text = String::new();
    for n in 0.. {
        text.push_str(words[(n * n + n / 7) % words.len()]);
        text.push(if n % 9 == 8 { '\n' } else { ' ' });
        if text.chars().count() >= chars {
            break;
        }
    }
    text
}

/// Returns a few thousand characters, some of which take more than one byte.
pub(crate) fn latin() -> String {
    let line = "Gallia est omnis divisa in partes tres, quarum unam incolunt Belgæ – “ipsi”.\n";
    line.repeat(60)
}

/// Trains a small model within a few seconds. `further` are more flags, which
/// replace those of [`SMALL`].
pub(crate) fn train_small(server: &Server, model: &str, further: &[&str]) -> CommandOutput {
    let text = server.folder().join(format!("{model}.txt"));
    std::fs::write(&text, verse(6000)).unwrap();
    let mut arguments = vec!["train", "--text", text.to_str().unwrap(), "--model", model];
    for pair in SMALL.chunks(2).filter(|pair| !further.contains(&pair[0])) {
        arguments.extend_from_slice(pair);
    }
    arguments.extend_from_slice(further);
    ask(server, &arguments)
}

/// The sizes of a network that trains within seconds.
pub(crate) const SMALL: &[&str] = &[
    "--hidden-size",
    "32",
    "--batch-size",
    "8",
    "--sequence-length",
    "20",
    "--learning-rate",
    "0.01",
    "--epochs",
    "2",
    "--seed",
    "5",
];
