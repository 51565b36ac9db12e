//! The file of `--config`: reads its keys and texts. What the texts mean is
//! decided by the value parsers of the flags.

use std::ffi::OsStr;
use std::path::Path;

use clap::{Arg, ArgMatches, Command, Id};

use super::ConfigError;
use super::error::nearest;
use super::password::without_password;

/// How similar a known key must be to be suggested, from 0 to 1: one or two
/// typing errors.
const MIN_SIMILARITY: f64 = 0.7;

/// Reads the settings in the file, as the ids of arguments of `command` and
/// texts for them. Keys may be written with `-` or `_`.
///
/// # Errors
/// The file cannot be read, is not TOML, has an unknown key, or a value that
/// is not a string, an integer or a boolean.
pub(super) fn read(path: &Path, command: &Command) -> Result<Vec<(Id, String)>, ConfigError> {
    let invalid = |reason: String| ConfigError::File {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|error| invalid(error.to_string()))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| invalid(error.to_string()))?;
    let mut settings = Vec::with_capacity(table.len());
    for (key, value) in table {
        let argument = find(command, &key).ok_or_else(|| ConfigError::UnknownKey {
            path: path.to_owned(),
            nearest: nearest_setting(command, &key),
            key: key.clone(),
        })?;
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(choice) => choice.to_string(),
            other => {
                return Err(invalid(format!(
                    "{key} must be a string, an integer or a boolean, not {}",
                    other.type_str()
                )));
            }
        };
        settings.push((argument.get_id().clone(), text));
    }
    Ok(settings)
}

/// Writes the settings in effect as such a file.
pub(super) fn write(command: &Command, matches: &ArgMatches) -> String {
    let mut text = String::new();
    for (argument, name) in arguments(command) {
        let values = matches.try_get_raw(argument.get_id().as_str());
        let Some(values) = values.ok().flatten() else {
            continue;
        };
        // A list is one text in a file, as it is in a variable.
        let values: Vec<_> = values
            .filter_map(OsStr::to_str)
            .map(without_password)
            .collect();
        if !values.is_empty() {
            let value = toml::Value::String(values.join(","));
            text += &format!("{name} = {value}\n");
        }
    }
    text
}

/// Returns the arguments that a file can set. A file cannot name another file,
/// nor ask for anything other than serving.
fn arguments(command: &Command) -> impl Iterator<Item = (&Arg, &str)> {
    let named = command.get_arguments();
    let named = named.filter_map(|argument| Some((argument, argument.get_long()?)));
    named.filter(|&(_, name)| {
        !["config", "check-config", "print-config", "help", "version"].contains(&name)
    })
}

fn find<'a>(command: &'a Command, key: &str) -> Option<&'a Arg> {
    let name = key.replace('_', "-");
    let argument = arguments(command).find(|&(_, known)| known == name);
    argument.map(|(argument, _)| argument)
}

/// Returns the setting that was probably meant.
fn nearest_setting(command: &Command, key: &str) -> Option<String> {
    let name = key.replace('_', "-");
    let known = arguments(command).map(|(_, known)| known);
    nearest(&name, known, MIN_SIMILARITY).map(str::to_owned)
}
