//! Names of sessions and of the principals that own them.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Maximum length of a session id and of an owner's name, in characters: two
/// UUIDs and a prefix, and short enough that a million names take less memory
/// than the index around them.
pub const MAX_NAME_CHARS: usize = 128;

/// A name that breaks the rules for session ids or owners.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// It is empty or too long.
    #[error("must have 1 to {MAX_NAME_CHARS} characters, not {0}")]
    Length(usize),
    /// It contains a character that names must not contain.
    #[error("must consist of {allowed}; {character:?} is not allowed")]
    Character {
        /// The first character that is not allowed.
        character: char,
        /// What is allowed, as text.
        allowed: &'static str,
    },
}

/// A valid session id: 1 to 128 of `[A-Za-z0-9._:-]`. Unique per owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Arc<str>);

/// The principal that a session belongs to: 1 to 128 printable ASCII
/// characters without spaces.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Owner(Arc<str>);

impl SessionId {
    /// Checks an id.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn new(id: &str) -> Result<Self, NameError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
        check(id, allowed, "A-Z, a-z, 0-9, '.', '_', ':' and '-'")?;
        Ok(Self(id.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Owner {
    /// The name of the owner of everything that is created without
    /// principals, or with an administrator's token.
    pub const ADMIN: &'static str = "admin";

    /// Checks a principal's name.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let allowed = |c: char| c.is_ascii_graphic();
        check(name, allowed, "printable ASCII characters without spaces")?;
        Ok(Self(name.into()))
    }

    /// The owner of everything that is created without principals, or with an
    /// administrator's token.
    pub fn admin() -> Self {
        Self(Self::ADMIN.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Owner {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        Self::new(&name)
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> Self {
        owner.as_str().to_owned()
    }
}

fn check(
    name: &str,
    allowed: impl Fn(char) -> bool,
    description: &'static str,
) -> Result<(), NameError> {
    let chars = name.chars().count();
    if chars == 0 || chars > MAX_NAME_CHARS {
        return Err(NameError::Length(chars));
    }
    match name.chars().find(|&c| !allowed(c)) {
        Some(character) => Err(NameError::Character {
            character,
            allowed: description,
        }),
        None => Ok(()),
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The key of a session: two owners may use the same id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey {
    /// The principal that the session belongs to.
    pub owner: Owner,
    /// The id that the client chose.
    pub id: SessionId,
}

impl SessionKey {
    /// The key of a session.
    pub fn new(owner: Owner, id: SessionId) -> Self {
        Self { owner, id }
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_outside_the_limits_are_rejected_with_the_rule_they_break() {
        assert!(SessionId::new("Chat:7_a.b-c").is_ok());
        assert_eq!(SessionId::new(""), Err(NameError::Length(0)));
        assert!(SessionId::new(&"x".repeat(128)).is_ok());
        let long = "x".repeat(129);
        assert_eq!(SessionId::new(&long), Err(NameError::Length(129)));
        for (id, bad) in [("a b", ' '), ("é", 'é'), ("a/b", '/')] {
            let error = SessionId::new(id).expect_err(id);
            assert!(matches!(error, NameError::Character { character, .. } if character == bad));
        }
        assert!(Owner::new("team-a/alice@example.org").is_ok());
        assert!(Owner::new("a b").is_err());
    }
}
