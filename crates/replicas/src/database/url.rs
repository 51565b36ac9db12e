//! The URL of a database.

use std::fmt;
use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;
use url::Url;

use super::DatabaseError;

/// Parameters of a URL that hold secrets.
const SECRET_PARAMETERS: [&str; 2] = ["password", "sslpassword"];

/// Where a database is, and with which user and password. The password is
/// masked wherever the URL is printed.
#[derive(Clone)]
pub struct DatabaseUrl {
    options: PgConnectOptions,
    masked: String,
}

impl DatabaseUrl {
    pub(super) fn options(&self) -> &PgConnectOptions {
        &self.options
    }
}

impl FromStr for DatabaseUrl {
    type Err = DatabaseError;

    fn from_str(text: &str) -> Result<Self, DatabaseError> {
        // The text itself is never part of an error: it may hold a password.
        let mut url = Url::parse(text).map_err(|error| DatabaseError::Url(error.to_string()))?;
        if !["postgres", "postgresql"].contains(&url.scheme()) {
            let scheme = url.scheme();
            return Err(DatabaseError::Url(format!(
                "{scheme}:// is not supported, only postgres://"
            )));
        }
        let options = PgConnectOptions::from_str(text)
            .map_err(|_| DatabaseError::Url("a parameter cannot be read".to_owned()))?;
        if url.password().is_some() {
            // Fails only for URLs that cannot have one.
            let _ = url.set_password(Some("***"));
        }
        let parameters: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        if !parameters.is_empty() {
            let masked = parameters.iter().map(|(name, value)| {
                let is_secret = SECRET_PARAMETERS.contains(&&**name);
                (name, if is_secret { "***" } else { value })
            });
            url.query_pairs_mut().clear().extend_pairs(masked);
        }
        Ok(Self {
            options,
            masked: url.into(),
        })
    }
}

/// Passwords are not compared.
impl PartialEq for DatabaseUrl {
    fn eq(&self, other: &Self) -> bool {
        self.masked == other.masked
    }
}

impl Eq for DatabaseUrl {}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({})", self.masked)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_printed() {
        let texts = [
            "postgres://me:secret@db:5432/charlstm",
            "postgresql://me@db/charlstm?password=secret&sslmode=require",
        ];
        for text in texts {
            let url: DatabaseUrl = text.parse().unwrap();
            for printed in [url.to_string(), format!("{url:?}")] {
                assert!(!printed.contains("secret"), "{printed}");
                assert!(printed.contains("me"), "{printed}");
            }
        }
        for text in [
            "me:secret@db",
            "mysql://me:secret@db/x",
            "postgres://me:secret@db:x/",
        ] {
            let error = text.parse::<DatabaseUrl>().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
