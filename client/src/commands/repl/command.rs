//! Parses a line that was typed into the REPL. Performs no I/O.

use std::path::PathBuf;
use std::str::FromStr;

use crate::args::SamplingFlags;
use crate::suggestion::nearest;

/// Printed by `/help`.
pub(super) const HELP: &str = "\
TEXT                  continue TEXT (a \\ at the end of the line adds another line)
(empty line)          continue the text so far
//TEXT                continue /TEXT, which would be a command otherwise
/set                  show the settings
/set NAME VALUE       change temperature, top_k, top_p, min_p, seed, greedy or length;
                      VALUE may be `default`
/fork NAME            copy the session and continue in the copy
/reset                start a new session
/save [FILE]          write the session to a file
/quit                 exit (also Ctrl-D)
Ctrl-C                stop generating";

/// Names of the settings.
const SETTINGS: [&str; 7] = [
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "greedy",
    "length",
];

/// Names of the commands.
const COMMANDS: [&str; 6] = ["set", "fork", "reset", "save", "help", "quit"];

/// Default number of characters to generate.
const DEFAULT_LENGTH: u32 = 200;

/// A line typed into the REPL.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum ReplCommand {
    /// Continue this text.
    Continue(String),
    ShowSettings,
    Set {
        name: String,
        value: String,
    },
    Fork(String),
    Reset,
    Save(Option<PathBuf>),
    Help,
    Quit,
    /// Not a command; the message tells what would be one.
    Invalid(String),
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
    match words.as_slice() {
        ["set"] => ReplCommand::ShowSettings,
        ["set", name, value] => ReplCommand::Set {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
        },
        ["set", ..] => {
            ReplCommand::Invalid("usage: /set NAME VALUE, for example /set temperature 0.8".into())
        }
        ["fork", name] => ReplCommand::Fork((*name).to_owned()),
        ["fork", ..] => ReplCommand::Invalid("usage: /fork NAME, the name of the copy".into()),
        ["reset"] => ReplCommand::Reset,
        ["save"] => ReplCommand::Save(None),
        ["save", ..] => {
            // A file name may contain spaces.
            let path = command["save".len()..].trim();
            ReplCommand::Save(Some(PathBuf::from(path)))
        }
        ["help"] => ReplCommand::Help,
        ["quit" | "exit"] => ReplCommand::Quit,
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

/// Changes one setting. The error says which values are valid.
pub(super) fn set(
    sampling: &mut SamplingFlags,
    length: &mut u32,
    name: &str,
    value: &str,
) -> Result<(), String> {
    const NUMBER: &str = "a number";
    const WHOLE_NUMBER: &str = "a whole number";
    match name.replace('-', "_").as_str() {
        "temperature" => sampling.temperature = parse_value(name, value, NUMBER)?,
        "top_k" => sampling.top_k = parse_value(name, value, WHOLE_NUMBER)?,
        "top_p" => sampling.top_p = parse_value(name, value, NUMBER)?,
        "min_p" => sampling.min_p = parse_value(name, value, NUMBER)?,
        "seed" => sampling.seed = parse_value(name, value, WHOLE_NUMBER)?,
        "length" => *length = parse_value(name, value, WHOLE_NUMBER)?.unwrap_or(DEFAULT_LENGTH),
        "greedy" => {
            sampling.greedy = match value {
                "true" | "on" | "yes" => true,
                "false" | "off" | "no" | "default" => false,
                _ => return Err(format!("invalid value {value:?} for greedy; use on or off")),
            }
        }
        _ => {
            let known = SETTINGS.join(", ");
            return Err(format!("unknown setting {name:?}; available: {known}"));
        }
    }
    Ok(())
}

/// Parses a value of a setting; `default` is `None`.
fn parse_value<T: FromStr>(name: &str, value: &str, expected: &str) -> Result<Option<T>, String> {
    if value == "default" {
        return Ok(None);
    }
    value
        .parse()
        .map(Some)
        .map_err(|_| format!("invalid value {value:?} for {name}; use {expected} or `default`"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
        let path = Some("my file".into());
        assert_eq!(parse("/save my file"), ReplCommand::Save(path));
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
        let (mut sampling, mut length) = (SamplingFlags::default(), 7);
        set(&mut sampling, &mut length, "temperature", "0.8").unwrap();
        set(&mut sampling, &mut length, "top-k", "5").unwrap();
        set(&mut sampling, &mut length, "greedy", "on").unwrap();
        set(&mut sampling, &mut length, "length", "50").unwrap();
        assert_eq!(sampling.temperature, Some(0.8));
        assert_eq!(sampling.top_k, Some(5));
        assert!(sampling.greedy);
        assert_eq!(length, 50);
        for name in SETTINGS {
            set(&mut sampling, &mut length, name, "default").unwrap();
        }
        assert_eq!(sampling.temperature, None);
        assert!(!sampling.greedy);
        assert_eq!(length, DEFAULT_LENGTH);
    }

    #[test]
    fn an_invalid_setting_is_rejected_with_the_valid_ones() {
        let (mut sampling, mut length) = (SamplingFlags::default(), 7);
        let mut error = |name, value| set(&mut sampling, &mut length, name, value).unwrap_err();
        assert!(error("top_k", "x").contains("use a whole number"));
        assert!(error("greedy", "x").contains("on or off"));
        assert!(error("heat", "1").contains("temperature, top_k"));
    }
}
