//! The table of settings, and the layers that their texts come from: flags,
//! environment, file, defaults. What the texts mean is in the parent module.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, Command};

use super::ConfigError;

/// One setting: a flag `--name`, a variable `CHARLSTM_NAME`, a key in the
/// file.
struct Setting {
    name: &'static str,
    value_name: &'static str,
    /// `None`: there is none, or the help says how it is found.
    default: Option<&'static str>,
    help: &'static str,
    /// The flag without a value means true.
    switch: bool,
}

const fn setting(
    name: &'static str,
    value_name: &'static str,
    default: Option<&'static str>,
    help: &'static str,
) -> Setting {
    Setting {
        name,
        value_name,
        default,
        help,
        switch: false,
    }
}

const fn switch(name: &'static str, help: &'static str) -> Setting {
    Setting {
        switch: true,
        ..setting(name, "true|false", Some("false"), help)
    }
}

const ALL: &[Setting] = &[
    // Only this machine: whoever opens it to others thinks of TLS and tokens.
    setting(
        "listen",
        "HOST:PORT",
        Some("127.0.0.1:50051"),
        "Where to listen; port 0 picks a free one",
    ),
    setting(
        "data-dir",
        "FOLDER",
        Some("./charlstm-data"),
        "Folder of models, trainings and sessions; made where it is not there",
    ),
    setting(
        "device",
        "DEVICE",
        Some("auto"),
        "Where to train: auto, cpu or cuda:N",
    ),
    setting(
        "threads",
        "N",
        None,
        "Threads that compute [default: the cores that there are]",
    ),
    // Throughput hardly grows from here on, and time between characters does.
    setting(
        "max-batch",
        "N",
        Some("256"),
        "Most generations that are computed together",
    ),
    // At 8 KiB each, for a network of 2 x 512: under 1 GB.
    setting(
        "max-sessions",
        "N",
        Some("100000"),
        "Most sessions that are kept; beyond, the longest idle one is let go",
    ),
    // A conversation can be gone on with the next day.
    setting(
        "session-ttl",
        "TIME",
        Some("24h"),
        "Idle time after which a session is let go, as 90s, 30m, 24h or 7d",
    ),
    // A person who looks away comes back within it; a program that hangs does
    // not hold a place in the batch for longer.
    setting(
        "reader-timeout",
        "TIME",
        Some("60s"),
        "A client that reads nothing of its text for so long is given up",
    ),
    // Four full batches: who waits behind more is better told to come again.
    setting(
        "max-queue",
        "N",
        Some("1024"),
        "Most generations that wait; beyond, callers are told to try again",
    ),
    // Whoever has watched a training through may still want to look at it; a
    // thousand of them are as much as a person reads in a list.
    setting(
        "keep-trainings",
        "N",
        Some("1000"),
        "Trainings that have ended and are still listed; beyond, the oldest are deleted (never \
         one that was interrupted, and never a model)",
    ),
    switch(
        "resume-interrupted",
        "Go on with the trainings that the last stop or crash interrupted",
    ),
    switch(
        "tensorboard",
        "Also write what trainings tell as event files for TensorBoard, into trainings/ID/tensorboard",
    ),
    setting(
        "metrics-listen",
        "HOST:PORT",
        None,
        "Where to serve metrics for Prometheus, at /metrics, to everybody who can reach it [default: nowhere]",
    ),
    setting(
        "tls-cert",
        "FILE",
        None,
        "Certificate chain, PEM; with --tls-key the server speaks TLS only",
    ),
    setting("tls-key", "FILE", None, "Private key of --tls-cert, PEM"),
    setting(
        "tls-client-ca",
        "FILE",
        None,
        "Certificates, PEM, one of which must have signed the client's",
    ),
    setting(
        "auth-token-file",
        "FILE",
        None,
        "File of tokens, one a line; callers must send one as `authorization: Bearer TOKEN`",
    ),
    setting(
        "log-format",
        "FORMAT",
        Some("text"),
        "How the log on standard error is written: text or json",
    ),
    setting(
        "config",
        "FILE",
        None,
        "TOML file of settings, under the names of these flags",
    ),
];

