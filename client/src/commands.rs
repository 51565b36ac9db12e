//! One file for each command, and which one runs. The flags are in `args`.

mod bench;
mod completions;
mod corpus;
mod follow;
mod generate;
mod input;
mod load;
mod man;
mod models;
mod repl;
mod replay;
mod run;
mod score;
mod sessions;
mod status;
mod train;
mod trainings;
mod upload;

use crate::args::{Args, Command};
use crate::connect::{self, Connection};
use crate::exit::{Failure, lost_connection};
use crate::output::Output;

/// Runs the command of `args` to its end.
pub(crate) async fn run(args: Args, output: Output) -> Result<(), Failure> {
    let global = args.global.clone();
    match dispatch(args, output).await {
        Err(Failure::Server(status)) if lost_connection(&status) => {
            // tonic's own words for a server that answers in TLS say nothing.
            match connect::speaks_tls(&global.addr).await {
                Some(failure) => Err(failure),
                None => Err(Failure::Server(status)),
            }
        }
        outcome => outcome,
    }
}

async fn dispatch(args: Args, output: Output) -> Result<(), Failure> {
    let global = &args.global;
    match args.command {
        // These need no server.
        Command::Completions { shell } => completions::run(shell, output),
        Command::Man { folder } => man::run(&folder, output),
        // These look at their file before they look for a server.
        Command::Train(train) => train::run(*train, global, output).await,
        Command::Run(run) => run::run(*run, global, output).await,
        Command::Score(score) => score::run(score, global, output).await,
        Command::Generate(generate) => {
            generate::run(generate, &Connection::open(global).await?, output).await
        }
        Command::Repl(repl) => repl::run(repl, &Connection::open(global).await?, output).await,
        Command::Trainings { command } => {
            trainings::run(command, &Connection::open(global).await?, output).await
        }
        Command::Models { command } => models::run(command, global, output).await,
        Command::Sessions { command } => sessions::run(command, global, output).await,
        Command::Bench(bench) => bench::run(bench, global, output).await,
        Command::Status => status::run(global, &Connection::open(global).await?, output).await,
    }
}
