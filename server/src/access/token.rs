//! Access tokens: how they are made and compared.

use std::fmt;

use charlstm_store::hex;
use sha2::{Digest, Sha256};

use crate::rpc::principal::Role;

/// Bytes of randomness of a new token: as many as its digest has.
const TOKEN_BYTES: usize = 32;

/// Beginning of new tokens, by which scanners for leaked secrets recognise
/// them.
const PREFIX: &str = "charlstm_";

/// The SHA-256 of a token. The server keeps no token itself. A digest of a
/// random token cannot be inverted, so it needs no salt and no slow hash. Digests
/// need no comparison in constant time: a client cannot choose a token by its
/// digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// Returns the digest of a token.
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        hex::decode(text).map(Self)
    }

    /// Returns it as hexadecimal digits.
    pub fn to_hex(self) -> String {
        hex::encode(&self.0)
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TokenDigest(..)")
    }
}

/// Returns a new random token.
pub fn generate() -> String {
    let bytes: [u8; TOKEN_BYTES] = rand::random();
    format!("{PREFIX}{}", hex::encode(&bytes))
}

/// Makes a token. Returns it on a line of its own, and after it the entry of the
/// file of `--principals` that it belongs to, in TOML.
pub fn describe(name: &str, roles: &[Role]) -> String {
    let token = generate();
    let roles: Vec<String> = roles.iter().map(|r| format!("{:?}", r.name())).collect();
    format!(
        "{token}\n\n\
         # The line above is the token of the principal: it is not stored and not shown again.\n\
         # Add what follows to the file of --principals:\n\
         [[principal]]\n\
         name = {name:?}\n\
         token_sha256 = \"{}\"\n\
         roles = [{}]\n",
        TokenDigest::of(&token).to_hex(),
        roles.join(", ")
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tonic::codegen::http::{Extensions, HeaderMap, header};

    use super::*;
    use crate::access::AccessControl;

    #[test]
    fn new_tokens_differ_and_have_the_digest_that_other_tools_compute() {
        let token = generate();
        assert_ne!(token, generate());
        assert_eq!(token.len(), PREFIX.len() + 64);
        // printf abc | sha256sum
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(TokenDigest::of("abc").to_hex(), digest);
        assert_eq!(TokenDigest::parse(digest), Some(TokenDigest::of("abc")));
        assert_eq!(TokenDigest::parse("ba78"), None);
    }

    #[test]
    fn the_printed_entry_is_one_that_the_file_accepts() {
        let text = describe("team\\a\"", &[Role::Generate, Role::Train]);
        let (token, entry) = text.split_once('\n').unwrap();
        let access = AccessControl::of_principals(entry).unwrap();
        let mut headers = HeaderMap::new();
        let value = format!("Bearer {token}").parse().unwrap();
        headers.insert(header::AUTHORIZATION, value);
        let caller = access.authenticate(&headers, &Extensions::new()).unwrap();
        assert_eq!(caller.owner().as_str(), "team\\a\"");
        assert!(caller.has_role(Role::Train) && !caller.is_admin());
        assert!(!entry.contains(token));
    }
}
