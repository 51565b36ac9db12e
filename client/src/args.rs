//! Defines the command line: every command and flag, with its help. How flags
//! become requests is in `args/spec.rs` and `args/sampling.rs`; what a command
//! does is in `commands/`.

pub(crate) mod sampling;
pub(crate) mod spec;
pub(crate) mod unknown;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

pub(crate) use sampling::SamplingFlags;
pub(crate) use spec::SpecFlags;
pub(crate) use unknown::Unknown;

use crate::failure::Failure;
use crate::output_file::Existing;
use crate::plot::{LoadPlot, LossPlot, PlotFile, PlotTheme};
use crate::text_decoder::LineEndings;

/// Train character-level LSTMs on a charlstm server and generate text from them.
#[derive(Debug, Parser)]
#[command(
    name = "charlstm-client",
    version,
    propagate_version = true,
    after_help = "Examples:\n  \
        charlstm-client train --text book.txt --model book --epochs 5\n  \
        charlstm-client generate --model book --prime \"It was \" --length 500\n  \
        charlstm-client status\n\n\
        Exit codes: 0 success, 1 error from the server or the network, 2 invalid usage,\n\
        130 interrupted."
)]
pub(crate) struct CommandLine {
    #[command(flatten)]
    pub(crate) global: GlobalFlags,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command has.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection and output")]
pub(crate) struct GlobalFlags {
    /// Address of the server: HOST, HOST:PORT (default port: 50051) or a URL; use
    /// https:// for TLS. Of several addresses, with commas, the first server that
    /// answers is used, and the next one if it fails
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "CHARLSTM_ADDR",
        default_value = "http://127.0.0.1:50051"
    )]
    pub(crate) addr: String,
    /// File with the access token, if the server requires one
    #[arg(long, global = true, value_name = "FILE", env = "CHARLSTM_TOKEN_FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Certificate authority (PEM file) to trust instead of the system's
    #[arg(long, global = true, value_name = "FILE", env = "CHARLSTM_TLS_CA")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Certificate (PEM file) to show to a server that requires one
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "CHARLSTM_TLS_CERT",
        requires = "tls_key"
    )]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key (PEM file) of --tls-cert
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "CHARLSTM_TLS_KEY",
        requires = "tls_cert"
    )]
    pub(crate) tls_key: Option<PathBuf>,
    /// Time limit of the whole command, such as 30s or 5m [default: none; a
    /// server must accept the connection and answer within 10 s each]
    #[arg(
        long,
        global = true,
        value_name = "DURATION",
        env = "CHARLSTM_TIMEOUT",
        value_parser = duration
    )]
    pub(crate) timeout: Option<Duration>,
    /// Print results as JSON, one object per line
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// Parses a duration: `30s`, `1m 30s`; a number without a unit means seconds.
fn duration(value: &str) -> Result<Duration, String> {
    let parsed = match value.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => humantime::parse_duration(value).ok(),
    };
    parsed
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "use a duration such as 30s or 5m".into())
}

/// A command with its flags.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Quick start: start a server, train on a text and open a REPL
    #[command(after_help = "Examples:\n  \
        charlstm-client run --text book.txt\n  \
        charlstm-client run\n\n\
        Uses the server at --addr. If none is running there, starts one and stops it on exit.\n\
        Trains only if no version of the model was trained on this text; an unfinished training\n\
        is resumed.")]
    Run(Box<RunArgs>),
    /// Train a model on a text and show the progress
    #[command(after_help = "Examples:\n  \
        charlstm-client train --text book.txt --model book\n  \
        charlstm-client train --text novels/ --text letters.txt --model all --plot loss.svg\n  \
        zcat text.gz | charlstm-client train --text - --model all --epochs 3\n\n\
        The first Ctrl-C cancels the training after saving a checkpoint (see `trainings resume`),\n\
        the second one exits immediately.")]
    Train(Box<TrainArgs>),
    /// Generate text and print it, after the prompt, as it is generated
    #[command(after_help = "Examples:\n  \
        charlstm-client generate --model book --prime \"It was \" --length 500\n  \
        charlstm-client generate --prime \"Once\" --session tale\n  \
        charlstm-client generate --session tale --no-echo")]
    Generate(GenerateArgs),
    /// Generate text interactively: continue each line that is typed
    #[command(after_help = "Type /help in the REPL to list its commands.")]
    Repl(ReplArgs),
    /// Measure how well a model predicts a text, in bits per character
    #[command(after_help = "Example:\n  charlstm-client score --text page.txt --model book")]
    Score(ScoreArgs),
    /// List, show, watch, cancel, resume and delete trainings
    Trainings {
        #[command(subcommand)]
        command: TrainingsCommand,
    },
    /// List, show, delete, export and import models
    Models {
        #[command(subcommand)]
        command: ModelsCommand,
    },
    /// List, show, fork, delete, export and import sessions
    Sessions {
        #[command(subcommand)]
        command: SessionsCommand,
    },
    /// Run a load test: measure time to first character, inter-character
    /// latency and throughput
    #[command(after_help = "Example:\n  charlstm-client bench --sessions 1,8,64 --seconds 10")]
    Bench(BenchArgs),
    /// Show health, device, load and models of the server
    Status,
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  charlstm-client completions bash > \
            ~/.local/share/bash-completion/completions/charlstm-client")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
        /// File to write instead of standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Replace the file if it exists
        #[arg(short, long, requires = "output")]
        force: bool,
    },
    /// List the models; the same as `models list`
    Ls,
    /// List the trainings; the same as `trainings list`
    Ps,
    /// Delete a model; the same as `models delete`
    Rm(DeleteModelArgs),
    /// Copy a model; the same as `models copy`
    Cp(CopyModelArgs),
    /// Rename a model; the same as `models rename`
    Rename(RenameModelArgs),
}

