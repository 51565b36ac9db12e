//! How the text of a setting becomes a value, and what an invalid text is
//! answered with.

use std::ffi::{OsStr, OsString};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::TypedValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, Command, Error};

use crate::rpc::principal::Role;
use bytesize::ByteSize;
use charlstm_model::decode_step::Precision;
use charlstm_model::device::{DeviceChoice, GpuMath};
use charlstm_model::kernels::{Kernel, KernelChoice};
use charlstm_replicas::database::{DatabaseError, DatabaseUrl};
use charlstm_store::session::{Durability, Owner};
use tonic::codegen::http::Uri;
use tracing::level_filters::LevelFilter;

/// Longest duration of a setting: ten years are as good as unlimited, and no
/// sum of times overflows.
const MAX_DURATION: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Smallest size of a setting: one session of the largest network fits.
const MIN_BYTE_SIZE: ByteSize = ByteSize::mb(1);

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

/// A value parser for clap whose errors carry the source of the value (the
/// flag, the variable, or the key of the file) and the requirement that the
/// value does not meet, which is what the function returns as its error.
#[derive(Clone, Copy)]
pub(super) struct Checked<T>(pub(super) fn(&str) -> Result<T, String>);

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Checked<T> {
    type Value = T;

    fn parse_ref(&self, _: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, Error> {
        self.check(arg, value, ValueSource::CommandLine)
    }

    fn parse_ref_(
        &self,
        _: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
        source: ValueSource,
    ) -> Result<T, Error> {
        self.check(arg, value, source)
    }

    fn parse_(
        &self,
        _: &Command,
        arg: Option<&Arg>,
        value: OsString,
        source: ValueSource,
    ) -> Result<T, Error> {
        self.check(arg, &value, source)
    }
}

impl<T> Checked<T> {
    fn check(&self, arg: Option<&Arg>, value: &OsStr, source: ValueSource) -> Result<T, Error> {
        let text = value.to_str().ok_or_else(|| "must be UTF-8".to_owned());
        text.and_then(self.0).map_err(|requirement| {
            let mut error = Error::new(ErrorKind::ValueValidation);
            for (kind, text) in [
                (ContextKind::InvalidArg, source_name(arg, source)),
                (
                    ContextKind::InvalidValue,
                    value.to_string_lossy().into_owned(),
                ),
                (ContextKind::Custom, requirement),
            ] {
                error.insert(kind, ContextValue::String(text));
            }
            error
        })
    }
}

/// Returns what a person calls the place that a value came from.
fn source_name(arg: Option<&Arg>, source: ValueSource) -> String {
    let Some(arg) = arg else {
        return String::new();
    };
    let name = arg.get_long().unwrap_or_default();
    match source {
        ValueSource::EnvVariable => arg.get_env().unwrap_or_default().to_string_lossy().into(),
        // A key of the file: the defaults in the code are valid.
        ValueSource::DefaultValue => name.to_owned(),
        _ => format!("--{name}"),
    }
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .ok_or_else(|| "must be HOST:PORT, such as 127.0.0.1:50051 or [::1]:50051".to_owned())
}

pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("must not be empty".to_owned());
    }
    Ok(text.into())
}

pub(super) fn device(text: &str) -> Result<DeviceChoice, String> {
    DeviceChoice::from_str(text)
        .map_err(|_| "must be auto, cpu, cuda or cuda:N, where N starts at 0".to_owned())
}

pub(super) fn precision(text: &str) -> Result<Precision, String> {
    Precision::from_name(text).ok_or_else(|| "must be int8 or float32".to_owned())
}

pub(super) fn kernels(text: &str) -> Result<KernelChoice, String> {
    text.parse().map_err(|_| {
        let names: Vec<&str> = Kernel::ALL.iter().map(|kernel| kernel.name()).collect();
        format!("must be auto, {}", names.join(", "))
    })
}

/// A whole number from `MIN` to `MAX`.
pub(super) fn count<const MIN: usize, const MAX: usize>(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| (MIN..=MAX).contains(number))
        .ok_or_else(|| format!("must be a whole number from {MIN} to {MAX}"))
}

/// A number of threads; `auto` is one per physical core.
pub(super) fn threads(text: &str) -> Result<usize, String> {
    if text == "auto" {
        return Ok(usable_cores());
    }
    count::<1, 1024>(text).map_err(|requirement| format!("{requirement}, or auto"))
}

/// Returns the number of cores that this process may use. Two hardware threads
/// of one core count once: they share the units that compute products.
fn usable_cores() -> usize {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    num_cpus::get_physical().clamp(1, available)
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("must be text or json".to_owned()),
    }
}

