//! Completes the commands of the REPL when Tab is pressed.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};

use super::command::{COMMANDS, SETTINGS};

/// Completes commands, settings, models and files.
#[derive(Clone, Default)]
pub(super) struct CommandCompleter {
    models: Arc<Mutex<Vec<String>>>,
}

impl CommandCompleter {
    /// Replaces the names that `/model` completes.
    pub(super) fn set_models(&self, models: Vec<String>) {
        *self.models.lock().unwrap_or_else(PoisonError::into_inner) = models;
    }

    /// Returns where the word before the cursor begins, and what it may become.
    fn candidates(&self, line: &str) -> (usize, Vec<String>) {
        let Some(command) = line.strip_prefix('/').filter(|rest| !rest.starts_with('/')) else {
            return (0, Vec::new());
        };
        let Some((name, argument)) = command.split_once(' ') else {
            return (1, with_prefix(COMMANDS.map(str::to_owned), command));
        };
        let start = line.len() - argument.len();
        match name {
            "set" if !argument.contains(' ') => {
                (start, with_prefix(SETTINGS.map(str::to_owned), argument))
            }
            "model" => {
                let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
                (start, with_prefix(models.iter().cloned(), argument))
            }
            "load" => (start, files(argument)),
            "save" => {
                let path = argument.strip_prefix("--force ").unwrap_or(argument);
                (line.len() - path.len(), files(path))
            }
            _ => (line.len(), Vec::new()),
        }
    }
}

/// Returns the names that start with `prefix`.
fn with_prefix(names: impl IntoIterator<Item = String>, prefix: &str) -> Vec<String> {
    let names = names.into_iter();
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Returns the files and folders whose path starts with `prefix`, sorted; a
/// folder ends in a slash.
fn files(prefix: &str) -> Vec<String> {
    let (folder, name) = match prefix.rfind('/') {
        Some(slash) => prefix.split_at(slash + 1),
        None => ("", prefix),
    };
    let path = if folder.is_empty() { "." } else { folder };
    let Ok(entries) = fs::read_dir(Path::new(path)) else {
        return Vec::new();
    };
    let mut found: Vec<String> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let file = entry.file_name().into_string().ok()?;
            let is_hidden = file.starts_with('.') && !name.starts_with('.');
            let slash = if entry.path().is_dir() { "/" } else { "" };
            (file.starts_with(name) && !is_hidden).then(|| format!("{folder}{file}{slash}"))
        })
        .collect();
    found.sort();
    found
}

impl Completer for CommandCompleter {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        cursor: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(self.candidates(&line[..cursor]))
    }
}

impl Hinter for CommandCompleter {
    type Hint = String;
}

impl Highlighter for CommandCompleter {}

impl Validator for CommandCompleter {}

impl Helper for CommandCompleter {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn commands_settings_and_models_are_completed() {
        let completer = CommandCompleter::default();
        completer.set_models(vec!["book".into(), "tale".into()]);
        let complete = |line: &str| completer.candidates(line);
        let names = |start: usize, names: &[&str]| {
            (start, names.iter().map(|name| (*name).to_owned()).collect())
        };
        assert_eq!(complete("/re"), names(1, &["retry", "reset"]));
        assert_eq!(complete("/set top"), names(5, &["top_k", "top_p"]));
        assert_eq!(complete("/model b"), names(7, &["book"]));
        assert_eq!(complete("/set seed 1"), names(11, &[]));
        assert_eq!(complete("some text"), names(0, &[]));
        assert_eq!(complete("//re"), names(0, &[]));
    }

    #[test]
    fn files_are_completed_with_their_folder_even_with_spaces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        fs::write(folder.path().join("my tale.session"), "").unwrap();
        fs::create_dir(folder.path().join("more")).unwrap();
        fs::write(folder.path().join("other"), "").unwrap();
        let completer = CommandCompleter::default();
        let expected = vec![format!("{path}/more/"), format!("{path}/my tale.session")];
        assert_eq!(
            completer.candidates(&format!("/load {path}/m")),
            (6, expected)
        );
        let expected = vec![format!("{path}/my tale.session")];
        let line = format!("/save --force {path}/my t");
        assert_eq!(completer.candidates(&line), (14, expected));
        assert_eq!(files("/nonexistent/x"), Vec::<String>::new());
    }
}