/// Flags for a plot of the results.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct PlotFlags {
    /// Plot the results to a file, which is updated while the command runs
    #[arg(long, value_name = "FILE.svg|png", hide = cfg!(not(feature = "plot")))]
    pub(crate) plot: Option<PlotFile>,
    /// Colours of the plot
    #[arg(
        long,
        value_name = "THEME",
        default_value = "auto",
        hide = cfg!(not(feature = "plot"))
    )]
    pub(crate) plot_theme: PlotTheme,
    /// Replace the file of --plot if it exists
    #[arg(long, requires = "plot", hide = cfg!(not(feature = "plot")))]
    pub(crate) force: bool,
}

impl PlotFlags {
    /// Creates the plot of a training, if there is to be one. Fails if its file
    /// cannot be written.
    pub(crate) fn loss_plot(self) -> Result<Option<LossPlot>, Failure> {
        let existing = Existing::from_force(self.force);
        self.plot
            .map(|file| LossPlot::new(file, self.plot_theme, existing))
            .transpose()
    }

    /// Creates the plot of a load test, if there is to be one. Fails if its file
    /// cannot be written.
    pub(crate) fn load_plot(self) -> Result<Option<LoadPlot>, Failure> {
        let existing = Existing::from_force(self.force);
        self.plot
            .map(|file| LoadPlot::new(file, self.plot_theme, existing))
            .transpose()
    }
}

/// Flags that choose how texts are read.
#[derive(Clone, Debug, Args)]
pub(crate) struct TextFlags {
    /// How to treat line endings other than LF
    #[arg(long, value_name = "MODE", default_value = "lf")]
    pub(crate) crlf: LineEndings,
    /// Extensions of the files to read from a folder; `*` means all files
    #[arg(
        long,
        value_name = "EXT,EXT,…",
        value_delimiter = ',',
        default_value = "txt,md"
    )]
    pub(crate) extensions: Vec<String>,
}

impl TextFlags {
    /// Returns the flags for a single file.
    pub(crate) fn with_line_endings(crlf: LineEndings) -> Self {
        Self {
            crlf,
            extensions: Vec::new(),
        }
    }
}

/// Flags that choose the text to train on.
#[derive(Clone, Debug, Args)]
pub(crate) struct CorpusFlags {
    /// Text to train on, in UTF-8: a file, a folder (the .txt and .md files in
    /// it and in its subfolders, sorted by name), or `-` for standard input; can
    /// be repeated
    #[arg(long, value_name = "FILE|FOLDER|-", required = true)]
    pub(crate) text: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) reading: TextFlags,
}

/// Flags for the file that a command writes.
#[derive(Clone, Debug, Args)]
pub(crate) struct ExportFlags {
    /// File to write; `-` is standard output
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Replace the file if it exists
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Text to train on if the model does not exist yet, in UTF-8: a file or a
    /// folder; can be repeated
    #[arg(long, value_name = "FILE|FOLDER")]
    pub(crate) text: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) reading: TextFlags,
    /// Model to generate from, trained first if it does not exist [default:
    /// named after the text; without --text, the newest model]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// Data folder of a server started by this command [default:
    /// $XDG_DATA_HOME/charlstm or ~/.local/share/charlstm]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Number of characters to generate each time
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
#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) corpus: CorpusFlags,
    /// Name of the model; if it exists, the training adds a new version
    #[arg(short, long, value_name = "NAME")]
    pub(crate) model: String,
    /// Exit once the training is accepted, and print its id
    #[arg(long, conflicts_with_all = ["cancel_on_disconnect", "plot"])]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) plot: PlotFlags,
    // Last, because its help heading applies to all flags after it.
    #[command(flatten)]
    pub(crate) spec: SpecFlags,
}

