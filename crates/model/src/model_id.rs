//! The identity of a model version.

use std::fmt;

use thiserror::Error;

/// Maximum number of characters of a model's name.
pub const MAX_NAME_CHARS: usize = 64;

/// A text cannot be the name of a model. The message shows its first
/// characters only: it may come from anyone.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "invalid model name {shown:?}: use 1 to {MAX_NAME_CHARS} letters a-z A-Z, digits, '.', '_' \
     and '-', beginning with a letter or a digit"
)]
pub struct InvalidModelName {
    shown: String,
}

/// Checks a name of a model. A name that passes is safe as the name of a
/// folder.
///
/// # Errors
/// [`InvalidModelName`] if it is empty, longer than [`MAX_NAME_CHARS`], begins
/// with something other than an ASCII letter or digit, or has a character
/// other than those and `.`, `_`, `-`.
pub fn check_name(name: &str) -> Result<(), InvalidModelName> {
    let bytes = name.as_bytes();
    let valid = bytes.len() <= MAX_NAME_CHARS
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte));
    if valid {
        return Ok(());
    }
    Err(InvalidModelName {
        shown: shortened(name),
    })
}

/// Returns the first [`MAX_NAME_CHARS`] characters of a text from outside, for
/// a message.
pub fn shortened(text: &str) -> String {
    let mut start: String = text.chars().take(MAX_NAME_CHARS).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    start
}

/// One version of a model.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId {
    /// Its name.
    pub name: String,
    /// Its version, from 1.
    pub version: u64,
}

impl fmt::Display for ModelId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}", self.name, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_paths_are_rejected() {
        for name in [
            "", ".", "..", ".hidden", "-x", "a/b", "a\\b", "a b", "é", "a\0", "a@1", "_a",
        ] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name(&"a".repeat(65)).is_err());
    }

    #[test]
    fn names_of_letters_digits_dots_and_dashes_are_accepted() {
        for name in ["a", "7", "nietzsche", "a..b", "A-1_2.x", &"a".repeat(64)] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn a_long_invalid_name_is_shortened_in_the_message() {
        let error = check_name(&"é".repeat(5000)).expect_err("not ASCII");
        assert!(error.to_string().chars().count() < 300, "{error}");
    }
}
