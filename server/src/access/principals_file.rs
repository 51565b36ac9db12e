//! The file of `--principals`.
//!
//! ```toml
//! [[principal]]
//! name = "alice"
//! token_sha256 = "9f86d08..."
//! roles = ["generate", "train"]
//! max_streams = 8
//! ```

use std::collections::{HashMap, HashSet};

use charlstm_store::session::Owner;
use serde::Deserialize;

use super::token::TokenDigest;
use crate::rpc::principal::{Quotas, Role, Roles};

/// Minimum of `chars_per_minute`: one character per second, so that a slow
/// generation stays well below the timeout of its reader.
const MIN_CHARS_PER_MINUTE: u64 = 60;

/// A valid entry of the file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Owner,
    pub(super) tokens: Vec<TokenDigest>,
    /// Subject alternative names.
    pub(super) certificates: Vec<String>,
    pub(super) roles: Roles,
    pub(super) quotas: Quotas,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    principal: Vec<RawEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    name: String,
    token_sha256: Option<OneOrMany>,
    certificate: Option<OneOrMany>,
    roles: Vec<Role>,
    max_streams: Option<u64>,
    chars_per_minute: Option<u64>,
    max_sessions: Option<u64>,
    max_trainings: Option<u64>,
    max_corpus_bytes: Option<u64>,
}

/// A text or a list of texts.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn list(value: Option<Self>) -> Vec<String> {
        match value {
            None => Vec::new(),
            Some(Self::One(text)) => vec![text],
            Some(Self::Many(texts)) => texts,
        }
    }
}

/// Reads the entries.
///
/// # Errors
/// What is wrong, for the operator. It quotes no digest.
pub(super) fn parse(text: &str) -> Result<Vec<Entry>, String> {
    let file: RawFile = toml::from_str(text).map_err(|error| located(text, &error))?;
    if file.principal.is_empty() {
        return Err("contains no [[principal]]".to_owned());
    }
    let entries = file.principal.into_iter().map(entry);
    let entries = entries.collect::<Result<Vec<_>, _>>()?;
    check_unique(&entries)?;
    Ok(entries)
}

fn entry(raw: RawEntry) -> Result<Entry, String> {
    let name = Owner::new(&raw.name).map_err(|error| format!("name {:?}: {error}", raw.name))?;
    let invalid = |reason: &str| format!("principal {name}: {reason}");
    let tokens = OneOrMany::list(raw.token_sha256)
        .iter()
        .map(|digest| TokenDigest::parse(digest))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| {
            invalid("token_sha256 must be the SHA-256 of a token, in 64 hexadecimal digits")
        })?;
    let certificates = OneOrMany::list(raw.certificate);
    if certificates.iter().any(String::is_empty) {
        return Err(invalid("certificate must not be empty"));
    }
    if tokens.is_empty() && certificates.is_empty() {
        return Err(invalid("token_sha256 or certificate is missing"));
    }
    let roles: Roles = raw.roles.into_iter().collect();
    if roles.is_empty() {
        return Err(invalid(
            "roles must contain at least one of generate, train and admin",
        ));
    }
    // Everything that exists without principals belongs to this name.
    if name == Owner::admin() && !roles.allow(Role::Admin) {
        return Err(invalid(
            "the principal of this name owns everything that was created without principals; \
             it must have the role admin",
        ));
    }
    let slowest = raw.chars_per_minute.unwrap_or(MIN_CHARS_PER_MINUTE);
    if slowest < MIN_CHARS_PER_MINUTE {
        return Err(invalid(&format!(
            "chars_per_minute must be at least {MIN_CHARS_PER_MINUTE}"
        )));
    }
    Ok(Entry {
        tokens,
        certificates,
        roles,
        quotas: Quotas {
            max_streams: raw.max_streams,
            chars_per_minute: raw.chars_per_minute,
            max_sessions: raw.max_sessions,
            max_trainings: raw.max_trainings,
            max_corpus_bytes: raw.max_corpus_bytes,
        },
        name,
    })
}

fn check_unique(entries: &[Entry]) -> Result<(), String> {
    let mut names = HashSet::new();
    let mut tokens = HashMap::new();
    let mut certificates = HashMap::new();
    for entry in entries {
        let name = &entry.name;
        if !names.insert(name) {
            return Err(format!(
                "principal {name} is listed twice; \
                 token_sha256 and certificate may be lists"
            ));
        }
        for token in &entry.tokens {
            if let Some(other) = tokens.insert(token, name).filter(|other| *other != name) {
                return Err(format!("principals {other} and {name} have the same token"));
            }
        }
        for san in &entry.certificates {
            let other = certificates.insert(san, name);
            if let Some(other) = other.filter(|other| *other != name) {
                return Err(format!(
                    "principals {other} and {name} have the same certificate {san:?}"
                ));
            }
        }
    }
    Ok(())
}

/// Returns the message of an error with its line, without the text of the
/// line.
fn located(text: &str, error: &toml::de::Error) -> String {
    let message = error.message();
    match error.span() {
        Some(span) => {
            let before = text.get(..span.start).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            format!("line {line}: {message}")
        }
        None => message.to_owned(),
    }
}
