//! Runs the command that the command line names. Each command is a file in
//! `commands/`.

mod bench;
mod completions;
mod corpus;
mod follow;
mod generate;
mod generation;
mod input;
mod man;
mod models;
mod queue_monitor;
mod repl;
mod retry;
mod run;
mod score;
mod sessions;
mod status;
mod train;
mod trainings;
mod upload;

use crate::args::{Command, CommandLine};
use crate::connection::{self, Connection};
use crate::failure::{Failure, connection_lost};
use crate::output::Output;

/// Runs the command until it ends.
pub(crate) async fn run(command_line: CommandLine, output: Output) -> Result<(), Failure> {
    let global = command_line.global.clone();
    match dispatch(command_line, output).await {
        Err(Failure::Server(status)) if connection_lost(&status) => {
            // tonic's message does not say that the server expects TLS.
            match connection::tls_mismatch(&global.addr).await {
                Some(failure) => Err(failure),
                None => Err(Failure::Server(status)),
            }
        }
        outcome => outcome,
    }
}

async fn dispatch(command_line: CommandLine, output: Output) -> Result<(), Failure> {
    let global = &command_line.global;
    match command_line.command {
        // These work without a server.
        Command::Completions { shell } => completions::run(shell, output),
        Command::Man { folder } => man::run(&folder, output),
        // These check their files before they connect.
        Command::Train(train) => train::run(*train, global, output).await,
        Command::Run(run) => run::run(*run, global, output).await,
        Command::Score(score) => score::run(score, global, output).await,
        Command::Models { command } => models::run(command, global, output).await,
        Command::Sessions { command } => sessions::run(command, global, output).await,
        Command::Generate(generate) => generate::run(generate, global, output).await,
        // These only need a connection.
        Command::Bench(bench) => bench::run(bench, global, output).await,
        Command::Repl(repl) => repl::run(repl, &Connection::open(global).await?, output).await,
        Command::Trainings { command } => {
            trainings::run(command, &Connection::open(global).await?, output).await
        }
        Command::Status => status::run(global, &Connection::open(global).await?, output).await,
    }
}
