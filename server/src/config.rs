//! Every flag, variable, default and limit of the server. Nothing else reads
//! the command line or the environment.
//!
//! A setting is a line in `settings::ALL`. Flag wins over environment, that
//! over the file of `--config`, that over the default.

mod settings;

use std::ffi::OsString;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use self::settings::{Found, Settings};
use charlstm_model::device::DeviceChoice;

/// Most bytes of one gRPC message to the server. A corpus or a model comes in
/// chunks; this bounds what `StartTraining` can carry in one piece.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Longest wait for calls under way when the server stops.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// Silence on a connection after which the client is asked whether it is
/// still there, and how long it may take to answer.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// See [`KEEPALIVE_INTERVAL`].
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Calls of one connection that may be given up before they are looked at. A
/// service that stops drops thousands at once, and must not lose its
/// connection over it; each costs some hundred bytes until then. (The
/// default of the library is 20.)
pub const MAX_RESET_CALLS: usize = 16_384;

const THREADS: RangeInclusive<usize> = 1..=1024;
const MAX_BATCH: RangeInclusive<usize> = 1..=4096;
const MAX_SESSIONS: RangeInclusive<usize> = 1..=10_000_000;
const MAX_QUEUE: RangeInclusive<usize> = 0..=1_000_000;
const KEEP_TRAININGS: RangeInclusive<usize> = 0..=1_000_000;
/// Ten years are as good as for ever, and no sum of times overflows.
const MAX_SESSION_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The files of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// Certificates that a client's must be signed by, PEM.
    pub client_ca: Option<PathBuf>,
}

/// Everything that can be set, checked as far as it can be without the
/// machine's devices and disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where to listen. Port 0: any free one.
    pub listen: SocketAddr,
    /// Folder of models, trainings and sessions.
    pub data_dir: PathBuf,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Threads that compute.
    pub threads: usize,
    /// Most generations in one batch.
    pub max_batch: usize,
    /// Most sessions that are kept.
    pub max_sessions: usize,
    /// Idle time after which a session is let go.
    pub session_ttl: Duration,
    /// Time after which a reader that reads nothing is given up.
    pub reader_timeout: Duration,
    /// Most generations that wait for a place in the batch.
    pub max_queue: usize,
    /// Most trainings that have ended and are kept.
    pub keep_trainings: usize,
    /// Whether interrupted trainings go on at the start.
    pub resume_interrupted: bool,
    /// Whether trainings write event files for TensorBoard.
    pub tensorboard: bool,
    /// Where to serve metrics, if at all.
    pub metrics_listen: Option<SocketAddr>,
    /// TLS, where it is wanted.
    pub tls: Option<TlsFiles>,
    /// File of the tokens of which a caller must show one.
    pub auth_token_file: Option<PathBuf>,
    /// How the log is written.
    pub log_format: LogFormat,
    /// What is logged: the variable `RUST_LOG`, as other programs have it.
    pub log_filter: String,
    /// Whether colours are allowed in the log: `NO_COLOR` is not set.
    pub log_colours: bool,
}

/// A setting is wrong.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The command line is wrong, or asks for help.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// A value is wrong.
    #[error("{place}: {value:?} {reason}")]
    Value {
        /// Where it was found: a flag, a variable, or a key in a file.
        place: String,
        /// The value.
        value: String,
        /// What would be right.
        reason: String,
    },
    /// The file of `--config` cannot be read, or is no TOML.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file of `--config` has a key that is no setting.
    #[error("{}: {key:?} is no setting{}", path.display(), settings::suggestion(nearest.as_deref()))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The setting that was probably meant.
        nearest: Option<String>,
    },
    /// Settings do not go together.
    #[error("{0}")]
    Together(&'static str),
}

