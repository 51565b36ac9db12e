//! Model names, the identity of a model version, and references to models.

use std::fmt;

use thiserror::Error;

/// Maximum length of a model name. All characters are ASCII, so that a name of
/// this length is valid as a folder name in every file system.
pub const MAX_NAME_CHARS: usize = 64;

/// A version of a model. Displayed as `name@version`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId {
    /// Name of the model.
    pub name: String,
    /// Version, from 1.
    pub version: u64,
}

impl fmt::Display for ModelId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}", self.name, self.version)
    }
}

/// A text is not a valid model name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "invalid model name {shown:?}: use 1 to {MAX_NAME_CHARS} letters (a-z, A-Z), digits, '.', '_' \
     and '-', starting with a letter or a digit"
)]
pub struct InvalidModelName {
    /// The beginning of the text.
    shown: String,
}

/// Checks a model name: 1 to [`MAX_NAME_CHARS`] of `[A-Za-z0-9._-]`, starting
/// with a letter or a digit. A valid name is safe as the name of a folder.
///
/// # Errors
/// The name is invalid.
pub fn check_name(name: &str) -> Result<(), InvalidModelName> {
    let bytes = name.as_bytes();
    let valid = bytes.len() <= MAX_NAME_CHARS
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte));
    if valid {
        Ok(())
    } else {
        Err(InvalidModelName {
            shown: shortened(name),
        })
    }
}

/// Parses a version as it is written: a decimal number from 1 without leading
/// zeros. Returns `None` for any other text.
pub fn parse_version(text: &str) -> Option<u64> {
    let version: u64 = text.parse().ok()?;
    (version > 0 && version.to_string() == text).then_some(version)
}

/// A reference to a model: `name`, `name@latest` or `name@version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelReference<'a> {
    /// Name of the model.
    pub name: &'a str,
    /// The version.
    pub version: VersionReference,
}

/// The version in a reference to a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionReference {
    /// The latest version. A reference without a version means this too.
    Latest,
    /// A specific version, from 1.
    Version(u64),
}

/// A text is not a valid reference to a model.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidModelReference {
    /// The name is invalid.
    #[error(transparent)]
    Name(#[from] InvalidModelName),
    /// The part after `@` is not a version.
    #[error(
        "invalid model {shown:?}: use NAME, NAME@latest or NAME@VERSION, where VERSION is a number \
         from 1"
    )]
    Version {
        /// The beginning of the text.
        shown: String,
    },
}

impl<'a> ModelReference<'a> {
    /// Parses a reference.
    ///
    /// # Errors
    /// The name or the version is invalid.
    pub fn parse(text: &'a str) -> Result<Self, InvalidModelReference> {
        let (name, version) = match text.split_once('@') {
            None => (text, VersionReference::Latest),
            Some((name, "latest")) => (name, VersionReference::Latest),
            Some((name, version)) => {
                let version =
                    parse_version(version).ok_or_else(|| InvalidModelReference::Version {
                        shown: shortened(text),
                    })?;
                (name, VersionReference::Version(version))
            }
        };
        check_name(name)?;
        Ok(Self { name, version })
    }
}

/// Returns a text as an error should show it: shortened to [`MAX_NAME_CHARS`] if
/// it is longer.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_NAME_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
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
    fn a_reference_is_a_name_with_or_without_a_version() {
        let version = |text| ModelReference::parse(text).unwrap().version;
        assert_eq!(version("a"), VersionReference::Latest);
        assert_eq!(version("a@latest"), VersionReference::Latest);
        assert_eq!(version("a@12"), VersionReference::Version(12));
        for text in [
            "a@",
            "a@0",
            "a@01",
            "a@-1",
            "a@x",
            "a@1@2",
            "@1",
            "a@latest@latest",
        ] {
            assert!(ModelReference::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn errors_say_what_is_valid_and_show_only_the_beginning_of_a_long_text() {
        assert_eq!(
            check_name("x/y").unwrap_err().to_string(),
            "invalid model name \"x/y\": use 1 to 64 letters (a-z, A-Z), digits, '.', '_' and \
             '-', starting with a letter or a digit"
        );
        assert_eq!(
            ModelReference::parse("a@b").unwrap_err().to_string(),
            "invalid model \"a@b\": use NAME, NAME@latest or NAME@VERSION, where VERSION is a \
             number from 1"
        );
        let long = "é".repeat(100_000);
        assert!(check_name(&long).unwrap_err().to_string().len() < 400);
        let long = format!("a@{long}");
        assert!(ModelReference::parse(&long).unwrap_err().to_string().len() < 400);
    }
}
