//! Names of models, and references to them. A name that passes here is safe
//! as the name of a folder.

use super::RepositoryError;

/// Most characters of a name.
const MAX_NAME_CHARS: usize = 64;

/// Checks a name: 1 to 64 of `[A-Za-z0-9._-]`, beginning with a letter or a
/// digit.
///
/// # Errors
/// [`RepositoryError::BadName`].
pub fn check_name(name: &str) -> Result<(), RepositoryError> {
    let bytes = name.as_bytes();
    let sound = bytes.len() <= MAX_NAME_CHARS
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte));
    if sound {
        Ok(())
    } else {
        Err(RepositoryError::BadName(name.to_owned()))
    }
}

/// `name`, `name@latest` or `name@version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reference<'a> {
    pub(super) name: &'a str,
    pub(super) version: Version,
}

/// Which version of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Latest,
    Number(u64),
}

impl<'a> Reference<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, RepositoryError> {
        let (name, version) = match text.split_once('@') {
            None => (text, Version::Latest),
            Some((name, "latest")) => (name, Version::Latest),
            Some((name, number)) => {
                let number = version_number(number)
                    .ok_or_else(|| RepositoryError::BadReference(text.to_owned()))?;
                (name, Version::Number(number))
            }
        };
        check_name(name)?;
        Ok(Self { name, version })
    }
}

/// A version as it is written: digits without leading zeros, from 1.
pub(super) fn version_number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number > 0 && number.to_string() == text).then_some(number)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_paths_are_refused() {
        for name in [
            "", ".", "..", ".hidden", "-x", "a/b", "a\\b", "a b", "é", "a\0", "a@1", "_a",
        ] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name(&"a".repeat(65)).is_err());
    }

    #[test]
    fn names_of_letters_digits_dots_and_dashes_are_taken() {
        for name in ["a", "7", "nietzsche", "a..b", "A-1_2.x", &"a".repeat(64)] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn a_reference_is_a_name_with_or_without_a_version() {
        let version = |text| Reference::parse(text).unwrap().version;
        assert_eq!(version("a"), Version::Latest);
        assert_eq!(version("a@latest"), Version::Latest);
        assert_eq!(version("a@12"), Version::Number(12));
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
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }
}
