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
    /// How often each character occurs, in the order of `characters`.
    counts: Vec<u64>,
}

impl Numbering {
    /// Creates a numbering without characters.
    pub(super) fn new() -> Self {
        Self {
            ascii: [None; 128],
            others: HashMap::new(),
            characters: Vec::new(),
            counts: Vec::new(),
        }
    }

    /// Counts an occurrence of a character at `position`, and returns its
    /// provisional id.
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
            self.counts[usize::from(id)] += 1;
            return Ok(id);
        }
        let id = u16::try_from(self.characters.len()).map_err(|_| CorpusError::TooManyDistinct)?;
        self.characters.push((character, position));
        self.counts.push(1);
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

    /// Returns the character that occurs most often; the first one, if there
    /// are several. `None` if there are no characters.
    pub(super) fn most_frequent(&self) -> Option<char> {
        let counted = self.characters.iter().zip(&self.counts).rev();
        let most_frequent = counted.max_by_key(|(_, count)| **count);
        most_frequent.map(|((character, _), _)| *character)
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
