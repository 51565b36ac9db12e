//! The command-line client of charlstm: parses the command line, runs one
//! command and turns its outcome into an exit code. Each command is a file in
//! `commands/`.

mod args;
mod commands;
mod connection;
mod display;
mod failure;
mod field_names;
mod file_content;
mod interrupt;
mod json;
mod load_test;
mod output;
mod output_file;
#[cfg_attr(not(feature = "plot"), path = "plot/disabled.rs")]
mod plot;
mod progress;
mod suggestion;
mod terminal_text;
mod text_decoder;

use std::process::ExitCode;

use clap::Parser;
use tokio::runtime::{Builder, Runtime};

use crate::args::CommandLine;
use crate::failure::Failure;
use crate::field_names::FieldNames;
use crate::interrupt::UnclaimedInterrupts;
use crate::output::Output;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if std::env::args_os().nth(1).is_some_and(|name| name == "man") {
        let output = Output::new(false);
        // Without the name of the program.
        arguments.next();
        return exit_code(
            commands::write_manual(arguments, output),
            output,
            FieldNames::CONTRACT,
        );
    }
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(error) => return usage_error(&error),
    };
    let output = Output::new(command_line.global.json);
    let field_names = FieldNames::of_command(&command_line.command);

    // Two workers: while a write to a full pipe blocks one of them, the other
    // one still handles Ctrl-C.
    let outcome = match Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => run(runtime, command_line, output),
        Err(error) => Err(Failure::Io {
            action: "start the async runtime".into(),
            source: error,
        }),
    };
    exit_code(outcome, output, field_names)
}

/// Reports a failure and returns the exit code of the program.
fn exit_code(outcome: Result<(), Failure>, output: Output, field_names: FieldNames) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure, field_names);
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Prints `--help`, `--version` or an error of the command line; with `--json`,
/// an error is also an object on standard output, as any other failure is.
fn usage_error(error: &clap::Error) -> ExitCode {
    let is_json = std::env::args_os()
        .take_while(|argument| argument != "--")
        .any(|argument| argument == "--json");
    if error.use_stderr() && is_json {
        let message = error.render().to_string();
        let message = message.trim().trim_start_matches("error: ").to_owned();
        Output::new(true).failure_object(&Failure::Usage(message));
    }
    // If standard error is closed, nobody can be told about it.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Runs the command until it returns or an unclaimed Ctrl-C interrupts it.
fn run(runtime: Runtime, command_line: CommandLine, output: Output) -> Result<(), Failure> {
    // The listener is installed before the command starts, so that no Ctrl-C
    // is missed.
    let mut interrupts = {
        let _context = runtime.enter();
        UnclaimedInterrupts::listen()
    };
    let task = runtime.spawn(commands::run(command_line, output));
    let outcome = runtime.block_on(async {
        tokio::select! {
            joined = task => joined.unwrap_or_else(|error| Err(Failure::Internal(error.to_string()))),
            () = interrupts.next() => {
                progress::remove_bars();
                Err(Failure::Interrupted)
            }
        }
    });
    // Do not wait for a thread that is blocked reading the keyboard.
    runtime.shutdown_background();
    outcome
}