/// The command line.
pub(super) fn command() -> Command {
    let arguments = ALL.iter().map(|setting| {
        let default = setting
            .default
            .map_or(String::new(), |default| format!(" [default: {default}]"));
        let variable = variable_name(setting.name);
        let argument = Arg::new(setting.name)
            .long(setting.name)
            .value_name(setting.value_name);
        let argument = if setting.switch {
            argument
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
        } else {
            argument
        };
        argument
            // For an answer about the number, not about a flag `-1`.
            .allow_negative_numbers(true)
            .help(format!("{}{default} [env: {variable}]", setting.help))
    });
    Command::new("charlstm-server")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Trains character-level LSTMs and generates text from them, over gRPC.")
        .after_help(
            "A flag wins over its variable, that over the file of --config, that over the \
             default.\nWhen it is ready, the server prints one line to standard output: \
             listening on http://ADDR",
        )
        .args(arguments)
        // As most programs have it: of a flag given twice, the last counts.
        .args_override_self(true)
}

/// The text of a setting, and where it was found, in words.
pub(super) struct Found<'a> {
    pub(super) value: &'a str,
    pub(super) place: String,
}

/// Where the text of a setting was found.
enum Layer {
    Flag,
    Variable,
    File(PathBuf),
    Default,
}

/// The texts of all settings that have one.
pub(super) struct Settings {
    found: BTreeMap<&'static str, (Layer, String)>,
}

impl Settings {
    pub(super) fn collect<A: Into<OsString> + Clone>(
        arguments: impl IntoIterator<Item = A>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ConfigError> {
        let mut matches = command().try_get_matches_from(arguments)?;
        let mut found = BTreeMap::new();
        for setting in ALL {
            if let Some(text) = matches.remove_one::<String>(setting.name) {
                found.insert(setting.name, (Layer::Flag, text));
            } else if let Some(text) = from_variable(setting.name, &variable)? {
                found.insert(setting.name, (Layer::Variable, text));
            }
        }
        if let Some((_, path)) = found.get("config") {
            let path = PathBuf::from(path);
            for (name, text) in from_file(&path)? {
                let layer = Layer::File(path.clone());
                found.entry(name).or_insert((layer, text));
            }
        }
        for setting in ALL {
            if let Some(default) = setting.default {
                let default = (Layer::Default, default.to_owned());
                found.entry(setting.name).or_insert(default);
            }
        }
        Ok(Self { found })
    }

    pub(super) fn find(&self, name: &str) -> Option<Found<'_>> {
        let (layer, value) = self.found.get(name)?;
        let place = match layer {
            Layer::Flag => format!("--{name}"),
            Layer::Variable => variable_name(name),
            Layer::File(path) => format!("{}: {name}", path.display()),
            Layer::Default => format!("the default of --{name}"),
        };
        Some(Found { value, place })
    }

    pub(super) fn optional<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        self.find(name)
            .map(|found| parse(found.value).map_err(|reason| found.wrong(reason)))
            .transpose()
    }

    pub(super) fn required<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        let value = self.optional(name, parse)?;
        Ok(value.expect("the setting has a default in the table"))
    }
}

/// The end of an error about an unknown key.
pub(super) fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or(String::new(), |nearest| {
        format!("; did you mean {nearest:?}?")
    })
}

fn variable_name(name: &str) -> String {
    format!("CHARLSTM_{}", name.to_uppercase().replace('-', "_"))
}

/// An empty variable counts as one that is not set.
fn from_variable(
    name: &str,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<String>, ConfigError> {
    let name = variable_name(name);
    let text = variable(&name).filter(|text| !text.is_empty());
    text.map(|text| {
        text.into_string().map_err(|text| ConfigError::Value {
            place: name,
            value: text.to_string_lossy().into_owned(),
            reason: "is not UTF-8".to_owned(),
        })
    })
    .transpose()
}

fn from_file(path: &Path) -> Result<Vec<(&'static str, String)>, ConfigError> {
    let broken = |reason: String| ConfigError::File {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|error| broken(error.to_string()))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| broken(error.to_string()))?;
    let mut found = Vec::new();
    for (key, value) in table {
        // Both spellings are at home in TOML files.
        let name = key.replace('_', "-");
        // A file cannot name another.
        let known = ALL
            .iter()
            .map(|setting| setting.name)
            .filter(|&known| known != "config");
        let Some(setting) = known.clone().find(|&known| known == name) else {
            return Err(ConfigError::UnknownKey {
                path: path.to_owned(),
                nearest: nearest(&name, known),
                key,
            });
        };
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(answer) => answer.to_string(),
            other => {
                return Err(broken(format!(
                    "{key} must be a text, a whole number, true or false, not {}",
                    other.type_str()
                )));
            }
        };
        found.push((setting, text));
    }
    Ok(found)
}

/// The setting that was probably meant.
fn nearest(name: &str, known: impl Iterator<Item = &'static str>) -> Option<String> {
    known
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|&(similarity, _)| similarity > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known.to_owned())
}