impl Config {
    /// Reads the settings from arguments (the first is the program's name),
    /// variables, and the file that they name.
    ///
    /// # Errors
    /// Any [`ConfigError`]; `Usage` also where help or version is asked for.
    pub fn load<A: Into<OsString> + Clone>(
        arguments: impl IntoIterator<Item = A>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ConfigError> {
        let settings = Settings::collect(arguments, &variable)?;
        Ok(Self {
            listen: settings.required("listen", address)?,
            data_dir: settings.required("data-dir", path)?,
            device: settings.required("device", |text| {
                DeviceChoice::from_str(text).map_err(|error| format!("is refused: {error}"))
            })?,
            threads: settings
                .optional("threads", |text| count(text, THREADS))?
                .unwrap_or_else(default_threads),
            max_batch: settings.required("max-batch", |text| count(text, MAX_BATCH))?,
            max_sessions: settings.required("max-sessions", |text| count(text, MAX_SESSIONS))?,
            session_ttl: settings.required("session-ttl", time_to_live)?,
            reader_timeout: settings.required("reader-timeout", time_to_live)?,
            max_queue: settings.required("max-queue", |text| count(text, MAX_QUEUE))?,
            keep_trainings: settings
                .required("keep-trainings", |text| count(text, KEEP_TRAININGS))?,
            resume_interrupted: settings.required("resume-interrupted", yes_or_no)?,
            tensorboard: settings.required("tensorboard", yes_or_no)?,
            metrics_listen: settings.optional("metrics-listen", address)?,
            tls: tls(&settings)?,
            auth_token_file: settings.optional("auth-token-file", path)?,
            log_format: settings.required("log-format", log_format)?,
            log_filter: variable("RUST_LOG")
                .and_then(|filter| filter.into_string().ok())
                .unwrap_or_default(),
            log_colours: variable("NO_COLOR").is_none_or(|value| value.is_empty()),
        })
    }

    /// [`Self::load`] from the arguments and variables of this process.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_process() -> Result<Self, ConfigError> {
        Self::load(std::env::args_os(), |name| std::env::var_os(name))
    }
}

/// The command line, for help, completions and manual pages.
pub fn command() -> clap::Command {
    settings::command()
}

fn tls(settings: &Settings) -> Result<Option<TlsFiles>, ConfigError> {
    let cert = settings.optional("tls-cert", path)?;
    let key = settings.optional("tls-key", path)?;
    let client_ca = settings.optional("tls-client-ca", path)?;
    match (cert, key, client_ca) {
        (Some(cert), Some(key), client_ca) => Ok(Some(TlsFiles {
            cert,
            key,
            client_ca,
        })),
        (None, None, None) => Ok(None),
        (None, None, Some(_)) => Err(ConfigError::Together(
            "--tls-client-ca needs --tls-cert and --tls-key",
        )),
        _ => Err(ConfigError::Together(
            "--tls-cert and --tls-key need each other",
        )),
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .ok_or_else(|| "is no address: use HOST:PORT, as 127.0.0.1:50051 or [::1]:50051".to_owned())
}

fn path(text: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(text))
}

fn count(text: &str, range: RangeInclusive<usize>) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| {
            format!(
                "is not a whole number from {} to {}",
                range.start(),
                range.end()
            )
        })
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("is no log format: use text or json".to_owned()),
    }
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err("is neither true nor false".to_owned()),
    }
}

fn time_to_live(text: &str) -> Result<Duration, String> {
    duration(text)
        .filter(|time| (Duration::from_secs(1)..=MAX_SESSION_TTL).contains(time))
        .ok_or_else(|| {
            "is no time from 1s to 3650d: use numbers with units, as 90s, 30m, 1h30m or 7d"
                .to_owned()
        })
}

/// Numbers with units, one after the other: `1h30m`.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u32 = rest[..digits].parse().ok()?;
        rest = rest[digits..].trim_start();
        let letters = rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ms" => Duration::from_millis(1),
            "s" | "sec" => Duration::from_secs(1),
            "m" | "min" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            "d" => Duration::from_secs(24 * 3600),
            _ => return None,
        };
        total = total.checked_add(unit.checked_mul(number)?)?;
        rest = rest[letters..].trim_start();
    }
    Some(total)
}

/// The cores that this process may use, two threads of one core counted once:
/// matrix products gain nothing from the second.
fn default_threads() -> usize {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    physical_cores()
        .map_or(available, |cores| cores.min(available))
        .max(1)
}

/// `None` where the system does not tell.
fn physical_cores() -> Option<usize> {
    let mut cores = std::collections::HashSet::new();
    for entry in std::fs::read_dir("/sys/devices/system/cpu").ok()? {
        let siblings = entry.ok()?.path().join("topology/thread_siblings_list");
        if let Ok(siblings) = std::fs::read_to_string(siblings) {
            cores.insert(siblings);
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

impl Found<'_> {
    fn wrong(&self, reason: impl Into<String>) -> ConfigError {
        ConfigError::Value {
            place: self.place.clone(),
            value: self.value.to_owned(),
            reason: reason.into(),
        }
    }
}

#[cfg(test)]
mod tests;
