//! Finds the characters of the network in a checkpoint: under the names that
//! notebooks give them, as a text, a list or a dict.

use super::TorchCheckpointError;
use super::pickle::{Node, NodeId, Pickle};
use crate::model_file::shortened;
use crate::vocabulary::Vocabulary;

/// Entries that may have the characters; `tokens` is the notebook's.
const NAMES: [&str; 16] = [
    "tokens",
    "chars",
    "characters",
    "vocab",
    "vocabulary",
    "alphabet",
    "int2char",
    "idx2char",
    "ix_to_char",
    "itos",
    "id2char",
    "char2int",
    "char2idx",
    "char_to_ix",
    "stoi",
    "char2id",
];

/// Returns the characters in the order of their token ids, from the first of
/// the dicts that has them.
///
/// # Errors
/// There is an entry for them that is not understood, and no other.
pub(super) fn saved_vocabulary(
    pickle: &Pickle,
    dicts: &[&Node],
) -> Result<Option<Vocabulary>, TorchCheckpointError> {
    let mut first_error = None;
    for dict in dicts {
        for name in NAMES {
            let Some(entry) = pickle.entry(dict, name) else {
                continue;
            };
            match characters(pickle, entry) {
                Ok(characters) => return Ok(Some(Vocabulary::from_chars(characters))),
                Err(reason) => {
                    first_error.get_or_insert(TorchCheckpointError::Characters { name, reason });
                }
            }
        }
    }
    first_error.map_or(Ok(None), Err)
}

/// Reads an entry: a text, a list of characters, or a dict from ids to
/// characters or back.
fn characters(pickle: &Pickle, entry: &Node) -> Result<Vec<char>, String> {
    match entry {
        Node::Text(text) => Ok(text.chars().collect()),
        Node::Sequence(items) => items.iter().map(|&item| character(pickle, item)).collect(),
        Node::Dict(entries) => {
            let mut numbered = Vec::with_capacity(entries.len());
            for &(key, value) in entries {
                let (id, item) = match (pickle.node(key), pickle.node(value)) {
                    (Node::Int(id), Node::Text(_)) => (*id, value),
                    (Node::Text(_), Node::Int(id)) => (*id, key),
                    _ => return Err("is a dict, but not of characters and numbers".to_owned()),
                };
                numbered.push((id, character(pickle, item)?));
            }
            numbered.sort_unstable();
            let is_complete = (0i128..)
                .zip(&numbered)
                .all(|(id, (actual, _))| id == *actual);
            if !is_complete {
                return Err("does not number its characters from 0".to_owned());
            }
            Ok(numbered
                .into_iter()
                .map(|(_, character)| character)
                .collect())
        }
        _ => Err("is neither a text, a list nor a dict".to_owned()),
    }
}

/// Returns the character that a text consists of.
fn character(pickle: &Pickle, item: NodeId) -> Result<char, String> {
    let Node::Text(text) = pickle.node(item) else {
        return Err("has an item that is not text".to_owned());
    };
    let mut characters = text.chars();
    match (characters.next(), characters.next()) {
        (Some(character), None) => Ok(character),
        _ => Err(format!(
            "has {:?}, which is not one character",
            shortened(text)
        )),
    }
}
