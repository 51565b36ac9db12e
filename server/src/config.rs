//! The settings of the server. Nothing else reads the command line, the
//! environment or the configuration file.
//!
//! A setting is a field of [`Config`]. A flag takes precedence over the
//! environment variable, the variable over the file of `--config`, and the
//! file over the default.

mod environment;
mod error;
mod file;
mod help_headings;
mod http;
mod value;

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::Resettable;
use clap::{ArgAction, Command, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use self::environment::unknown_variables;
pub use self::error::ConfigError;
use self::error::explain;
pub use self::http::HttpConfig;
use self::value::{
    Checked, address, boolean, byte_size, cache_size, count, database, device, durability,
    duration, gpu_failure, kernels, log_format, log_level, object_store, path, precision,
    principal_name, replica_name, role, threads, url,
};
use crate::access::{AccessFiles, is_exposed};
use crate::rpc::principal::Role;
use bytesize::ByteSize;
use charlstm_model::decode_step::Precision;
use charlstm_model::device::DeviceChoice;
use charlstm_model::kernels::KernelChoice;
use charlstm_replicas::database::DatabaseUrl;
use charlstm_store::session::Durability;
use tracing::level_filters::LevelFilter;

/// Value name of the settings that are on or off. [`command`] lets their flags
/// stand alone: `--tensorboard` is `--tensorboard=true`.
const SWITCH: &str = "true|false";

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// What the server does if the GPU that it generates on fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuFailure {
    /// It ends with an error, so that a service manager starts it again.
    Exit,
    /// It generates on the CPU from then on, which gives the same texts.
    Cpu,
}

/// When a change of a session is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionDurability {
    /// Once it is on stable storage.
    Committed,
    /// Before that; it is on stable storage within a second.
    Relaxed,
}

impl From<SessionDurability> for Durability {
    fn from(durability: SessionDurability) -> Self {
        match durability {
            SessionDurability::Committed => Self::Committed,
            SessionDurability::Relaxed => Self::Relaxed,
        }
    }
}

/// What the program does instead of serving.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Task {
    /// Copy all sessions, models and trainings to a new folder, also while a
    /// server uses --data-dir; to restore, start a server on the copy
    Backup {
        /// The folder to create.
        folder: PathBuf,
    },
    /// Copy all models, trainings and sessions of --data-dir into --database and
    /// --object-store; can be repeated, and deletes nothing
    Migrate,
    /// Print a new access token, and the entry of the file of --principals that
    /// it belongs to; the token is not stored and not shown again
    Token {
        /// Name of the principal: printable ASCII characters without spaces
        #[arg(long, value_parser = Checked(principal_name))]
        name: String,
        /// What it may do: generate, train or admin; may be given several times
        #[arg(
            long = "role",
            required = true,
            num_args = 1..,
            value_name = "ROLE",
            value_parser = Checked(role)
        )]
        roles: Vec<Role>,
    },
}

/// The files of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsFiles<'a> {
    /// Certificate chain, PEM.
    pub cert: &'a Path,
    /// Private key, PEM.
    pub key: &'a Path,
    /// Authorities that clients' certificates must be signed by, PEM.
    pub client_ca: Option<&'a Path>,
}

/// All settings, with everything checked that does not depend on the devices
/// and disks of the machine.
// The doc comments of the fields are the help texts.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(
    name = "charlstm-server",
    version,
    about = "Trains character-level LSTMs and generates text from them, over gRPC and HTTP.",
    after_help = "A flag takes precedence over its environment variable, the variable over the \
        file of --config,\nand the file over the default.\n\nWhen the server is ready, it prints \
        one line to standard output:\nlistening on http://HOST:PORT (https with TLS). The log is \
        written to standard error.",
    // As in most programs: if a flag is given twice, the last one counts.
    args_override_self = true
)]
pub struct Config {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub task: Option<Task>,

