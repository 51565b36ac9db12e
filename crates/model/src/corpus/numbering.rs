//! Provisional token ids of a corpus, while its vocabulary is not known yet.

use std::collections::HashMap;

use super::CorpusError;
use crate::vocabulary::Vocabulary;

/// Numbers characters in the order of their first occurrence.
#[derive(Debug)]
pub(super) struct Numbering {
    /// Most characters of most texts are ASCII: an array is faster than a hash
    /// table.
    ascii: [Option<u16>; 128],
    others: HashMap<char, u16>,
    /// Each character with the position of its first occurrence.
    characters: Vec<(char, usize)>,
}

impl Numbering {
    /// Creates a numbering without characters.
    pub(super) fn new() -> Self {
        Self {
            ascii: [None; 128],
            others: HashMap::new(),
            characters: Vec::new(),
        }
    }

    /// Returns the provisional id of a character that occurs at `position`.
    ///
    /// # Errors
    /// There are more distinct characters than ids.
    pub(super) fn provisional_id(
        &mut self,
        character: char,
        position: usize,
    ) -> Result<u16, CorpusError> {
        let known = if character.is_ascii() {
            self.ascii[character as usize]
        } else {
            self.others.get(&character).copied()
        };
        if let Some(id) = known {
            return Ok(id);
        }
        let id = u16::try_from(self.characters.len()).map_err(|_| CorpusError::TooManyDistinct)?;
        self.characters.push((character, position));
        if character.is_ascii() {
            self.ascii[character as usize] = Some(id);
        } else {
            self.others.insert(character, id);
        }
        Ok(id)
    }

    /// Returns the characters in the order of their provisional ids, each with
    /// the position of its first occurrence.
    pub(super) fn characters(&self) -> &[(char, usize)] {
        &self.characters
    }

    /// Returns the vocabulary: the characters sorted by code point.
    pub(super) fn vocabulary(&self) -> Vocabulary {
        Vocabulary::of(self.characters.iter().map(|&(character, _)| character))
    }

    /// Returns for each provisional id the token id in a vocabulary.
    ///
    /// # Panics
    /// If the vocabulary lacks a character, or has more than 65,536.
    pub(super) fn token_ids_in(&self, vocabulary: &Vocabulary) -> Vec<u16> {
        let token_id = |&(character, _): &(char, usize)| {
            let token_id = vocabulary.token_id(character);
            token_id
                .and_then(|token_id| u16::try_from(token_id).ok())
                .expect("the vocabulary covers the corpus and has at most 65536 characters")
        };
        self.characters.iter().map(token_id).collect()
    }
}
