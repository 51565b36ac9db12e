//! Parses a line that was typed into the REPL. Performs no I/O.

use std::path::PathBuf;
use std::str::FromStr;

use crate::args::{SamplingFlags, Unknown};
use crate::suggestion::nearest;

/// Printed by `/help`.
pub(super) const HELP: &str = "\
TEXT             continue TEXT (a \\ at the end of the line adds another line)
(empty line)     continue the text so far
//TEXT           continue /TEXT, which would be a command otherwise
/retry           generate the last text again, with another seed
/undo            take the last text back
/set             show the settings
/set NAME VALUE  change temperature, top_k, top_p, min_p, seed, greedy, length, stop or
                 unknown; VALUE may be `default`
/model [NAME]    show the models, or start a new session with another model
/fork NAME       copy the session and continue in the copy
/reset           start a new session
/save [FILE]     write the session to a file (/save --force FILE replaces it)
/load FILE       continue a session from a file
/quit            exit (also Ctrl-D)
Ctrl-C           stop generating
Tab              complete a command";

/// Names of the settings.
pub(super) const SETTINGS: [&str; 9] = [
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "greedy",
    "length",
    "stop",
    "unknown",
];

/// Names of the commands.
pub(super) const COMMANDS: [&str; 11] = [
    "set", "retry", "undo", "model", "fork", "reset", "save", "load", "help", "quit", "show",
];

/// Default number of characters to generate.
const DEFAULT_LENGTH: u32 = 200;

/// Maximum number of characters that the server generates per call.
const MAX_LENGTH: u32 = 1_000_000;

/// A line typed into the REPL.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum ReplCommand {
    /// Continue this text.
    Continue(String),
    Retry,
    Undo,
    ShowSettings,
    Set {
        name: String,
        value: String,
    },
    ShowModels,
    Model(String),
    Fork(String),
    Reset,
    Save {
        path: Option<PathBuf>,
        force: bool,
    },
    Load(PathBuf),
    Help,
    Quit,
    /// Not a command; the message says what would be one.
    Invalid(String),
}

/// The settings of the REPL.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) sampling: SamplingFlags,
    pub(super) length: u32,
    /// Text that ends a generation.
    pub(super) stop: Option<String>,
    /// What happens to characters that the model does not know.
    pub(super) unknown: Unknown,
}

/// Parses a line.
pub(super) fn parse(line: &str) -> ReplCommand {
    let Some(command) = line.strip_prefix('/') else {
        return ReplCommand::Continue(line.to_owned());
    };
    if command.starts_with('/') {
        return ReplCommand::Continue(command.to_owned());
    }
    let words: Vec<&str> = command.split_whitespace().collect();
    // File names and texts may contain spaces.
    let after = |word: &str| command.split_once(word).map_or("", |(_, rest)| rest).trim();
    match words.as_slice() {
        ["retry"] => ReplCommand::Retry,
        ["undo"] => ReplCommand::Undo,
        ["set" | "show"] => ReplCommand::ShowSettings,
        ["set", "stop", _, ..] => ReplCommand::Set {
            name: "stop".into(),
            value: after("stop").to_owned(),
        },
        ["set", name, value] => ReplCommand::Set {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
        },
        ["set", ..] => {
            ReplCommand::Invalid("usage: /set NAME VALUE, for example /set temperature 0.8".into())
        }
        ["model"] => ReplCommand::ShowModels,
        ["model", name] => ReplCommand::Model((*name).to_owned()),
        ["model", ..] => ReplCommand::Invalid("usage: /model NAME or NAME@VERSION".into()),
        ["fork", name] => ReplCommand::Fork((*name).to_owned()),
        ["fork", ..] => ReplCommand::Invalid("usage: /fork NAME, the name of the copy".into()),
        ["reset"] => ReplCommand::Reset,
        ["save"] => ReplCommand::Save {
            path: None,
            force: false,
        },
        ["save", "--force", ..] => {
            let path = after("--force");
            ReplCommand::Save {
                path: (!path.is_empty()).then(|| PathBuf::from(path)),
                force: true,
            }
        }
        ["save", ..] => ReplCommand::Save {
            path: Some(PathBuf::from(after("save"))),
            force: false,
        },
        ["load"] => ReplCommand::Invalid("usage: /load FILE, which /save has written".into()),
        ["load", ..] => ReplCommand::Load(PathBuf::from(after("load"))),
        ["help" | "?"] => ReplCommand::Help,
        ["quit" | "exit" | "bye"] => ReplCommand::Quit,
        _ => {
            let name = words.first().copied().unwrap_or_default();
            ReplCommand::Invalid(unknown_command(command, name))
        }
    }
}

