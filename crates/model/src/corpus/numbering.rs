//! Provisional numbers of characters, while it is not yet known which there
//! will be.

use std::collections::HashMap;

use super::CorpusError;
use crate::vocabulary::Vocabulary;

/// Numbers characters by their first appearance.
#[derive(Debug)]
pub(super) struct Numbering {
    /// Most texts are mostly ASCII: a look-up in place of a hash.
    ascii: [Option<u16>; 128],
    others: HashMap<char, u16>,
    /// Each with the place of its first appearance.
    characters: Vec<(char, usize)>,
}

impl Numbering {
    pub(super) fn new() -> Self {
        Self {
            ascii: [None; 128],
            others: HashMap::new(),
            characters: Vec::new(),
        }
    }

    /// The number of a character that stands at `position`.
    pub(super) fn number(&mut self, character: char, position: usize) -> Result<u16, CorpusError> {
        let known = if character.is_ascii() {
            self.ascii[character as usize]
        } else {
            self.others.get(&character).copied()
        };
        if let Some(number) = known {
            return Ok(number);
        }
        let number =
            u16::try_from(self.characters.len()).map_err(|_| CorpusError::TooManyDistinct)?;
        self.characters.push((character, position));
        if character.is_ascii() {
            self.ascii[character as usize] = Some(number);
        } else {
            self.others.insert(character, number);
        }
        Ok(number)
    }

    /// The characters in the order of their numbers, each with the place of
    /// its first appearance.
    pub(super) fn characters(&self) -> &[(char, usize)] {
        &self.characters
    }

    /// The characters, sorted.
    pub(super) fn vocabulary(&self) -> Vocabulary {
        Vocabulary::of(self.characters.iter().map(|&(character, _)| character))
    }

    /// For each provisional number its number in a vocabulary that has all of
    /// the characters.
    pub(super) fn numbers_in(&self, vocabulary: &Vocabulary) -> Vec<u16> {
        let number = |&(character, _): &(char, usize)| {
            let number = vocabulary.number(character);
            number
                .and_then(|number| u16::try_from(number).ok())
                .expect("the vocabulary covers the corpus and has at most 65536 characters")
        };
        self.characters.iter().map(number).collect()
    }
}
