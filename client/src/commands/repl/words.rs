//! What a line of the conversation means. No input or output.

use std::path::PathBuf;

use crate::args::SamplingFlags;
use crate::human;

/// What `/help` prints.
pub(super) const HELP: &str = "\
TEXT                  generate from it (a line that ends in \\ goes on in the next one)
an empty line         generate on
//TEXT                generate from /TEXT
/set                  show the settings
/set NAME VALUE       temperature, top_k, top_p, min_p, seed, greedy or length; VALUE may be default
/fork NAME            go on in a copy; the session stays as it is
/reset                begin a new session
/save [FILE]          write the session to a file
/quit                 leave, as Ctrl-D does
Ctrl-C                stop the text";

/// Names that `/set` knows.
const SETTINGS: [&str; 7] = [
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "greedy",
    "length",
];

const COMMANDS: [&str; 6] = ["set", "fork", "reset", "save", "help", "quit"];

/// Characters of a text where nothing is said.
const DEFAULT_LENGTH: u32 = 200;

/// What was said.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Said {
    Text(String),
    Show,
    Set { name: String, value: String },
    Fork(String),
    Reset,
    Save(Option<PathBuf>),
    Help,
    Quit,
    Unclear(String),
}

/// Understands a line.
pub(super) fn understand(line: &str) -> Said {
    let Some(command) = line.strip_prefix('/') else {
        return Said::Text(line.to_owned());
    };
    if command.starts_with('/') {
        return Said::Text(command.to_owned());
    }
    let words: Vec<&str> = command.split_whitespace().collect();
    match words.as_slice() {
        ["set"] => Said::Show,
        ["set", name, value] => Said::Set {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
        },
        ["set", ..] => Said::Unclear("/set NAME VALUE, as in /set temperature 0.8".into()),
        ["fork", name] => Said::Fork((*name).to_owned()),
        ["fork", ..] => Said::Unclear("/fork NAME, with a name for the copy".into()),
        ["reset"] => Said::Reset,
        ["save"] => Said::Save(None),
        ["save", ..] => {
            // A file name may have spaces.
            let path = command["save".len()..].trim();
            Said::Save(Some(PathBuf::from(path)))
        }
        ["help"] => Said::Help,
        ["quit" | "exit"] => Said::Quit,
        _ => Said::Unclear(unknown(command, words.first().copied().unwrap_or_default())),
    }
}

/// What a command that is none should probably have been.
fn unknown(command: &str, word: &str) -> String {
    let setting = word.replace('-', "_");
    let meant = if SETTINGS.contains(&setting.as_str()) {
        Some(format!("/set {command}"))
    } else {
        human::nearest(word, COMMANDS).map(|name| format!("/{name}"))
    };
    let meant = meant.map_or_else(String::new, |meant| format!(" (did you mean {meant}?)"));
    format!("/{command} is not a command{meant}; /help lists them, //{command} sends it as text")
}

/// Changes one setting; the error says what would be right.
pub(super) fn set(
    sampling: &mut SamplingFlags,
    length: &mut u32,
    name: &str,
    value: &str,
) -> Result<(), String> {
    match name.replace('-', "_").as_str() {
        "temperature" => sampling.temperature = parsed(name, value)?,
        "top_k" => sampling.top_k = parsed(name, value)?,
        "top_p" => sampling.top_p = parsed(name, value)?,
        "min_p" => sampling.min_p = parsed(name, value)?,
        "seed" => sampling.seed = parsed(name, value)?,
        "length" => *length = parsed(name, value)?.unwrap_or(DEFAULT_LENGTH),
        "greedy" => {
            sampling.greedy = match value {
                "true" | "on" | "yes" => true,
                "false" | "off" | "no" | "default" => false,
                _ => return Err(format!("greedy is on or off, not {value:?}")),
            }
        }
        _ => {
            let known = SETTINGS.join(", ");
            return Err(format!("{name:?} is not a setting; there are {known}"));
        }
    }
    Ok(())
}

fn parsed<T: std::str::FromStr>(name: &str, value: &str) -> Result<Option<T>, String> {
    if value == "default" {
        return Ok(None);
    }
    let number = value.parse();
    number
        .map(Some)
        .map_err(|_| format!("{name} cannot be {value:?}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_text_unless_it_begins_with_one_slash() {
        assert_eq!(understand(" a b "), Said::Text(" a b ".into()));
        assert_eq!(understand(""), Said::Text(String::new()));
        assert_eq!(understand("//set"), Said::Text("/set".into()));
        assert_eq!(understand("/quit"), Said::Quit);
        assert_eq!(
            understand("/set top_k 5"),
            Said::Set {
                name: "top_k".into(),
                value: "5".into()
            }
        );
        assert_eq!(
            understand("/save my file"),
            Said::Save(Some("my file".into()))
        );
        assert!(matches!(understand("/nope"), Said::Unclear(_)));
        for (said, meant) in [("/resett", "/reset"), ("/length 30", "/set length 30")] {
            let Said::Unclear(answer) = understand(said) else {
                panic!("{said} is no command");
            };
            assert!(
                answer.contains(&format!("did you mean {meant}?")),
                "{answer}"
            );
        }
    }

    #[test]
    fn settings_take_values_and_go_back_to_their_defaults() {
        let (mut sampling, mut length) = (SamplingFlags::default(), 7);
        set(&mut sampling, &mut length, "temperature", "0.8").unwrap();
        set(&mut sampling, &mut length, "top-k", "5").unwrap();
        set(&mut sampling, &mut length, "greedy", "on").unwrap();
        set(&mut sampling, &mut length, "length", "50").unwrap();
        assert_eq!(sampling.temperature, Some(0.8));
        assert_eq!(sampling.top_k, Some(5));
        assert!(sampling.greedy);
        assert_eq!(length, 50);
        set(&mut sampling, &mut length, "temperature", "default").unwrap();
        assert_eq!(sampling.temperature, None);
        for name in SETTINGS {
            set(&mut sampling, &mut length, name, "default").unwrap();
        }
        assert!(set(&mut sampling, &mut length, "top_k", "x").is_err());
        assert!(set(&mut sampling, &mut length, "heat", "1").is_err());
    }
}
