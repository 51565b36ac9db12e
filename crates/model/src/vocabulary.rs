//! The characters of a model and their token ids. A character is a Unicode
//! scalar value.

use std::collections::HashMap;

use thiserror::Error;

/// The characters that a model knows. The token id of a character is its index;
/// in a stored model, the characters are sorted by code point, as Python's
/// `sorted(set(text))` sorts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    characters: Vec<char>,
    token_ids: HashMap<char, u32>,
}

/// A text has a character that is not in the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "character {character:?} (U+{:04X}) at position {position} is not in the model's vocabulary",
    u32::from(*.character)
)]
pub struct UnknownCharacter {
    /// The character.
    pub character: char,
    /// Number of characters before it in the text.
    pub position: usize,
}

impl Vocabulary {
    /// Creates the vocabulary of a text: its distinct characters, sorted by
    /// code point.
    pub fn of(text: impl IntoIterator<Item = char>) -> Self {
        let distinct: std::collections::BTreeSet<char> = text.into_iter().collect();
        Self::from_chars(distinct.into_iter().collect())
    }

    /// Creates a vocabulary from characters in the order of their token ids. If
    /// a character occurs twice, it is encoded as the later of its token ids.
    pub fn from_chars(characters: Vec<char>) -> Self {
        let token_ids = (0u32..).zip(&characters).map(|(id, &c)| (c, id)).collect();
        Self {
            characters,
            token_ids,
        }
    }

    /// Returns the number of token ids.
    pub fn len(&self) -> usize {
        self.characters.len()
    }

    /// Returns whether there are no characters.
    pub fn is_empty(&self) -> bool {
        self.characters.is_empty()
    }

    /// Returns the characters in the order of their token ids.
    pub fn characters(&self) -> &[char] {
        &self.characters
    }

    /// Returns the token id of a character, or `None` if it is not in the
    /// vocabulary.
    pub fn token_id(&self, character: char) -> Option<u32> {
        self.token_ids.get(&character).copied()
    }

    /// Returns the character of a token id.
    ///
    /// # Panics
    /// If `token_id` is not less than [`Self::len`].
    pub fn character(&self, token_id: u32) -> char {
        self.characters[token_id as usize]
    }

    /// Returns the token ids of a text.
    ///
    /// # Errors
    /// The first character that is not in the vocabulary.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, UnknownCharacter> {
        text.chars()
            .enumerate()
            .map(|(position, character)| {
                self.token_id(character).ok_or(UnknownCharacter {
                    character,
                    position,
                })
            })
            .collect()
    }

    /// Removes the characters of a text that are not in the vocabulary, or
    /// replaces each by `replacement`. Returns the new text and how many
    /// characters were unknown.
    pub fn replace_unknown(&self, text: &str, replacement: Option<char>) -> (String, u64) {
        let mut unknown = 0;
        let known = text.chars().filter_map(|character| {
            if self.token_id(character).is_some() {
                return Some(character);
            }
            unknown += 1;
            replacement
        });
        let known = known.collect();
        (known, unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_ids_follow_the_order_of_code_points() {
        let vocabulary = Vocabulary::of("żabba a\n".chars());
        assert_eq!(vocabulary.characters(), ['\n', ' ', 'a', 'b', 'ż']);
        assert_eq!(vocabulary.encode("aż"), Ok(vec![2, 4]));
    }

    #[test]
    fn unknown_characters_are_removed_or_replaced_and_counted() {
        let vocabulary = Vocabulary::of("abc".chars());
        let replaced = |replacement| vocabulary.replace_unknown("éaZbc", replacement);
        assert_eq!(replaced(None), ("abc".to_owned(), 2));
        assert_eq!(replaced(Some('c')), ("cacbc".to_owned(), 2));
    }

    #[test]
    fn an_unknown_character_is_reported_with_its_code_point_and_position() {
        let vocabulary = Vocabulary::of("abc".chars());
        let error = vocabulary.encode("abéc").expect_err("é is not known");
        assert_eq!(
            error.to_string(),
            "character 'é' (U+00E9) at position 2 is not in the model's vocabulary"
        );
    }
}