pub(super) fn gpu_failure(text: &str) -> Result<GpuFailure, String> {
    match text {
        "exit" => Ok(GpuFailure::Exit),
        "cpu" => Ok(GpuFailure::Cpu),
        _ => Err("must be exit or cpu".to_owned()),
    }
}

pub(super) fn gpu_math(text: &str) -> Result<GpuMath, String> {
    match text {
        "float32" => Ok(GpuMath::Float32),
        "tf32" => Ok(GpuMath::Tf32),
        _ => Err("must be float32 or tf32".to_owned()),
    }
}

pub(super) fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("must be on or off".to_owned()),
    }
}

/// The name of a principal.
pub(super) fn principal_name(text: &str) -> Result<String, String> {
    match Owner::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The name of a role.
pub(super) fn role(text: &str) -> Result<Role, String> {
    let roles = [Role::Generate, Role::Train, Role::Admin];
    let role = roles.into_iter().find(|role| role.name() == text);
    role.ok_or_else(|| "must be generate, train or admin".to_owned())
}

pub(super) fn log_level(text: &str) -> Result<LevelFilter, String> {
    match text {
        "error" => Ok(LevelFilter::ERROR),
        "warn" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err("must be error, warn, info, debug or trace".to_owned()),
    }
}

/// The address of a collector.
pub(super) fn url(text: &str) -> Result<String, String> {
    let uri: Option<Uri> = text.parse().ok();
    let is_valid = uri.is_some_and(|uri| {
        uri.host().is_some() && uri.scheme_str().is_some_and(|scheme| scheme == "http")
    });
    match is_valid {
        true => Ok(text.to_owned()),
        false => Err("must be a URL such as http://127.0.0.1:4317".to_owned()),
    }
}

/// The URL of a database. The error does not contain it.
pub(super) fn database(text: &str) -> Result<DatabaseUrl, String> {
    text.parse()
        .map_err(|error: DatabaseError| error.to_string())
}

/// The name of a replica: shown in errors and lists.
pub(super) fn replica_name(text: &str) -> Result<String, String> {
    let is_valid = (1..=64).contains(&text.len())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if !is_valid {
        return Err("must be 1 to 64 letters, digits, '.', '_' and '-'".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn object_store(text: &str) -> Result<String, String> {
    let schemes = ["s3://", "gs://", "az://", "file:///"];
    let named = schemes
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme))
        .is_some_and(|rest| !rest.is_empty());
    match named {
        true => Ok(text.to_owned()),
        false => Err(
            "must be a URL such as s3://BUCKET/PREFIX, gs://BUCKET, az://CONTAINER or \
             file:///FOLDER"
                .to_owned(),
        ),
    }
}

pub(super) fn durability(text: &str) -> Result<Durability, String> {
    match text {
        "committed" => Ok(Durability::Committed),
        "relaxed" => Ok(Durability::Relaxed),
        _ => Err("must be committed or relaxed".to_owned()),
    }
}

/// Bytes, with or without a unit; 1 MB is a million bytes, 1 MiB is 2^20.
pub(super) fn byte_size(text: &str) -> Result<ByteSize, String> {
    text.parse()
        .ok()
        .filter(|size: &ByteSize| *size >= MIN_BYTE_SIZE)
        .ok_or_else(|| {
            format!("must be a size of at least {MIN_BYTE_SIZE}, such as 512MB, 20GB or 1GiB")
        })
}

/// Bytes of a cache, as [`byte_size`], or 0 for none.
pub(super) fn cache_size(text: &str) -> Result<ByteSize, String> {
    match text {
        "0" => Ok(ByteSize::b(0)),
        _ => byte_size(text).map_err(|requirement| format!("{requirement}; or 0")),
    }
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .ok()
        .filter(|time| (Duration::from_secs(1)..=MAX_DURATION).contains(time))
        .ok_or_else(|| {
            "must be a duration from 1s to 3650d, such as 90s, 30m, 1h30m or 7d".to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        let seconds = |text| duration(text).map(|time| time.as_secs());
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("1h30m"), Ok(5400));
        assert_eq!(seconds("2d 1h"), Ok(49 * 3600));
        assert_eq!(seconds("3650d"), Ok(MAX_DURATION.as_secs()));
        for text in [
            "",
            "5",
            "m",
            "1x",
            "-1s",
            "999ms",
            "3651d",
            "99999999999999d",
        ] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_automatic_number_of_threads_is_at_least_one() {
        assert!(threads("auto").is_ok_and(|threads| threads >= 1));
        assert_eq!(threads("3"), Ok(3));
    }
}
