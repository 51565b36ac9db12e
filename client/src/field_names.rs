//! Maps the fields of requests to the flags that set them. The server reports
//! an invalid value by its field (`max_chars`); the user of a command knows it
//! by its flag (`--length`).

use crate::args::{Command, ModelsCommand, SessionsCommand, TrainingsCommand};

/// A field (the last segment of its path) and what sets it: a flag, a positional
/// argument by its value name, or a command of the REPL.
type Entry = (&'static str, &'static str);

/// Flags that choose characters.
const SAMPLING: &[Entry] = &[
    ("temperature", "--temperature"),
    ("top_k", "--top-k"),
    ("top_p", "--top-p"),
    ("min_p", "--min-p"),
    ("seed", "--seed"),
    ("greedy", "--greedy"),
];

/// Other flags of `generate`.
const GENERATE: &[Entry] = &[
    ("model", "--model"),
    ("prime", "--prime"),
    ("max_chars", "--length"),
    ("session_id", "--session"),
    ("stop", "--stop"),
    ("unknown", "--unknown"),
];

/// Flags of `bench`, which sets no other sampling.
const BENCH: &[Entry] = &[
    ("model", "--model"),
    ("prime", "--prime"),
    ("max_chars", "--length"),
    ("seed", "--seed"),
];

const SCORE: &[Entry] = &[
    ("model", "--model"),
    ("text_chunk", "--text"),
    ("unknown", "--unknown"),
];

/// Settings of the REPL, which has no flags for most of them.
const REPL: &[Entry] = &[
    ("model", "--model"),
    ("prime", "text"),
    ("max_chars", "/set length"),
    ("session_id", "--session"),
    ("new_session_id", "/fork"),
    ("temperature", "/set temperature"),
    ("top_k", "/set top_k"),
    ("top_p", "/set top_p"),
    ("min_p", "/set min_p"),
    ("seed", "/set seed"),
    ("greedy", "/set greedy"),
    ("unknown", "/set unknown"),
];

/// Flags of `train`; `run` has them too.
const TRAIN: &[Entry] = &[
    ("model", "--model"),
    ("corpus", "--text"),
    ("hidden_size", "--hidden-size"),
    ("num_layers", "--num-layers"),
    ("batch_size", "--batch-size"),
    ("sequence_length", "--sequence-length"),
    ("epochs", "--epochs"),
    ("dropout", "--dropout"),
    ("learning_rate", "--learning-rate"),
    ("clip_norm", "--clip-norm"),
    ("validation_fraction", "--validation-fraction"),
    ("seed", "--seed"),
    ("skip_chars", "--skip-chars"),
    ("recipe", "--recipe"),
    ("init_from", "--init-from"),
    ("cancel_on_disconnect", "--cancel-on-disconnect"),
    ("sample_prime", "--sample-prime"),
    ("sample_chars", "--sample-chars"),
    ("extend_vocabulary", "--extend-vocabulary"),
    ("precision", "--precision"),
    ("weight_decay", "--weight-decay"),
    ("locked_dropout", "--locked-dropout"),
    ("recurrent_dropout", "--recurrent-dropout"),
    ("input_dropout", "--input-dropout"),
    ("average_decay", "--average-decay"),
];

/// What `run` has in addition to the flags of `train`.
const RUN: &[Entry] = &[("max_chars", "--length")];

const TRAINING: &[Entry] = &[("training_id", "ID")];

const MODEL: &[Entry] = &[("model", "NAME"), ("force", "--force")];

const COPY_MODEL: &[Entry] = &[("model", "NAME"), ("name", "NEW")];

const IMPORT_MODEL: &[Entry] = &[
    ("name", "--model"),
    ("format", "--pth"),
    ("sha256", "--sha256"),
    ("vocabulary", "--vocabulary"),
    ("chunk", "FILE"),
];

const SESSION: &[Entry] = &[("session_id", "ID"), ("new_session_id", "NEW")];

const IMPORT_SESSION: &[Entry] = &[("session_id", "--session"), ("data", "FILE")];

/// Fields of requests that contain the fields above.
const PARENTS: [&str; 3] = ["sampling", "spec", "header"];

/// The names that one command has for the fields of its requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FieldNames(&'static [&'static [Entry]]);

impl FieldNames {
    /// The names of the contract: nothing is translated.
    pub(crate) const CONTRACT: Self = Self(&[]);

    /// The names that the REPL has.
    pub(crate) const REPL: Self = Self(&[REPL]);

