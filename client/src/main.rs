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
    // clap prints `--help` and errors of the command line itself, and exits.
    let command_line = CommandLine::parse();
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
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure, field_names);
            ExitCode::from(failure.exit_code())
        }
    }
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
            () = interrupts.next() => Err(Failure::Interrupted),
        }
    });
    // Do not wait for a thread that is blocked reading the keyboard.
    runtime.shutdown_background();
    outcome
}