    // Only local clients by default: to open the server to a network is a
    // decision that includes TLS and tokens.
    /// Address to listen on; port 0 selects a free port
    #[arg(
        long,
        env = "CHARLSTM_LISTEN",
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:50051",
        value_parser = Checked(address)
    )]
    pub listen: SocketAddr,

    /// Folder for models, trainings and sessions; created if it does not exist
    #[arg(
        long,
        global = true,
        env = "CHARLSTM_DATA_DIR",
        value_name = "FOLDER",
        default_value = "./charlstm-data",
        value_parser = Checked(path)
    )]
    pub data_dir: PathBuf,

    /// Device for training and generation: auto, cpu, cuda or cuda:N; auto
    /// selects the first GPU, or the CPU if there is none
    #[arg(
        long,
        env = "CHARLSTM_DEVICE",
        value_name = "DEVICE",
        default_value = "auto",
        value_parser = Checked(device)
    )]
    pub device: DeviceChoice,

    // The text of a seed is the same on every machine in either.
    /// Precision of generation: int8 (faster) or float32; a session keeps the
    /// one it started with, and scores are always computed in float32
    #[arg(
        long,
        env = "CHARLSTM_PRECISION",
        value_name = "PRECISION",
        default_value = "int8",
        value_parser = Checked(precision)
    )]
    pub precision: Precision,

    /// CPU kernels of generation and training, for tests and diagnosis: auto,
    /// portable, avx2, avxvnni, avx512, vnni or amx; auto selects the fastest.
    /// All give the same text; portable and avx2 give a training other last bits
    #[arg(
        long,
        env = "CHARLSTM_KERNELS",
        value_name = "KERNELS",
        default_value = "auto",
        value_parser = Checked(kernels)
    )]
    pub kernels: KernelChoice,

    /// What to do if the GPU that generates texts fails: exit, so that a service
    /// manager starts the server again, or continue on the CPU, which gives the
    /// same texts
    #[arg(
        long,
        env = "CHARLSTM_GPU_FAILURE",
        value_name = "exit|cpu",
        default_value = "exit",
        value_parser = Checked(gpu_failure)
    )]
    pub gpu_failure: GpuFailure,

    /// Number of threads that compute; auto: one per physical core
    #[arg(
        long,
        env = "CHARLSTM_THREADS",
        value_name = "N",
        default_value = "auto",
        value_parser = Checked(threads)
    )]
    pub threads: usize,

    // Beyond this, throughput hardly grows, but the time between two
    // characters does.
    /// Maximum number of texts generated together in one batch
    #[arg(
        long,
        env = "CHARLSTM_MAX_BATCH",
        value_name = "N",
        default_value = "256",
        value_parser = Checked(count::<1, 4096>)
    )]
    pub max_batch: usize,

    // About 10 KB of disk and 300 bytes of memory each, with a network of 2
    // layers of 512.
    /// Maximum number of sessions; beyond it, the least recently used idle
    /// session is evicted
    #[arg(
        long,
        env = "CHARLSTM_MAX_SESSIONS",
        value_name = "N",
        default_value = "1000000",
        value_parser = Checked(count::<1, 10_000_000>)
    )]
    pub max_sessions: usize,

    /// When a change of a session is acknowledged: committed, once it is on
    /// stable storage; relaxed, before that, and it is stored within a second
    #[arg(
        long,
        env = "CHARLSTM_SESSION_DURABILITY",
        value_name = "WHEN",
        default_value = "committed",
        value_parser = Checked(durability)
    )]
    pub session_durability: SessionDurability,

    // The states of 30,000 sessions with a network of 2 layers of 512, and the
    // index of a million.
    /// Memory for the index of the sessions and for the states of recently used
    /// ones, such as 512MB
    #[arg(
        long,
        env = "CHARLSTM_SESSION_CACHE_BYTES",
        value_name = "BYTES",
        default_value = "512MB",
        value_parser = Checked(byte_size)
    )]
    pub session_cache_bytes: ByteSize,

    // A state of a network of 2 layers of 512 takes 5 KB in int8, and a prompt
    // of a thousand characters four of them.
    /// Memory for the states after recent prompts, such as 64MB: a prompt with
    /// the same beginning is not processed again. 0 turns it off
    #[arg(
        long,
        env = "CHARLSTM_PROMPT_CACHE_BYTES",
        value_name = "BYTES",
        default_value = "64MB",
        value_parser = Checked(cache_size)
    )]
    pub prompt_cache_bytes: ByteSize,

    /// Disk space for sessions, such as 20GB; beyond it, the least recently used
    /// idle session is evicted [default: 10GB, but at most half of the free
    /// space]
    #[arg(
        long,
        env = "CHARLSTM_SESSION_STORE_BYTES",
        value_name = "BYTES",
        value_parser = Checked(byte_size)
    )]
    pub session_store_bytes: Option<ByteSize>,

    /// File of the keys that seal session snapshots, one per line; the first
    /// one signs, all verify. Servers with the same file accept each other's
    /// snapshots [default: a random key in the data folder]
    #[arg(
        long,
        env = "CHARLSTM_SNAPSHOT_KEY_FILE",
        value_name = "FILE",
        value_parser = Checked(path)
    )]
    pub snapshot_key_file: Option<PathBuf>,

    /// PostgreSQL database for sessions and trainings, such as
    /// postgres://USER:PASSWORD@HOST/NAME. All servers with the same database and
    /// --object-store are one service, see docs/replicas.md [default: everything
    /// is in the data folder]
    #[arg(
        long,
        global = true,
        env = "CHARLSTM_DATABASE",
        value_name = "URL",
        value_parser = Checked(database)
    )]
    pub database: Option<DatabaseUrl>,

    /// File that contains the URL of --database
    #[arg(
        long,
        global = true,
        env = "CHARLSTM_DATABASE_FILE",
        value_name = "FILE",
        value_parser = Checked(path)
    )]
    pub database_file: Option<PathBuf>,

    /// Object store for models, corpora and checkpoints, which belongs to
    /// --database: s3://BUCKET/PREFIX, gs://, az:// or file:///FOLDER; credentials
    /// come from the variables AWS_..., GOOGLE_... or AZURE_...
    #[arg(
        long,
        global = true,
        env = "CHARLSTM_OBJECT_STORE",
        value_name = "URL",
        value_parser = Checked(object_store)
    )]
    pub object_store: Option<String>,

    /// Name of this server among those with the same --database [default: the
    /// name of the machine and a random suffix]
    #[arg(
        long,
        env = "CHARLSTM_REPLICA_NAME",
        value_name = "NAME",
        value_parser = Checked(replica_name)
    )]
    pub replica_name: Option<String>,

    // A conversation can be continued after a holiday.
    /// Idle time after which a session is evicted, such as 90s, 30m, 24h or 7d;
    /// only time during which the server runs counts
    #[arg(
        long,
        env = "CHARLSTM_SESSION_TTL",
        value_name = "DURATION",
        default_value = "30d",
        value_parser = Checked(duration)
    )]
    pub session_ttl: Duration,

    // Long enough for a person who pauses a terminal; a client that hangs does
    // not occupy a slot of the batch for longer.
    /// Time after which a generation is ended whose client reads nothing, such
    /// as 30s or 5m
    #[arg(
        long,
        env = "CHARLSTM_READER_TIMEOUT",
        value_name = "DURATION",
        default_value = "60s",
        value_parser = Checked(duration)
    )]
    pub reader_timeout: Duration,

    // Long enough for a network that was interrupted; a client that hangs does
    // not hold an upload for longer.
    /// Time after which a call is ended whose client sends nothing although its
    /// request is not complete, or reads nothing of a response, such as 30s
    #[arg(
        long,
        env = "CHARLSTM_TRANSFER_TIMEOUT",
        value_name = "DURATION",
        default_value = "60s",
        value_parser = Checked(duration)
    )]
    pub transfer_timeout: Duration,

    // Four full batches: behind a longer queue, a client is better served by
    // an immediate rejection and a retry.
    /// Maximum number of generations that wait for a slot in the batch; beyond
    /// it, calls are rejected with a retry delay
    #[arg(
        long,
        env = "CHARLSTM_MAX_QUEUE",
        value_name = "N",
        default_value = "1024",
        value_parser = Checked(count::<0, 1_000_000>)
    )]
    pub max_queue: usize,

    // Some hundred kilobytes each if it is used, and one open file.
    /// Maximum number of open connections; further ones are closed immediately
    #[arg(
        long,
        env = "CHARLSTM_MAX_CONNECTIONS",
        value_name = "N",
        default_value = "4096",
        value_parser = Checked(count::<1, 1_000_000>)
    )]
    pub max_connections: usize,

    // 64 MB, which a large model needs minutes to process.
    /// Maximum number of prompt characters that wait to be processed, of all
    /// calls together; beyond it, calls are rejected with a retry delay
    #[arg(
        long,
        env = "CHARLSTM_MAX_QUEUED_CHARS",
        value_name = "N",
        default_value = "16000000",
        value_parser = Checked(count::<1, 1_000_000_000>)
    )]
    pub max_queued_chars: usize,

    // Enough to look at earlier trainings, and as many as a person reads in a
    // list.
    /// Maximum number of finished trainings that are kept; beyond it, the
    /// oldest are deleted (never an interrupted one, and never a model)
    #[arg(
        long,
        env = "CHARLSTM_KEEP_TRAININGS",
        value_name = "N",
        default_value = "1000",
        value_parser = Checked(count::<0, 1_000_000>)
    )]
    pub keep_trainings: usize,

    /// Resume the trainings that the last stop or crash interrupted
    #[arg(
        long,
        env = "CHARLSTM_RESUME_INTERRUPTED",
        value_name = SWITCH,
        action = ArgAction::Set,
        default_value = "false",
        value_parser = Checked(boolean)
    )]
    pub resume_interrupted: bool,

    /// Also write the progress of trainings as TensorBoard event files, to
    /// trainings/ID/tensorboard in the data folder
    #[arg(
        long,
        env = "CHARLSTM_TENSORBOARD",
        value_name = SWITCH,
        action = ArgAction::Set,
        default_value = "false",
        value_parser = Checked(boolean)
    )]
    pub tensorboard: bool,

    /// Address to serve Prometheus metrics on, at /metrics, without TLS and
    /// tokens; no metrics are served if it is not set
    #[arg(
        long,
        env = "CHARLSTM_METRICS_LISTEN",
        value_name = "HOST:PORT",
        value_parser = Checked(address)
    )]
    pub metrics_listen: Option<SocketAddr>,

    /// Certificate chain of the server (PEM file); with --tls-key, the server
    /// accepts only TLS
    #[arg(long, env = "CHARLSTM_TLS_CERT", value_name = "FILE", value_parser = Checked(path))]
    pub tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert (PEM file)
    #[arg(long, env = "CHARLSTM_TLS_KEY", value_name = "FILE", value_parser = Checked(path))]
    pub tls_key: Option<PathBuf>,

    /// Certificate authorities (PEM file), one of which must have signed the
    /// certificate of each client
    #[arg(long, env = "CHARLSTM_TLS_CLIENT_CA", value_name = "FILE", value_parser = Checked(path))]
    pub tls_client_ca: Option<PathBuf>,

    /// TOML file of the principals that may call, with their tokens, roles and
    /// quotas; each call must send a token as `authorization: Bearer TOKEN`, or
    /// come with a certificate of a principal. `charlstm-server token` makes
    /// entries
    #[arg(long, env = "CHARLSTM_PRINCIPALS", value_name = "FILE", value_parser = Checked(path))]
    pub principals: Option<PathBuf>,

    /// File of access tokens of administrators, one per line
    #[arg(long, env = "CHARLSTM_AUTH_TOKEN_FILE", value_name = "FILE", value_parser = Checked(path))]
    pub auth_token_file: Option<PathBuf>,

    /// HTTP on the same port.
    #[command(flatten)]
    pub http: HttpConfig,

    /// Allow --listen on an address that other machines can reach without TLS,
    /// or without principals, tokens and client certificates
    #[arg(
        long,
        env = "CHARLSTM_INSECURE",
        value_name = SWITCH,
        action = ArgAction::Set,
        default_value = "false",
        value_parser = Checked(boolean)
    )]
    pub insecure: bool,

    /// Least important lines that are logged: error, warn, info, debug or trace;
    /// the variable RUST_LOG sets other levels for parts of the program, such as
    /// charlstm_engine=debug
    #[arg(
        long,
        env = "CHARLSTM_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "info",
        value_parser = Checked(log_level)
    )]
    pub log_level: LevelFilter,

    /// Also log prompts and generated texts, shortened; without it, the log
    /// contains no text
    #[arg(
        long,
        env = "CHARLSTM_LOG_TEXT",
        value_name = SWITCH,
        action = ArgAction::Set,
        default_value = "false",
        value_parser = Checked(boolean)
    )]
    pub log_text: bool,

    /// Address of an OpenTelemetry collector, such as http://127.0.0.1:4317, to
    /// which traces of calls and trainings are exported over gRPC (OTLP)
    #[arg(long, env = "CHARLSTM_OTLP_ENDPOINT", value_name = "URL", value_parser = Checked(url))]
    pub otlp_endpoint: Option<String>,

    /// Check the settings and the files that they name, and exit
    #[arg(long)]
    pub check_config: bool,

    /// Print the settings in effect as a file for --config, and exit
    #[arg(long)]
    pub print_config: bool,

    /// Format of the log: lines for people, or one JSON object per line
    #[arg(
        long,
        env = "CHARLSTM_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text",
        value_parser = Checked(log_format)
    )]
    pub log_format: LogFormat,

    /// TOML file of settings, named like these flags (max-batch = 64)
    #[arg(long, env = "CHARLSTM_CONFIG", value_name = "FILE", value_parser = Checked(path))]
    pub config: Option<PathBuf>,

    /// The settings in effect, as TOML, without passwords.
    #[arg(skip)]
    pub effective: String,

    /// What is logged, in the syntax of the variable `RUST_LOG`.
    #[arg(skip)]
    pub log_filter: String,

    /// Whether the log may be coloured: the variable `NO_COLOR` is not set.
    #[arg(skip)]
    pub log_colours: bool,
}

