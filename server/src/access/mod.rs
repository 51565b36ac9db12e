//! Who may call: principals with roles and quotas, access tokens, and the names
//! in client certificates.
//!
//! Nothing is required of callers if neither principals nor tokens are
//! configured. Every caller is then `admin`, and so is everybody with a token
//! of `--auth-token-file`.

pub(crate) mod certificate;
mod principals_file;
mod table;
pub mod token;

use std::fmt;
use std::net::SocketAddr;
#[cfg(test)]
use std::path::Path;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use charlstm_store::secret_file::SecretFileError;
use thiserror::Error;
use tonic::codegen::http::{Extensions, HeaderMap, header};

use self::table::{Contents, PrincipalTable};
use self::token::TokenDigest;
use crate::rpc::peer::Peer;
use crate::rpc::principal::Principal;

/// A file that says who may call cannot be used. The message contains no
/// secret.
#[derive(Debug, Error)]
pub enum AccessError {
    /// It cannot be read, or every user can read or change it.
    #[error(transparent)]
    Unusable(#[from] SecretFileError),
    /// Its content is not valid.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The files that say who may call.
#[derive(Clone, Debug, Default)]
pub struct AccessFiles {
    /// Principals, in TOML.
    pub principals: Option<PathBuf>,
    /// Access tokens of administrators, one per line.
    pub tokens: Option<PathBuf>,
    /// Whether clients have certificates that were verified.
    pub has_client_certificates: bool,
}

impl AccessFiles {
    /// Whether there is a file.
    pub fn is_any(&self) -> bool {
        self.principals.is_some() || self.tokens.is_some()
    }
}

/// Why a caller is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The call has neither a token nor a certificate of a principal.
    NoCredentials,
    /// The token is unknown.
    UnknownToken,
}

impl Rejection {
    /// The reason, for the log.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoCredentials => "no token, and no certificate of a principal",
            Self::UnknownToken => "unknown token",
        }
    }
}

/// Decides who calls.
pub struct AccessControl {
    files: AccessFiles,
    /// `None`: everybody may call.
    table: Option<RwLock<Arc<PrincipalTable>>>,
    /// What the table was built from. Locked while it is rebuilt.
    contents: Mutex<Option<Contents>>,
}

impl fmt::Debug for AccessControl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("AccessControl");
        debug.field("files", &self.files).finish_non_exhaustive()
    }
}

impl AccessControl {
    /// Lets everybody call.
    pub fn open() -> Self {
        Self::new(None)
    }

    fn new(table: Option<PrincipalTable>) -> Self {
        Self {
            files: AccessFiles::default(),
            table: table.map(|table| RwLock::new(Arc::new(table))),
            contents: Mutex::new(None),
        }
    }

    /// Reads the files, if any are given.
    ///
    /// # Errors
    /// A file cannot be read, is readable by everybody, or is not valid.
    pub fn from_files(files: &AccessFiles) -> Result<Self, AccessError> {
        if !files.is_any() {
            return Ok(Self::open());
        }
        let contents = Contents::read(files)?;
        let table = PrincipalTable::build(files, &contents)?;
        Ok(Self {
            files: files.clone(),
            contents: Mutex::new(Some(contents)),
            ..Self::new(Some(table))
        })
    }

    /// Reads the files again. If they have changed, calls are accepted according
    /// to the new ones from now on, and those in flight whose credentials are
    /// gone end. Returns whether they have changed. Blocks.
    ///
    /// # Errors
    /// A file cannot be used. What was read before stays in force.
    pub fn reload(&self) -> Result<bool, AccessError> {
        let Some(current) = &self.table else {
            return Ok(false);
        };
        let mut known = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        let contents = Contents::read(&self.files)?;
        if known.as_ref() == Some(&contents) {
            return Ok(false);
        }
        let mut table = PrincipalTable::build(&self.files, &contents)?;
        let earlier = Arc::clone(&current.read().unwrap_or_else(PoisonError::into_inner));
        table.succeed(&earlier);
        *current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
        *known = Some(contents);
        Ok(true)
    }

    /// Returns the principals, each once, in the order of their names.
    pub fn principals(&self) -> Vec<Principal> {
        let Some(table) = &self.table else {
            return Vec::new();
        };
        let table = Arc::clone(&table.read().unwrap_or_else(PoisonError::into_inner));
        let mut principals: Vec<Principal> = table.principals().cloned().collect();
        principals.sort_by(|a, b| a.owner().cmp(b.owner()));
        principals.dedup_by(|a, b| a.owner() == b.owner());
        principals
    }

    /// Lets the holders of these tokens call, as administrators.
    #[cfg(test)]
    pub(crate) fn of_tokens(text: &str) -> Self {
        let mut table = PrincipalTable::default();
        table
            .add_tokens(text, Path::new("tokens"))
            .expect("the tokens of a test are valid");
        Self::new(Some(table))
    }

    /// Lets these principals call.
    #[cfg(test)]
    pub(crate) fn of_principals(text: &str) -> Result<Self, AccessError> {
        let mut table = PrincipalTable::default();
        table.add_principals(text, Path::new("principals.toml"), true)?;
        Ok(Self::new(Some(table)))
    }

    /// Returns the caller of a request: the principal of its token, otherwise
    /// that of the client's certificate. A token that is not valid is rejected
    /// whatever the certificate is.
    ///
    /// # Errors
    /// Why the call must be rejected.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Result<Principal, Rejection> {
        let Some(table) = &self.table else {
            return Ok(Principal::anonymous());
        };
        let table = Arc::clone(&table.read().unwrap_or_else(PoisonError::into_inner));
        if headers.contains_key(header::AUTHORIZATION) {
            let digest = bearer_token(headers).ok_or(Rejection::UnknownToken)?;
            return table.of_token(&digest).ok_or(Rejection::UnknownToken);
        }
        if !table.has_certificates() {
            return Err(Rejection::NoCredentials);
        }
        let peer = Peer::of(extensions);
        let names = peer.certificate.map(|der| certificate::names(&der));
        let mut names = names.unwrap_or_default().into_iter();
        names
            .find_map(|name| table.of_certificate(&name))
            .ok_or(Rejection::NoCredentials)
    }
}

/// Returns the digest of the token in the only `authorization` header.
fn bearer_token(headers: &HeaderMap) -> Option<TokenDigest> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, token) = value.split_once(' ')?;
    let is_bearer = scheme.eq_ignore_ascii_case("bearer");
    is_bearer.then(|| TokenDigest::of(token.trim()))
}

/// Whether an address can be reached from other machines.
pub fn is_exposed(address: SocketAddr) -> bool {
    !address.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests;