/// Flags of `generate`.
#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// Model, as NAME (its latest version) or NAME@VERSION [default: the only
    /// model]
    #[arg(
        short,
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) model: String,
    /// Prompt: the text to continue; optional in an existing session
    #[arg(
        short,
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        required_unless_present_any = ["session", "prime_file"]
    )]
    pub(crate) prime: Option<String>,
    /// Read the prompt from a file, or from standard input with `-`; one line
    /// break at its end is dropped
    #[arg(long, value_name = "FILE|-", conflicts_with = "prime")]
    pub(crate) prime_file: Option<PathBuf>,
    /// How to treat line endings other than LF in the prompt
    #[arg(long, value_name = "MODE", default_value = "lf")]
    pub(crate) crlf: LineEndings,
    /// What to do with characters of the prompt that the model does not know
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    pub(crate) unknown: Unknown,
    /// Number of texts to generate, with the seeds S, S+1, …
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        allow_negative_numbers = true,
        default_value_t = 1,
        conflicts_with = "session",
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    pub(crate) samples: u32,
    /// Number of characters to generate
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        default_value_t = 200
    )]
    pub(crate) length: u32,
    /// Text that ends the generation and is not printed; can be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    /// Session to continue or to create
    #[arg(long, value_name = "ID")]
    pub(crate) session: Option<String>,
    /// Do not print the prompt
    #[arg(long)]
    pub(crate) no_echo: bool,
    // Last, because its help heading applies to all flags after it.
    #[command(flatten)]
    pub(crate) sampling: SamplingFlags,
}

/// Flags of `repl`.
#[derive(Debug, Args)]
pub(crate) struct ReplArgs {
    /// Model, as NAME or NAME@VERSION [default: the only model]
    #[arg(
        short,
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) model: String,
    /// Session to continue or to create, and to keep on exit [default: a new
    /// session that is deleted on exit]
    #[arg(long, value_name = "ID")]
    pub(crate) session: Option<String>,
    /// Number of characters to generate each time
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        default_value_t = 200
    )]
    pub(crate) length: u32,
    /// What to do with characters of a text that the model does not know
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    pub(crate) unknown: Unknown,
    #[command(flatten)]
    pub(crate) sampling: SamplingFlags,
}

/// Flags of `score`.
#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    /// Text to score, in UTF-8: a file, a folder, or `-` for standard input
    #[arg(long, value_name = "FILE|FOLDER|-")]
    pub(crate) text: PathBuf,
    #[command(flatten)]
    pub(crate) reading: TextFlags,
    /// Model, as NAME or NAME@VERSION [default: the only model]
    #[arg(
        short,
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) model: String,
    /// What to do with characters of the text that the model does not know
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    pub(crate) unknown: Unknown,
}

/// Flags of `bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Numbers of concurrent streams, measured one after another
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "1,8,64",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) sessions: Vec<u32>,
    /// Seconds to measure each number of streams
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) seconds: u32,
    /// Model, as NAME or NAME@VERSION [default: the only model]
    #[arg(
        short,
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) model: String,
    /// Prompt of each generation [default: a character that the model knows]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prime: Option<String>,
    /// Number of characters of each generation
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 500,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) length: u32,
    /// Generate in sessions, one per stream, which the server stores after each call; they are
    /// deleted at the end
    #[arg(long)]
    pub(crate) in_sessions: bool,
    /// Seed of the first stream; each further stream adds one
    #[arg(
        long,
        value_name = "S",
        allow_negative_numbers = true,
        default_value_t = 1
    )]
    pub(crate) seed: u64,
    /// Maximum number of streams per connection
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) streams_per_connection: u32,
    #[command(flatten)]
    pub(crate) plot: PlotFlags,
}

/// A command of `trainings`.
#[derive(Debug, Subcommand)]
pub(crate) enum TrainingsCommand {
    /// List all trainings, newest first
    #[command(visible_aliases = ["ls", "ps"])]
    List,
    /// Show the details of a training
    Show {
        /// Id of the training
        id: String,
        #[command(flatten)]
        plot: PlotFlags,
    },
    /// Show the progress of a training, from its start until it ends
    Watch {
        /// Id of the training
        id: String,
        #[command(flatten)]
        plot: PlotFlags,
    },
    /// Cancel a training after saving a checkpoint
    #[command(visible_alias = "stop")]
    Cancel {
        /// Id of the training
        id: String,
    },
    /// Delete a training that has ended, with its checkpoints; its model stays
    #[command(visible_alias = "rm")]
    Delete {
        /// Id of the training
        id: String,
    },
    /// Resume a training from its last checkpoint and show the progress
    Resume {
        /// Id of the training
        id: String,
        /// Exit once the training has been resumed
        #[arg(long, conflicts_with = "plot")]
        detach: bool,
        #[command(flatten)]
        plot: PlotFlags,
    },
}

