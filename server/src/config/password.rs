//! Passwords in the values of settings, which are never printed.

use charlstm_replicas::database::DatabaseUrl;

/// Returns the text without the password that it may contain.
pub(super) fn without_password(value: &str) -> String {
    let masked = || {
        let (scheme, rest) = value.split_once("://")?;
        let (credentials, host) = rest.rsplit_once('@')?;
        let (user, _) = credentials.split_once(':')?;
        Some(format!("{scheme}://{user}:***@{host}"))
    };
    match value.parse::<DatabaseUrl>() {
        Ok(url) => url.to_string(),
        Err(_) => masked().unwrap_or_else(|| value.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_a_url_is_masked() {
        for (value, expected) in [
            ("postgres://u:secret@host/db", "postgres://u:***@host/db"),
            ("http://u:p@ss@host", "http://u:***@host"),
            ("http://host:80/a", "http://host:80/a"),
            ("plain:text@host", "plain:text@host"),
            (
                "postgres://host/db?password=secret",
                "postgres://host/db?password=***",
            ),
        ] {
            assert_eq!(without_password(value), expected);
        }
    }
}
