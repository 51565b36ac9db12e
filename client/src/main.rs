//! The command-line client of charlstm. Here is only how a run begins and
//! ends: flags in, exit code out. What each command does is in `commands/`.

mod args;
mod commands;
mod connect;
mod exit;
mod human;
mod json;
mod output;
mod plot;
mod progress;

use std::process::ExitCode;

use clap::Parser;
use tokio::runtime::{Builder, Runtime};

use crate::args::Args;
use crate::exit::{Failure, Unclaimed};
use crate::output::Output;

fn main() -> ExitCode {
    // Wrong usage and `--help` end in here, with clap's own words.
    let args = Args::parse();
    let output = Output::new(args.global.json);

    // Two workers, so that Ctrl-C is heard while a write to a full pipe blocks
    // the command on the other one.
    let outcome = match Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => run(runtime, args, output),
        Err(error) => Err(Failure::Io {
            what: "start the runtime".into(),
            source: error,
        }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Runs the command until it ends or Ctrl-C ends it.
fn run(runtime: Runtime, args: Args, output: Output) -> Result<(), Failure> {
    // Listened for before the command begins, so that none comes too early.
    let mut interrupts = {
        let _context = runtime.enter();
        Unclaimed::listen()
    };
    let task = runtime.spawn(commands::run(args, output));
    let outcome = runtime.block_on(async {
        tokio::select! {
            joined = task => joined.unwrap_or_else(|error| Err(Failure::Internal(error.to_string()))),
            () = interrupts.next() => Err(Failure::Interrupted),
        }
    });
    // A thread that still waits for the keyboard must not hold the exit up.
    runtime.shutdown_background();
    outcome
}
