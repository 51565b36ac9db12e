//! The name of a session.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// Longest name. Long enough for two UUIDs and a prefix, and short enough
/// that the names of 100,000 sessions weigh little beside their states.
pub const MAX_ID_CHARS: usize = 128;

/// A checked session name: 1 to 128 of `[a-z A-Z 0-9 . _ : -]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Arc<str>);

/// A name that no session can have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SessionIdError {
    /// It is empty or too long.
    #[error("must have 1 to {MAX_ID_CHARS} characters, not {0}")]
    Length(usize),
    /// It holds a character that names must not have.
    #[error("must be made of [a-z A-Z 0-9 . _ : -]; {0:?} is not one of them")]
    Character(char),
}

impl SessionId {
    /// Checks a name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(name: &str) -> Result<Self, SessionIdError> {
        let chars = name.chars().count();
        if chars == 0 || chars > MAX_ID_CHARS {
            return Err(SessionIdError::Length(chars));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || ".:_-".contains(c);
        match name.chars().find(|&c| !allowed(c)) {
            Some(character) => Err(SessionIdError::Character(character)),
            None => Ok(Self(name.into())),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_outside_the_limits_are_refused_with_what_is_wrong() {
        assert!(SessionId::new("Chat:7_a.b-c").is_ok());
        assert_eq!(SessionId::new(""), Err(SessionIdError::Length(0)));
        assert!(SessionId::new(&"x".repeat(128)).is_ok());
        assert_eq!(
            SessionId::new(&"x".repeat(129)),
            Err(SessionIdError::Length(129))
        );
        assert_eq!(SessionId::new("a b"), Err(SessionIdError::Character(' ')));
        assert_eq!(SessionId::new("é"), Err(SessionIdError::Character('é')));
    }
}
