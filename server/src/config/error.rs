//! Why settings are invalid.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::password::without_password;
use clap::error::{ContextKind, ErrorKind};
use thiserror::Error;

/// The settings are invalid.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The command line is invalid, or asks for help.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// A value is invalid.
    #[error("invalid value {value:?} for {source_name}: {requirement}")]
    Value {
        /// Where the value was found: a flag, a variable, or a key of a file.
        source_name: String,
        /// The value.
        value: String,
        /// What would be right.
        requirement: String,
    },
    /// The file of `--config` cannot be read, or is not valid TOML.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file of `--config` has a key that is not a setting.
    #[error("{}: unknown setting {key:?}{}", path.display(), suggestion(nearest.as_deref()))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The setting that was probably meant.
        nearest: Option<String>,
    },
    /// Settings contradict each other.
    #[error("{0}")]
    Conflict(Cow<'static, str>),
}

/// Turns an error of a value into one that says where the value was found.
/// `file` is the file whose values are being read, if any: only they can be
/// wrong then.
pub(super) fn explain(error: clap::Error, file: Option<&Path>) -> ConfigError {
    let context = |kind| error.get(kind).map(ToString::to_string);
    let (Some(source_name), Some(value), Some(requirement)) = (
        context(ContextKind::InvalidArg),
        context(ContextKind::InvalidValue),
        context(ContextKind::Custom),
    ) else {
        return error.into();
    };
    debug_assert_eq!(error.kind(), ErrorKind::ValueValidation);
    ConfigError::Value {
        source_name: match file {
            Some(path) => format!("{source_name} in {}", path.display()),
            None => source_name,
        },
        value: without_password(&value),
        requirement,
    }
}

/// Returns the name in `known` that is most similar to `name`; `None` if none
/// has at least `min_similarity`, from 0 to 1 (the same name).
pub(super) fn nearest<'a>(
    name: &str,
    known: impl Iterator<Item = &'a str>,
    min_similarity: f64,
) -> Option<&'a str> {
    known
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|&(similarity, _)| similarity >= min_similarity)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// Returns the end of the message about an unknown key.
fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or(String::new(), |nearest| {
        format!("; did you mean {nearest:?}?")
    })
}
