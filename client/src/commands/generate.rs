//! `generate`: prints the prompt and the text as it is generated.

use std::path::Path;

use charlstm_proto::v1::GenerateRequest;

use super::corpus::Corpus;
use super::generation::{self, IfBusy, Printer};
use crate::args::{GenerateArgs, GlobalFlags, TextFlags};
use crate::connection::Connection;
use crate::failure::Failure;
use crate::output::Output;
use crate::text_decoder::TextDecoder;

/// Printed between two samples.
const SEPARATOR: &str = "---\n";

/// Generates one text or several, and prints them.
pub(crate) async fn run(
    args: GenerateArgs,
    global: &GlobalFlags,
    output: Output,
) -> Result<(), Failure> {
    let request = GenerateRequest {
        prime: prime(&args, output)?,
        model: args.model,
        unknown: args.unknown.to_contract().into(),
        max_chars: Some(args.length),
        session_id: args.session,
        sampling: Some(args.sampling.to_sampling()),
        stop: args.stop,
        ..Default::default()
    };
    let connection = Connection::open(global).await?;
    let echo = (!args.no_echo).then(|| request.prime.clone());
    let first_seed = args.sampling.seed.unwrap_or_else(rand::random);
    for index in 0..args.samples {
        let mut request = request.clone();
        if args.samples > 1 {
            let seed = first_seed.wrapping_add(index.into());
            if let Some(sampling) = &mut request.sampling {
                sampling.seed = Some(seed);
            }
            if !output.json {
                if index > 0 {
                    output.text(SEPARATOR)?;
                }
                output.note(&format!(
                    "sample {} of {} (--seed {seed})",
                    index + 1,
                    args.samples
                ));
            }
        }
        let mut printer = Printer::new(echo.clone(), output);
        let outcome = generation::run(&connection, request, IfBusy::Fail, &mut printer).await;
        printer.end_line()?;
        outcome?;
        if args.samples > 1 && !output.json && !output.is_terminal() {
            output.text("\n")?;
        }
    }
    Ok(())
}

/// Returns the prompt: the text of `--prime` or the content of `--prime-file`.
fn prime(args: &GenerateArgs, output: Output) -> Result<String, Failure> {
    let (mut prime, messages) = match (&args.prime, &args.prime_file) {
        (_, Some(path)) => {
            let flags = TextFlags::with_line_endings(args.crlf);
            let corpus = Corpus::open(std::slice::from_ref(path), &flags)?;
            let mut messages = corpus.messages();
            for message in messages.drain(..) {
                output.note(&message);
            }
            let changes = corpus.changes();
            (corpus.into_text()?, changes.messages())
        }
        (Some(prime), None) => {
            let decoded = TextDecoder::decode_all(prime.as_bytes(), args.crlf);
            let (prime, changes) = decoded.map_err(|invalid| {
                Failure::Usage(format!("--prime: {}", invalid.reason(Path::new("-"))))
            })?;
            (prime, changes.messages())
        }
        (None, None) => (String::new(), Vec::new()),
    };
    for message in messages {
        output.note(&message);
    }
    // Editors and `echo` end a file with a line break.
    if args.prime_file.is_some() && prime.ends_with('\n') {
        prime.pop();
    }
    Ok(prime)
}
