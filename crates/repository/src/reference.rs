//! References to models: a name, with or without a version.

use charlstm_model::model_id::check_name;

use super::RepositoryError;

/// `name`, `name@latest` or `name@version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reference<'a> {
    pub(super) name: &'a str,
    pub(super) version: Version,
}

/// A version of a name.
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
                let number =
                    version_number(number).ok_or_else(|| RepositoryError::bad_reference(text))?;
                (name, Version::Number(number))
            }
        };
        check_name(name)?;
        Ok(Self { name, version })
    }
}

/// Reads a version number: digits without leading zeros, from 1.
pub(super) fn version_number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number > 0 && number.to_string() == text).then_some(number)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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

    #[test]
    fn a_long_reference_is_shortened_in_the_message() {
        let text = format!("a@{}", "x".repeat(1_000_000));
        let error = Reference::parse(&text).unwrap_err();
        assert!(error.to_string().len() < 300);
    }
}