/// Returns the message for an unknown command, with a suggestion if there is
/// one.
fn unknown_command(command: &str, name: &str) -> String {
    let setting = name.replace('-', "_");
    let suggestion = if SETTINGS.contains(&setting.as_str()) {
        Some(format!("/set {command}"))
    } else {
        nearest(name, COMMANDS).map(|name| format!("/{name}"))
    };
    let suggestion =
        suggestion.map_or_else(String::new, |command| format!(" (did you mean {command}?)"));
    format!(
        "unknown command /{command}{suggestion}; /help lists the commands, \
         //{command} continues the text /{command}"
    )
}

impl Settings {
    /// Changes one setting. The error says which values are valid.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let sampling = &mut self.sampling;
        match name.replace('-', "_").as_str() {
            "temperature" => {
                let is_valid = |value: &f64| (0.0..=100.0).contains(value);
                sampling.temperature =
                    parse_value(name, value, "a number from 0 to 100", is_valid)?;
            }
            "top_k" => {
                let expected = "a whole number (0 means all characters)";
                sampling.top_k = parse_value(name, value, expected, |_| true)?;
            }
            "top_p" => {
                let is_valid = |value: &f64| *value > 0.0 && *value <= 1.0;
                let expected = "a number above 0, at most 1";
                sampling.top_p = parse_value(name, value, expected, is_valid)?;
            }
            "min_p" => {
                let is_valid = |value: &f64| (0.0..=1.0).contains(value);
                sampling.min_p = parse_value(name, value, "a number from 0 to 1", is_valid)?;
            }
            "seed" => sampling.seed = parse_value(name, value, "a whole number", |_| true)?,
            "length" => {
                let expected = "a whole number from 0 to 1,000,000";
                let is_valid = |value: &u32| *value <= MAX_LENGTH;
                let length = parse_value(name, value, expected, is_valid)?;
                self.length = length.unwrap_or(DEFAULT_LENGTH);
            }
            "greedy" => {
                sampling.greedy = match value {
                    "true" | "on" | "yes" => true,
                    "false" | "off" | "no" | "default" => false,
                    _ => return Err(format!("invalid value {value:?} for greedy; use on or off")),
                }
            }
            "unknown" => {
                let expected = "error, skip, replace";
                let unknown = match value {
                    "default" => Some(Unknown::default()),
                    _ => <Unknown as clap::ValueEnum>::from_str(value, true).ok(),
                };
                self.unknown = unknown.ok_or_else(|| {
                    format!("invalid value {value:?} for {name}; use {expected} or `default`")
                })?;
            }
            "stop" => self.stop = (value != "default").then(|| value.to_owned()),
            _ => {
                let known = SETTINGS.join(", ");
                return Err(format!("unknown setting {name:?}; available: {known}"));
            }
        }
        Ok(())
    }
}

