//! The principals that are known, by token and by name in a certificate.

use std::collections::HashMap;
use std::path::Path;

use subtle::ConstantTimeEq;

use super::token::TokenDigest;
use super::{AccessError, AccessFiles, principals_file, secret_file};
use crate::rpc::principal::Principal;

/// Maps credentials to principals.
#[derive(Debug, Default)]
pub(super) struct PrincipalTable {
    tokens: Vec<(TokenDigest, Principal)>,
    certificates: HashMap<String, Principal>,
}

impl PrincipalTable {
    /// Reads the files; `None` if none is given. Blocks.
    pub(super) fn read(files: &AccessFiles) -> Result<Option<Self>, AccessError> {
        if files.principals.is_none() && files.tokens.is_none() {
            return Ok(None);
        }
        let mut table = Self::default();
        if let Some(path) = &files.principals {
            let text = secret_file::read(path)?;
            table.add_principals(&text, path, files.has_client_certificates)?;
        }
        if let Some(path) = &files.tokens {
            table.add_tokens(&secret_file::read(path)?, path)?;
        }
        Ok(Some(table))
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
                self.tokens.push((token, principal.clone()));
            }
            for name in entry.certificates {
                self.certificates.insert(name, principal.clone());
            }
        }
        Ok(())
    }

    /// Adds one administrator's token per line. Blank lines and lines that
    /// begin with `#` are skipped.
    pub(super) fn add_tokens(&mut self, text: &str, path: &Path) -> Result<(), AccessError> {
        let lines = text.lines().map(str::trim);
        let tokens = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let before = self.tokens.len();
        let admin = Principal::admin();
        self.tokens
            .extend(tokens.map(|token| (TokenDigest::of(token), admin.clone())));
        if self.tokens.len() == before {
            return Err(AccessError::Content {
                path: path.to_owned(),
                reason: "contains no token".to_owned(),
            });
        }
        Ok(())
    }

    /// Returns the principal of a token. Takes the same time for every token:
    /// compares it with all, some 30 ns each.
    pub(super) fn of_token(&self, digest: &TokenDigest) -> Option<Principal> {
        let mut found = None;
        for (known, principal) in &self.tokens {
            if bool::from(known.ct_eq(digest)) {
                found = Some(principal);
            }
        }
        found.cloned()
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
