//! The settings of the server. Nothing outside of this module reads the command
//! line, the environment or the configuration file.
//!
//! A setting is a field of [`Config`]. A flag takes precedence over the
//! environment variable, the variable over the file of `--config`, and the
//! file over the default.

mod conflicts;
mod environment;
mod error;
mod file;
mod help_headings;
mod http;
mod loading;
mod password;
mod replicas;
mod task;
mod value;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgAction, Parser};

pub use self::environment::unknown_variables;
pub use self::error::ConfigError;
pub use self::http::HttpConfig;
pub use self::loading::command;
pub use self::replicas::ReplicaConfig;
pub use self::task::Task;
use self::value::{
    Checked, address, boolean, byte_size, cache_size, count, device, durability, duration,
    gpu_failure, gpu_math, kernels, log_format, log_level, path, precision, threads, url,
};
pub use self::value::{GpuFailure, LogFormat};
use crate::access::AccessFiles;
use bytesize::ByteSize;
use charlstm_model::decode_step::Precision;
use charlstm_model::device::{DeviceChoice, GpuMath};
use charlstm_model::kernels::KernelChoice;
use charlstm_store::session::Durability;
use tracing::level_filters::LevelFilter;

/// Value name of the settings that are on or off. [`command`] lets their flags
/// stand alone: `--tensorboard` is `--tensorboard=true`.
const SWITCH: &str = "true|false";

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

    /// Products of trainings on a GPU: float32, or tf32, which rounds their inputs
    /// to 10 bits and is faster. Generation does not change
    #[arg(
        long,
        env = "CHARLSTM_GPU_MATH",
        value_name = "float32|tf32",
        default_value = "float32",
        value_parser = Checked(gpu_math)
    )]
    pub gpu_math: GpuMath,

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
    pub session_durability: Durability,

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

    /// What the replicas of a service share.
    #[command(flatten)]
    pub replicas: ReplicaConfig,

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

    /// Also write the progress of trainings as TensorBoard event files: to
    /// trainings/ID/tensorboard in the data folder, or with --object-store to tensorboard/ID in
    /// the store
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

#[cfg(test)]
mod tests;
