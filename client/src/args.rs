//! The command line: every command and flag, with its help. What the flags
//! mean for a request is in `args/spec.rs` and `args/sampling.rs`; what a
//! command does is in `commands/`.

pub(crate) mod sampling;
pub(crate) mod spec;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

pub(crate) use sampling::SamplingFlags;
pub(crate) use spec::SpecFlags;

use crate::plot::picture_file;

/// Trains character LSTMs on a charlstm server and generates text from them.
#[derive(Debug, Parser)]
#[command(
    name = "charlstm-client",
    version,
    propagate_version = true,
    after_help = "Examples:\n  \
        charlstm-client train --text book.txt --model book --epochs 5\n  \
        charlstm-client generate --model book --prime \"It was \" --length 500\n  \
        charlstm-client status\n\n\
        Exit codes: 0 done, 1 the server or the network said no, 2 wrong usage, 130 interrupted."
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command has.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Connection and output")]
pub(crate) struct Global {
    /// Address of the server; `https://` for TLS
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "CHARLSTM_ADDR",
        default_value = "http://127.0.0.1:50051"
    )]
    pub(crate) addr: String,
    /// File with the token that the server asks for
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Certificate authority (PEM) to trust instead of the system's
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Print one JSON object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The shortest way in: start a server, train on a text, talk with it
    #[command(after_help = "Examples:\n  \
        charlstm-client run --text book.txt\n  \
        charlstm-client run\n\n\
        Uses the server at --addr, or starts one there that ends with this command. Trains\n\
        only where there is no model of that name yet; a training that was broken off goes on.")]
    Run(Box<RunArgs>),
    /// Train a model on a text, with live progress
    #[command(after_help = "Examples:\n  \
        charlstm-client train --text book.txt --model book\n  \
        charlstm-client train --text novels/ --text letters.txt --model all --plot loss.svg\n  \
        zcat text.gz | charlstm-client train --text - --model all --epochs 3\n\n\
        The first Ctrl-C cancels the training (a checkpoint is saved, see `trainings resume`),\n\
        the second one leaves at once.")]
    Train(Box<TrainArgs>),
    /// Generate text: the prime and what follows, as it comes
    #[command(after_help = "Examples:\n  \
        charlstm-client generate --model book --prime \"It was \" --length 500\n  \
        charlstm-client generate --prime \"Once\" --session tale\n  \
        charlstm-client generate --session tale --no-echo")]
    Generate(GenerateArgs),
    /// Talk with a session: text in, continuation out
    #[command(after_help = "Type /help in it to see what it understands.")]
    Repl(ReplArgs),
    /// Tell how well a model predicts a text, in bits per character
    #[command(after_help = "Example:\n  charlstm-client score --text page.txt --model book")]
    Score(ScoreArgs),
    /// List, watch, cancel and resume trainings
    Trainings {
        #[command(subcommand)]
        command: TrainingsCommand,
    },
    /// List, describe, delete, export and import models
    Models {
        #[command(subcommand)]
        command: ModelsCommand,
    },
    /// List, describe, fork, delete, export and import sessions
    Sessions {
        #[command(subcommand)]
        command: SessionsCommand,
    },
    /// Measure the server: time to the first character, time between
    /// characters, characters a second
    #[command(after_help = "Example:\n  charlstm-client bench --sessions 1,8,64 --seconds 10")]
    Bench(BenchArgs),
    /// Show the server's health, device, load and models
    Status,
    /// Print the completion script of a shell
    #[command(after_help = "Example:\n  charlstm-client completions bash > \
            ~/.local/share/bash-completion/completions/charlstm-client")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one for each command
    #[command(hide = true)]
    Man {
        /// Folder to write them into
        folder: PathBuf,
    },
}