    /// Returns the names that `command` has.
    pub(crate) fn of_command(command: &Command) -> Self {
        Self(match command {
            Command::Run(_) => &[TRAIN, RUN],
            Command::Train(_) => &[TRAIN],
            Command::Generate(_) => &[GENERATE, SAMPLING],
            Command::Repl(_) => &[REPL],
            Command::Score(_) => &[SCORE],
            Command::Bench(_) => &[BENCH],
            Command::Trainings { command } => match command {
                TrainingsCommand::List => &[],
                TrainingsCommand::Show { .. }
                | TrainingsCommand::Watch { .. }
                | TrainingsCommand::Cancel { .. }
                | TrainingsCommand::Delete { .. }
                | TrainingsCommand::Resume { .. } => &[TRAINING],
            },
            Command::Models { command } => match command {
                ModelsCommand::List => &[],
                ModelsCommand::Show { .. }
                | ModelsCommand::Delete { .. }
                | ModelsCommand::Export { .. } => &[MODEL],
                ModelsCommand::Copy(_) | ModelsCommand::Rename(_) => &[COPY_MODEL],
                ModelsCommand::Import(_) => &[IMPORT_MODEL],
            },
            Command::Rm(_) => &[MODEL],
            Command::Cp(_) | Command::Rename(_) => &[COPY_MODEL],
            Command::Sessions { command } => match command {
                SessionsCommand::List => &[],
                SessionsCommand::Show { .. }
                | SessionsCommand::Fork { .. }
                | SessionsCommand::Rename { .. }
                | SessionsCommand::Delete { .. }
                | SessionsCommand::Export { .. } => &[SESSION],
                SessionsCommand::Import { .. } => &[IMPORT_SESSION],
            },
            Command::Status | Command::Completions { .. } | Command::Ls | Command::Ps => &[],
        })
    }

    /// Returns the name of a field, which may be given by its path and with an
    /// index: `sampling.top_p`, `stop[2]`. A field that the command does not
    /// set keeps its own name.
    pub(crate) fn name(self, field: &str) -> &str {
        let last = field.rsplit('.').next().unwrap_or(field);
        let last = last.split('[').next().unwrap_or(last);
        self.find(last).unwrap_or(field)
    }

    /// Replaces the names of fields in a message of the server.
    ///
    /// A field whose name could be an English word is replaced only in
    /// backticks or in the phrase "set FIELD". Text in double quotes is what
    /// the user wrote and is not changed.
    pub(crate) fn translate(self, message: &str) -> String {
        let mut text = String::with_capacity(message.len());
        let mut in_quotes = false;
        let mut rest = message;
        while let Some(first) = rest.chars().next() {
            let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            // A full stop ends a sentence and does not belong to a name.
            let word = rest[..end].trim_end_matches('.');
            if word.is_empty() {
                if first == '"' && !text.ends_with('\\') {
                    in_quotes = !in_quotes;
                }
                text.push(first);
                rest = &rest[first.len_utf8()..];
                continue;
            }
            let is_marked = text.ends_with('`') || text.ends_with("set ");
            let is_field = !in_quotes && is_path(word) && (word.contains('_') || is_marked);
            text.push_str(if is_field { self.name(word) } else { word });
            rest = &rest[word.len()..];
        }
        text
    }

    fn find(self, field: &str) -> Option<&'static str> {
        let mut entries = self.0.iter().copied().flatten();
        entries
            .find(|(known, _)| *known == field)
            .map(|(_, name)| *name)
    }
}

/// Returns true if a word may be the path of a field; `my_model.seed` is not.
fn is_path(word: &str) -> bool {
    match word.rsplit_once('.') {
        Some((parent, _)) => PARENTS.contains(&parent),
        None => true,
    }
}

