//! Characters and their numbers. A character is a Unicode scalar value.

use std::collections::HashMap;

use thiserror::Error;

/// The characters that a model knows, sorted by code point; a character's
/// number is its place in that order, as `sorted(set(text))` gives it in
/// Python.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    characters: Vec<char>,
    numbers: HashMap<char, u32>,
}

/// A text holds a character that the model never saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "character {character:?} (U+{:04X}) at position {position} is not in the model's vocabulary",
    u32::from(*.character)
)]
pub struct UnknownCharacter {
    /// The character.
    pub character: char,
    /// How many characters of the text come before it.
    pub position: usize,
}

impl Vocabulary {
    /// The distinct characters of a text, sorted.
    pub fn of(text: impl IntoIterator<Item = char>) -> Self {
        let distinct: std::collections::BTreeSet<char> = text.into_iter().collect();
        Self::from_chars(distinct.into_iter().collect())
    }

    /// Characters in the order of their numbers, as a stored model has them.
    /// Of a character that stands twice, the later place counts.
    pub fn from_chars(characters: Vec<char>) -> Self {
        let numbers = (0u32..).zip(&characters).map(|(n, &c)| (c, n)).collect();
        Self {
            characters,
            numbers,
        }
    }

    /// Number of characters.
    pub fn len(&self) -> usize {
        self.characters.len()
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.characters.is_empty()
    }

    /// The characters in the order of their numbers.
    pub fn characters(&self) -> &[char] {
        &self.characters
    }

    /// The number of a character.
    pub fn number(&self, character: char) -> Option<u32> {
        self.numbers.get(&character).copied()
    }

    /// The character of a number.
    ///
    /// # Panics
    /// Where the number is not under [`Self::len`].
    pub fn character(&self, number: u32) -> char {
        self.characters[number as usize]
    }

    /// The numbers of a text.
    ///
    /// # Errors
    /// The first character that is not in the vocabulary.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, UnknownCharacter> {
        text.chars()
            .enumerate()
            .map(|(position, character)| {
                self.number(character).ok_or(UnknownCharacter {
                    character,
                    position,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_numbered_in_the_order_of_their_code_points() {
        let vocabulary = Vocabulary::of("żabba a\n".chars());
        assert_eq!(vocabulary.characters(), ['\n', ' ', 'a', 'b', 'ż']);
        assert_eq!(vocabulary.encode("aż"), Ok(vec![2, 4]));
    }

    #[test]
    fn an_unknown_character_is_named_with_its_code_point_and_position() {
        let vocabulary = Vocabulary::of("abc".chars());
        let error = vocabulary.encode("abéc").expect_err("é is not known");
        assert_eq!(
            error.to_string(),
            "character 'é' (U+00E9) at position 2 is not in the model's vocabulary"
        );
    }
}
