//! Reads the settings from the command line, the environment variables and the
//! file of `--config`.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::builder::Resettable;
use clap::{Command, CommandFactory, FromArgMatches};

use super::error::explain;
use super::{Config, ConfigError, SWITCH, conflicts, file, help_headings};

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
    pub(super) fn load(
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
        conflicts::check(&config)?;
        Ok(config)
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