/// Returns true for a character of the path of a field.
fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::{CommandFactory, Parser};
    use prost_reflect::DescriptorPool;

    use super::*;
    use crate::args::CommandLine;

    /// Commands, as typed, and the protobuf messages whose fields they set.
    const COMMANDS: [(&str, &[&str]); 16] = [
        ("run", &["TrainingSpec"]),
        ("train --text - --model m", &["TrainingSpec"]),
        ("generate --prime p", &["GenerateRequest", "Sampling"]),
        ("repl", &["Sampling", "ForkSessionRequest"]),
        ("score --text -", &["ScoreStreamHeader"]),
        ("bench", &[]),
        ("trainings show t", &["GetTrainingRequest"]),
        ("trainings cancel t", &["CancelTrainingRequest"]),
        ("trainings resume t", &["ResumeTrainingRequest"]),
        ("models show m", &["GetModelRequest"]),
        ("models delete m", &["DeleteModelRequest"]),
        ("models copy m n", &["ExportModelRequest"]),
        ("models import f --model m", &["ImportModelHeader"]),
        ("sessions show s", &["GetSessionRequest"]),
        ("sessions fork s t", &["ForkSessionRequest"]),
        ("sessions import f", &["ImportSessionRequest"]),
    ];

    /// Fields that no flag sets: a message is set by its own fields, and the
    /// client chooses the rest by itself.
    const NOT_SET: [&str; 7] = [
        "sampling",
        "logprobs",
        "expected_position",
        "precision",
        "session_snapshot",
        "return_session",
        // For administrators, who use another client.
        "owner",
    ];

    fn names(typed: &str) -> FieldNames {
        let line = ["charlstm-client"].into_iter();
        let args = CommandLine::try_parse_from(line.chain(typed.split(' '))).unwrap();
        FieldNames::of_command(&args.command)
    }

    #[test]
    fn each_field_that_a_command_sets_has_a_name_on_its_command_line() {
        let pool = DescriptorPool::decode(charlstm_proto::FILE_DESCRIPTOR_SET).unwrap();
        for (typed, messages) in COMMANDS {
            for message in messages {
                let message = pool
                    .get_message_by_name(&format!("charlstm.v1.{message}"))
                    .unwrap();
                for field in message.fields() {
                    let known = names(typed).find(field.name()).is_some();
                    assert!(
                        known || NOT_SET.contains(&field.name()),
                        "{typed}: {} has no name",
                        field.full_name()
                    );
                }
            }
        }
    }

    #[test]
    fn each_flag_or_argument_that_a_field_is_mapped_to_exists() {
        for (typed, _) in COMMANDS {
            let mut command = CommandLine::command();
            command.build();
            let mut words = typed.split(' ');
            let mut command = command.find_subcommand(words.next().unwrap()).unwrap();
            if command.has_subcommands() {
                command = command.find_subcommand(words.next().unwrap()).unwrap();
            }
            let exists = |name: &str| match name.strip_prefix("--") {
                Some(flag) => command.get_arguments().any(|a| a.get_long() == Some(flag)),
                None => command.get_positionals().any(|a| {
                    let names = a.get_value_names().unwrap_or_default();
                    names.iter().any(|known| known.as_str() == name)
                }),
            };
            // One table serves several commands, so the flag that only one of
            // them has (`--force`, NEW) may be absent here.
            let optional = ["--force", "NEW"];
            for (field, name) in names(typed).0.iter().copied().flatten() {
                let in_repl = typed == "repl" && !name.starts_with("--");
                assert!(
                    in_repl || optional.contains(name) || exists(name),
                    "{typed} has no {name} for {field}"
                );
            }
        }
    }

    #[test]
    fn a_field_is_found_by_its_path_and_without_its_index() {
        let generate = names("generate --prime p");
        assert_eq!(generate.name("max_chars"), "--length");
        assert_eq!(generate.name("sampling.top_p"), "--top-p");
        assert_eq!(generate.name("stop[3]"), "--stop");
        assert_eq!(generate.name("expected_position"), "expected_position");
        assert_eq!(FieldNames::REPL.name("sampling.top_p"), "/set top_p");
        assert_eq!(FieldNames::CONTRACT.name("max_chars"), "max_chars");
    }

    #[test]
    fn fields_inside_a_message_are_translated_but_not_words_or_quotes() {
        let train = names("train --text - --model m");
        assert_eq!(
            train.translate("the model lacks 'é'; extend_vocabulary adds it."),
            "the model lacks 'é'; --extend-vocabulary adds it."
        );
        assert_eq!(
            train.translate("needs `init_from`, not \"init_from\", before `seed` is used"),
            "needs `--init-from`, not \"init_from\", before `--seed` is used"
        );
        assert_eq!(
            train.translate("spec.clip_norm is 0; the model my_model.seed is missing"),
            "--clip-norm is 0; the model my_model.seed is missing"
        );
        let delete = names("models delete m");
        assert_eq!(
            delete.translate("model m@1 is in use; set force to delete it by force"),
            "model m@1 is in use; set --force to delete it by force"
        );
    }
}
