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

use crate::args::{Command, CommandLine, ModelsCommand, TrainingsCommand};
use crate::connection::Connection;
use crate::failure::Failure;
use crate::output::Output;
use crate::output_file::Existing;

pub(crate) use man::run as write_manual;

/// Runs the command until it ends or its time limit is over.
pub(crate) async fn run(command_line: CommandLine, output: Output) -> Result<(), Failure> {
    let timeout = command_line.global.timeout;
    let follows_training = matches!(
        command_line.command,
        Command::Train(_)
            | Command::Trainings {
                command: TrainingsCommand::Watch { .. } | TrainingsCommand::Resume { .. }
            }
    );
    let Some(timeout) = timeout else {
        return dispatch(command_line, output).await;
    };
    match tokio::time::timeout(timeout, dispatch(command_line, output)).await {
        Ok(outcome) => outcome,
        Err(_) if follows_training => Err(Failure::TimedOut(timeout).with_remedy(
            "the training is not cancelled: `charlstm-client trainings list` shows it",
        )),
        Err(_) => Err(Failure::TimedOut(timeout)),
    }
}

async fn dispatch(command_line: CommandLine, output: Output) -> Result<(), Failure> {
    let global = &command_line.global;
    match command_line.command {
        // These work without a server.
        Command::Completions {
            shell,
            output: file,
            force,
        } => completions::run(shell, file.as_deref(), Existing::from_force(force), output),
        // These check their files before they connect.
        Command::Train(train) => train::run(*train, global, output).await,
        Command::Run(run) => run::run(*run, global, output).await,
        Command::Score(score) => score::run(score, global, output).await,
        Command::Models { command } => models::run(command, global, output).await,
        Command::Ls => models::run(ModelsCommand::List, global, output).await,
        Command::Rm(args) => models::run(ModelsCommand::Delete(args), global, output).await,
        Command::Cp(args) => models::run(ModelsCommand::Copy(args), global, output).await,
        Command::Rename(args) => models::run(ModelsCommand::Rename(args), global, output).await,
        Command::Sessions { command } => sessions::run(command, global, output).await,
        Command::Generate(generate) => generate::run(generate, global, output).await,
        // These only need a connection.
        Command::Bench(bench) => bench::run(bench, global, output).await,
        Command::Repl(repl) => repl::run(repl, &Connection::open(global).await?, output).await,
        Command::Trainings { command } => trainings::run(command, global, output).await,
        Command::Ps => trainings::run(TrainingsCommand::List, global, output).await,
        Command::Status => status::run(global, &Connection::open(global).await?, output).await,
    }
}