/// Parses a value of a setting; `default` is `None`.
fn parse_value<T: FromStr>(
    name: &str,
    value: &str,
    expected: &str,
    is_valid: impl Fn(&T) -> bool,
) -> Result<Option<T>, String> {
    if value == "default" {
        return Ok(None);
    }
    let parsed = value.parse().ok().filter(is_valid);
    parsed
        .map(Some)
        .ok_or_else(|| format!("invalid value {value:?} for {name}; use {expected} or `default`"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            sampling: SamplingFlags::default(),
            length: 7,
            stop: None,
            unknown: Unknown::default(),
        }
    }

    #[test]
    fn a_line_is_text_unless_it_starts_with_a_single_slash() {
        let text = |text: &str| ReplCommand::Continue(text.into());
        assert_eq!(parse(" a b "), text(" a b "));
        assert_eq!(parse(""), text(""));
        assert_eq!(parse("//set"), text("/set"));
    }

    #[test]
    fn commands_are_parsed_with_their_arguments() {
        assert_eq!(parse("/quit"), ReplCommand::Quit);
        let (name, value) = ("top_k".into(), "5".into());
        assert_eq!(parse("/set top_k 5"), ReplCommand::Set { name, value });
        let (name, value) = ("stop".into(), "The End".into());
        assert_eq!(parse("/set stop The End"), ReplCommand::Set { name, value });
        for (line, path, force) in [
            ("/save", None, false),
            ("/save my file", Some("my file"), false),
            ("/save --force my file", Some("my file"), true),
            ("/save --force", None, true),
        ] {
            let path = path.map(PathBuf::from);
            assert_eq!(parse(line), ReplCommand::Save { path, force });
        }
        assert_eq!(parse("/load a b"), ReplCommand::Load("a b".into()));
        assert_eq!(parse("/model"), ReplCommand::ShowModels);
        assert_eq!(parse("/model b@2"), ReplCommand::Model("b@2".into()));
    }

    #[test]
    fn every_command_of_the_list_is_parsed_and_explained() {
        for name in COMMANDS {
            let is_known = |line: String| match parse(&line) {
                ReplCommand::Invalid(message) => message.starts_with("usage"),
                _ => true,
            };
            assert!(is_known(format!("/{name}")) || is_known(format!("/{name} x")));
            let is_explained = HELP.contains(&format!("/{name}"));
            assert!(is_explained || matches!(name, "help" | "show"), "{name}");
        }
    }

    #[test]
    fn an_unknown_command_is_invalid_and_has_a_suggestion() {
        assert!(matches!(parse("/nope"), ReplCommand::Invalid(_)));
        for (line, suggestion) in [("/resett", "/reset"), ("/length 30", "/set length 30")] {
            let ReplCommand::Invalid(message) = parse(line) else {
                panic!("{line} is not a command");
            };
            assert!(
                message.contains(&format!("did you mean {suggestion}?")),
                "{message}"
            );
        }
    }

    #[test]
    fn settings_can_be_changed_and_reset_to_their_defaults() {
        let mut settings = settings();
        for (name, value) in [
            ("temperature", "0.8"),
            ("top-k", "5"),
            ("greedy", "on"),
            ("length", "50"),
            ("stop", "The End"),
            ("unknown", "skip"),
        ] {
            settings.set(name, value).unwrap();
        }
        assert_eq!(settings.sampling.temperature, Some(0.8));
        assert_eq!(settings.sampling.top_k, Some(5));
        assert!(settings.sampling.greedy);
        assert_eq!(settings.length, 50);
        assert_eq!(settings.stop.as_deref(), Some("The End"));
        assert_eq!(settings.unknown, Unknown::Skip);
        for name in SETTINGS {
            settings.set(name, "default").unwrap();
        }
        assert_eq!(settings.sampling.temperature, None);
        assert!(!settings.sampling.greedy);
        assert_eq!(settings.length, DEFAULT_LENGTH);
        assert_eq!(settings.stop, None);
    }

    #[test]
    fn an_invalid_setting_is_rejected_with_the_valid_ones() {
        let mut settings = settings();
        let mut error = |name, value| settings.set(name, value).unwrap_err();
        assert!(error("temperature", "hot").contains("from 0 to 100"));
        assert!(error("temperature", "101").contains("from 0 to 100"));
        assert!(error("top_p", "0").contains("above 0"));
        assert!(error("top_k", "x").contains("a whole number"));
        assert!(error("greedy", "x").contains("on or off"));
        assert!(error("unknown", "x").contains("error, skip, replace"));
        assert!(error("heat", "1").contains("temperature, top_k"));
    }
}