impl Config {
    /// Reads the settings from the arguments and variables of this process,
    /// and from the file that they name.
    ///
    /// # Errors
    /// Any [`ConfigError`]; `Usage` also if help or the version is asked for.
    pub fn from_process() -> Result<Self, ConfigError> {
        // An empty variable counts as one that is not set.
        let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|v| v.is_empty());
        let command = command().mut_args(|arg| match arg.get_env() {
            Some(name) if is_empty(name) => arg.env(Resettable::Reset),
            _ => arg,
        });
        let mut config = Self::load(&command, std::env::args_os())?;
        config.log_filter = std::env::var("RUST_LOG").unwrap_or_default();
        config.log_colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Ok(config)
    }

    /// Reads the settings from arguments, of which the first is the name of
    /// the program, from the variables that `command` has read, and from the
    /// file that they name.
    fn load(
        command: &Command,
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Result<Self, ConfigError> {
        let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
        let parse = |mut command: Command, file: Option<&Path>| {
            let matches = command.try_get_matches_from_mut(&arguments);
            let parsed = matches.and_then(|matches| {
                let effective = file::write(&command, &matches);
                let parsed = Self::from_arg_matches(&matches)?;
                Ok(Self {
                    effective,
                    ..parsed
                })
            });
            parsed.map_err(|error| explain(error, file))
        };
        // Without the file first: this parse names the file, and finds every
        // error that is not the file's.
        let mut config = parse(command.clone(), None)?;
        if let Some(path) = config.config.clone() {
            let mut command = command.clone();
            for (id, text) in file::read(&path, &command)? {
                command = command.mut_arg(id, |arg| arg.default_value(text));
            }
            config = parse(command, Some(&path))?;
        }
        config.check_tls()?;
        config.check_database()?;
        if config.task.is_none() {
            config.check_exposure()?;
        }
        Ok(config)
    }

    fn check_database(&self) -> Result<(), ConfigError> {
        if self.database.is_some() && self.database_file.is_some() {
            return Err(ConfigError::Conflict(
                "--database and --database-file cannot both be set".into(),
            ));
        }
        if self.has_database() && self.session_durability == SessionDurability::Relaxed {
            return Err(ConfigError::Conflict(
                "--session-durability relaxed cannot be combined with --database: another server \
                 must see what this one has acknowledged"
                    .into(),
            ));
        }
        let message = match (self.has_database(), self.object_store.is_some()) {
            (true, false) => "--database requires --object-store",
            (false, true) => "--object-store requires --database or --database-file",
            _ => "",
        };
        if !message.is_empty() {
            return Err(ConfigError::Conflict(
                format!("{message}: what is in one names what is in the other").into(),
            ));
        }
        if self.replica_name.is_some() && !self.has_database() {
            return Err(ConfigError::Conflict(
                "--replica-name requires --database or --database-file".into(),
            ));
        }
        Ok(())
    }

    /// Whether sessions are in a database.
    pub fn has_database(&self) -> bool {
        self.database.is_some() || self.database_file.is_some()
    }

    fn check_tls(&self) -> Result<(), ConfigError> {
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err(ConfigError::Conflict(
                "--tls-cert and --tls-key must be set together".into(),
            ));
        }
        if self.tls_client_ca.is_some() && self.tls_cert.is_none() {
            return Err(ConfigError::Conflict(
                "--tls-client-ca requires --tls-cert and --tls-key".into(),
            ));
        }
        Ok(())
    }

    /// Rejects an address that other machines can reach if they could read the
    /// traffic or call without credentials.
    fn check_exposure(&self) -> Result<(), ConfigError> {
        if self.insecure || !is_exposed(self.listen) {
            return Ok(());
        }
        let missing = if self.tls().is_none() {
            "TLS is missing: set --tls-cert and --tls-key"
        } else if !self.has_access_control() {
            "anybody could call: set --principals, --auth-token-file or --tls-client-ca"
        } else {
            return Ok(());
        };
        let message = format!(
            "--listen {} can be reached from other machines, and {missing}; or use a loopback \
             address such as 127.0.0.1:50051; --insecure allows it anyway",
            self.listen
        );
        Err(ConfigError::Conflict(message.into()))
    }

    /// Whether callers need credentials.
    pub fn has_access_control(&self) -> bool {
        self.principals.is_some() || self.auth_token_file.is_some() || self.tls_client_ca.is_some()
    }

    /// Returns the files that say who may call.
    pub fn access_files(&self) -> AccessFiles {
        AccessFiles {
            principals: self.principals.clone(),
            tokens: self.auth_token_file.clone(),
            has_client_certificates: self.tls_client_ca.is_some(),
        }
    }

    /// Returns the files of TLS, if TLS is configured.
    pub fn tls(&self) -> Option<TlsFiles<'_>> {
        Some(TlsFiles {
            cert: self.tls_cert.as_deref()?,
            key: self.tls_key.as_deref()?,
            client_ca: self.tls_client_ca.as_deref(),
        })
    }
}

/// Returns the command line, for help, completions and manual pages.
pub fn command() -> Command {
    Config::command().mut_args(|arg| {
        // The values of variables do not belong in a manual page. A negative
        // number is a wrong value and not an unknown flag `-1`.
        let takes_values = arg.get_action().takes_values();
        let is_switch = arg.get_value_names().is_some_and(|names| names == [SWITCH]);
        let heading = help_headings::heading(arg.get_id().as_str());
        let arg = arg
            .help_heading(heading)
            .hide_env_values(true)
            .allow_negative_numbers(takes_values);
        if is_switch {
            arg.num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
        } else {
            arg
        }
    })
}

#[cfg(test)]
mod tests;