/// A command of `models`.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// List the latest version of each model
    #[command(visible_alias = "ls")]
    List,
    /// Show the details of a model
    Show {
        /// The model, as NAME or NAME@VERSION
        name: String,
    },
    /// Delete a model with all its versions, or one version
    #[command(visible_alias = "rm")]
    Delete(DeleteModelArgs),
    /// Copy a version of a model to another name
    #[command(visible_alias = "cp")]
    Copy(CopyModelArgs),
    /// Rename a model: copy all its versions to another name, then delete it
    #[command(visible_alias = "mv")]
    Rename(RenameModelArgs),
    /// Write a model to a safetensors file
    Export {
        /// The model, as NAME or NAME@VERSION
        name: String,
        #[command(flatten)]
        file: ExportFlags,
    },
    /// Import a model file as a new version of a model
    #[command(after_help = "Examples:\n  \
        charlstm-client models import book.safetensors --model book\n  \
        charlstm-client models import rnn.net --pth --text book.txt --model book")]
    Import(ImportModelArgs),
}

/// Flags of `models delete`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DeleteModelArgs {
    /// The model, as NAME (all its versions) or NAME@VERSION
    pub(crate) name: String,
    /// Delete it even if sessions use it; they can no longer generate
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// Arguments of `models copy`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CopyModelArgs {
    /// The model, as NAME (its latest version) or NAME@VERSION
    pub(crate) name: String,
    /// Name of the copy; if it exists, the copy is a new version of it
    pub(crate) new: String,
}

/// Arguments of `models rename`.
#[derive(Clone, Debug, Args)]
pub(crate) struct RenameModelArgs {
    /// Name of the model
    pub(crate) name: String,
    /// New name, which no model has yet
    pub(crate) new: String,
}

/// Flags of `models import`.
#[derive(Debug, Args)]
pub(crate) struct ImportModelArgs {
    /// Model file to import
    pub(crate) file: PathBuf,
    /// Name of the model; if it exists, the import adds a new version
    #[arg(short, long, value_name = "NAME")]
    pub(crate) model: String,
    /// SHA-256 that the file must have, as `models export` prints it
    #[arg(long, value_name = "HEX")]
    pub(crate) sha256: Option<String>,
    /// The file is a checkpoint that was saved with torch.save
    #[arg(long)]
    pub(crate) pth: bool,
    /// Text that the model was trained on, for a file without a vocabulary (a
    /// checkpoint that contains `tokens` has one)
    #[arg(long, value_name = "CORPUS", conflicts_with = "vocabulary")]
    pub(crate) text: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) reading: TextFlags,
    /// File with the characters of the vocabulary in the order of their
    /// indices and nothing else, for a model file without a vocabulary
    #[arg(long, value_name = "FILE")]
    pub(crate) vocabulary: Option<PathBuf>,
}

/// A command of `sessions`.
#[derive(Debug, Subcommand)]
pub(crate) enum SessionsCommand {
    /// List all sessions, most recently used first
    #[command(visible_alias = "ls")]
    List,
    /// Show the details of a session
    Show {
        /// Id of the session
        id: String,
    },
    /// Copy a session: the copy continues from the same state
    #[command(visible_alias = "cp")]
    Fork {
        /// Id of the session
        id: String,
        /// Id of the copy
        new: String,
    },
    /// Rename a session: copy it, then delete it
    #[command(visible_alias = "mv")]
    Rename {
        /// Id of the session
        id: String,
        /// New id
        new: String,
    },
    /// Delete a session
    #[command(visible_alias = "rm")]
    Delete {
        /// Id of the session
        id: String,
    },
    /// Write a session to a file
    Export {
        /// Id of the session
        id: String,
        #[command(flatten)]
        file: ExportFlags,
    },
    /// Import a session that was exported to a file
    Import {
        /// Session file to import
        file: PathBuf,
        /// Id of the session [default: its id when it was exported]
        #[arg(long, value_name = "ID")]
        session: Option<String>,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn a_duration_has_a_unit_or_means_seconds() {
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m 3s"), Ok(Duration::from_secs(123)));
        for invalid in ["", "soon", "-1", "0", "nan"] {
            assert!(duration(invalid).is_err(), "{invalid}");
        }
    }
}
