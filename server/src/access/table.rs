//! The principals that are known, by token and by name in a certificate.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use charlstm_store::secret_file;
use charlstm_store::session::Owner;
use tokio_util::sync::CancellationToken;

use super::token::TokenDigest;
use super::{AccessError, AccessFiles, principals_file};
use crate::rpc::principal::Principal;
use crate::rpc::usage::Usage;

/// Maximum size of a file: some ten thousand principals.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// The contents of the files, with secrets.
#[derive(PartialEq, Eq)]
pub(super) struct Contents {
    principals: Option<String>,
    tokens: Option<String>,
}

impl Contents {
    /// Reads the files that are given. Blocks.
    pub(super) fn read(files: &AccessFiles) -> Result<Self, AccessError> {
        let read = |path: &Option<PathBuf>| {
            let path = path.as_deref();
            path.map(|path| secret_file::read(path, MAX_FILE_BYTES))
                .transpose()
        };
        Ok(Self {
            principals: read(&files.principals)?,
            tokens: read(&files.tokens)?,
        })
    }
}

/// Returns the principal of one credential: each can be revoked on its own.
fn with_own_token(principal: &Principal) -> Principal {
    let usage = Arc::clone(principal.usage());
    principal
        .clone()
        .continuing(usage, CancellationToken::new())
}

/// Maps credentials to principals.
#[derive(Debug, Default)]
pub(super) struct PrincipalTable {
    tokens: HashMap<TokenDigest, Principal>,
    certificates: HashMap<String, Principal>,
}

impl PrincipalTable {
    /// Builds the table from the contents of the files.
    pub(super) fn build(files: &AccessFiles, contents: &Contents) -> Result<Self, AccessError> {
        let mut table = Self::default();
        if let (Some(path), Some(text)) = (&files.principals, &contents.principals) {
            table.add_principals(text, path, files.has_client_certificates)?;
        }
        if let (Some(path), Some(text)) = (&files.tokens, &contents.tokens) {
            table.add_tokens(text, path)?;
        }
        Ok(table)
    }

    /// Continues an earlier table: principals of the same name keep their
    /// counters, and calls with credentials that are no longer there, or that
    /// are somebody else's now, end.
    pub(super) fn succeed(&mut self, earlier: &Self) {
        let usage: HashMap<Owner, Arc<Usage>> = earlier
            .principals()
            .map(|principal| (principal.owner().clone(), Arc::clone(principal.usage())))
            .collect();
        let continued = |principal: &Principal, before: Option<Principal>| {
            let kept = before.filter(|before| before.owner() == principal.owner());
            let usage = usage.get(principal.owner()).unwrap_or(principal.usage());
            let revoked = kept.as_ref().unwrap_or(principal).revoked().clone();
            principal.clone().continuing(Arc::clone(usage), revoked)
        };
        for (digest, principal) in &mut self.tokens {
            *principal = continued(principal, earlier.of_token(digest));
        }
        for (name, principal) in &mut self.certificates {
            *principal = continued(principal, earlier.of_certificate(name));
        }
        let is_kept = |now: Option<Principal>, before: &Principal| {
            now.is_some_and(|now| now.owner() == before.owner())
        };
        for (digest, principal) in &earlier.tokens {
            if !is_kept(self.of_token(digest), principal) {
                principal.revoked().cancel();
            }
        }
        for (name, principal) in &earlier.certificates {
            if !is_kept(self.of_certificate(name), principal) {
                principal.revoked().cancel();
            }
        }
    }

    /// Returns the principals, once for each of their credentials.
    pub(super) fn principals(&self) -> impl Iterator<Item = &Principal> {
        self.tokens.values().chain(self.certificates.values())
    }

    /// Adds the principals of a file.
    pub(super) fn add_principals(
        &mut self,
        text: &str,
        path: &Path,
        has_client_certificates: bool,
    ) -> Result<(), AccessError> {
        let invalid = |reason| AccessError::Content {
            path: path.to_owned(),
            reason,
        };
        for entry in principals_file::parse(text).map_err(invalid)? {
            if !entry.certificates.is_empty() && !has_client_certificates {
                return Err(invalid(format!(
                    "principal {}: certificate requires --tls-client-ca",
                    entry.name
                )));
            }
            let principal = Principal::new(entry.name, entry.roles, entry.quotas);
            for token in entry.tokens {
                self.tokens.insert(token, with_own_token(&principal));
            }
            for name in entry.certificates {
                self.certificates.insert(name, with_own_token(&principal));
            }
        }
        Ok(())
    }

    /// Adds one administrator's token per line. Blank lines and lines that
    /// begin with `#` are skipped.
    pub(super) fn add_tokens(&mut self, text: &str, path: &Path) -> Result<(), AccessError> {
        let lines = text.lines().map(str::trim);
        let tokens = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut tokens = tokens.peekable();
        if tokens.peek().is_none() {
            return Err(AccessError::Content {
                path: path.to_owned(),
                reason: "contains no token".to_owned(),
            });
        }
        let admin = Principal::admin();
        self.tokens
            .extend(tokens.map(|token| (TokenDigest::of(token), with_own_token(&admin))));
        Ok(())
    }

    /// Returns the principal of a token.
    pub(super) fn of_token(&self, digest: &TokenDigest) -> Option<Principal> {
        self.tokens.get(digest).cloned()
    }

    /// Whether a certificate can be that of a principal.
    pub(super) fn has_certificates(&self) -> bool {
        !self.certificates.is_empty()
    }

    /// Returns the principal of a name in a certificate.
    pub(super) fn of_certificate(&self, name: &str) -> Option<Principal> {
        self.certificates.get(name).cloned()
    }
}