/// What to learn from.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct CorpusFlags {
    /// Text to train on, UTF-8: a file, a folder (all text files in it and
    /// below it, in the order of their names), or `-` for standard input; may
    /// be repeated
    #[arg(long, value_name = "FILE|FOLDER|-", required = true)]
    pub(crate) text: Vec<PathBuf>,
    /// What becomes of line ends as Windows writes them
    #[arg(long, value_name = "WHAT", default_value = "lf")]
    pub(crate) crlf: LineEnds,
}

/// What becomes of CR LF.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum LineEnds {
    /// They become LF, so that the model does not have to learn both
    #[default]
    Lf,
    /// They stay
    Keep,
}

/// Flags of `run`.
#[derive(Debug, ClapArgs)]
pub(crate) struct RunArgs {
    /// Text to train on where there is no model yet: a file or a folder of
    /// them, UTF-8; may be repeated
    #[arg(long, value_name = "FILE|FOLDER")]
    pub(crate) text: Vec<PathBuf>,
    /// Model to talk with, or to make [default: named after the text, or the
    /// newest one there is]
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// Folder of the server that is started here [default:
    /// $XDG_DATA_HOME/charlstm or ~/.local/share/charlstm]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Characters to generate each time
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        default_value_t = 200
    )]
    pub(crate) length: u32,
    #[command(flatten)]
    pub(crate) spec: SpecFlags,
}

/// Flags of `train`.
#[derive(Debug, ClapArgs)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) corpus: CorpusFlags,
    /// Name of the model to make; a name that is there gets a new version
    #[arg(long, value_name = "NAME")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) spec: SpecFlags,
    /// Print the training's id once it is accepted, and leave
    #[arg(long, conflicts_with_all = ["cancel_on_disconnect", "plot"])]
    pub(crate) detach: bool,
    /// Draw the losses into a picture, after each epoch
    #[arg(long, value_name = "FILE.svg|png", value_parser = picture_file)]
    pub(crate) plot: Option<PathBuf>,
}

/// Flags of `generate`.
#[derive(Debug, ClapArgs)]
pub(crate) struct GenerateArgs {
    /// Model, as NAME (its latest version) or NAME@VERSION [default: the only
    /// model there is]
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) model: String,
    /// Text to go on from; may be left out where a session goes on
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        required_unless_present = "session"
    )]
    pub(crate) prime: Option<String>,
    /// Characters to generate
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        default_value_t = 200
    )]
    pub(crate) length: u32,
    #[command(flatten)]
    pub(crate) sampling: SamplingFlags,
    /// Text that ends the generation and is not printed; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    /// Session to go on with, or to create
    #[arg(long, value_name = "ID")]
    pub(crate) session: Option<String>,
    /// Do not print the prime
    #[arg(long)]
    pub(crate) no_echo: bool,
}

/// Flags of `repl`.
#[derive(Debug, ClapArgs)]
pub(crate) struct ReplArgs {
    /// Model, as NAME or NAME@VERSION [default: the only model there is]
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) model: String,
    /// Session to go on with or to create, and to keep [default: a new one
    /// that is let go at the end]
    #[arg(long, value_name = "ID")]
    pub(crate) session: Option<String>,
    /// Characters to generate each time
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        default_value_t = 200
    )]
    pub(crate) length: u32,
    #[command(flatten)]
    pub(crate) sampling: SamplingFlags,
}

/// Flags of `score`.
#[derive(Debug, ClapArgs)]
pub(crate) struct ScoreArgs {
    /// Text to score, UTF-8; `-` reads standard input
    #[arg(long, value_name = "FILE|-")]
    pub(crate) text: PathBuf,
    /// Model, as NAME or NAME@VERSION [default: the only model there is]
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) model: String,
}

/// Flags of `bench`.
#[derive(Debug, ClapArgs)]
pub(crate) struct BenchArgs {
    /// Numbers of streams at a time, measured one after another
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "1,8,64",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) sessions: Vec<u32>,
    /// Seconds to measure each of them
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) seconds: u32,
    /// Model, as NAME or NAME@VERSION [default: the only model there is]
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) model: String,
    /// Text to go on from [default: a character that the model knows]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prime: Option<String>,
    /// Characters of each generation
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 500,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) length: u32,
    /// Seed of the first stream; the others count up from it
    #[arg(
        long,
        value_name = "S",
        allow_negative_numbers = true,
        default_value_t = 1
    )]
    pub(crate) seed: u64,
    /// Streams on one connection
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) streams_per_connection: u32,
    /// Draw throughput and latency over the numbers of streams into a picture
    #[arg(long, value_name = "FILE.svg|png", value_parser = picture_file)]
    pub(crate) plot: Option<PathBuf>,
}

/// What to do with trainings.
#[derive(Debug, Subcommand)]
pub(crate) enum TrainingsCommand {
    /// List all trainings, the newest first
    List,
    /// Describe a training
    Show {
        /// The training
        id: String,
        /// Draw its losses into a picture
        #[arg(long, value_name = "FILE.svg|png", value_parser = picture_file)]
        plot: Option<PathBuf>,
    },
    /// Show the events of a training from its start, and go on live
    Watch {
        /// The training
        id: String,
    },
    /// Stop a training; a checkpoint is saved first
    Cancel {
        /// The training
        id: String,
    },
    /// Go on with a training from its last checkpoint, with live progress
    Resume {
        /// The training
        id: String,
    },
}

/// What to do with models.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// List the latest version of each model
    List,
    /// Describe a model
    Show {
        /// The model, as NAME or NAME@VERSION
        name: String,
    },
    /// Remove a model with all its versions, or one version
    Delete {
        /// The model, as NAME (all its versions) or NAME@VERSION
        name: String,
        /// Also where sessions use it; they are let go
        #[arg(long)]
        force: bool,
    },
    /// Write a model to a safetensors file
    Export {
        /// The model, as NAME or NAME@VERSION
        name: String,
        /// File to write
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Store a model file as a new version
    #[command(after_help = "Examples:\n  \
        charlstm-client models import book.safetensors --model book\n  \
        charlstm-client models import rnn.net --pth --text book.txt --model book")]
    Import(ImportModelArgs),
}

/// Flags of `models import`.
#[derive(Debug, ClapArgs)]
pub(crate) struct ImportModelArgs {
    /// The file
    pub(crate) file: PathBuf,
    /// Name to store it under
    #[arg(long, value_name = "NAME")]
    pub(crate) model: String,
    /// The file was saved by the notebook with torch.save
    #[arg(long)]
    pub(crate) pth: bool,
    /// Text that the model was trained on, for a file without vocabulary; a
    /// checkpoint with `tokens` has one
    #[arg(long, value_name = "CORPUS", conflicts_with = "vocabulary")]
    pub(crate) text: Option<PathBuf>,
    /// The characters in the order of their indices, with nothing between or
    /// after them, for a file without vocabulary
    #[arg(long, value_name = "FILE")]
    pub(crate) vocabulary: Option<PathBuf>,
}

/// What to do with sessions.
#[derive(Debug, Subcommand)]
pub(crate) enum SessionsCommand {
    /// List sessions, the most recently used first
    List,
    /// Describe a session
    Show {
        /// The session
        id: String,
    },
    /// Make a second session that stands where the first one stands
    Fork {
        /// The session
        id: String,
        /// Name of the new one
        new: String,
    },
    /// Forget a session
    Delete {
        /// The session
        id: String,
    },
    /// Write a session to a file
    Export {
        /// The session
        id: String,
        /// File to write
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Make a session from a file
    Import {
        /// The file
        file: PathBuf,
        /// Name of the session [default: the one it was exported under]
        #[arg(long, value_name = "ID")]
        session: Option<String>,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn no_two_flags_of_a_command_have_the_same_name() {
        Args::command().debug_assert();
    }
}
