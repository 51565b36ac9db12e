//! Authentication by access tokens: rejects calls without a known token, and
//! adds the [`Principal`] to those that it passes on.

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::Either;
use sha2::{Digest, Sha256};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tower::Layer;

use crate::rpc::principal::Principal;
use crate::rpc::status;

/// The access tokens that are accepted, as digests: how long a lookup takes
/// reveals nothing about them.
#[derive(Debug)]
pub struct Tokens(HashSet<[u8; 32]>);

impl Tokens {
    /// Reads one token per line. Blank lines and lines that begin with `#` are
    /// skipped, and so is a byte order mark. `None` if there is no token.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let tokens: HashSet<_> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| Sha256::digest(line).into())
            .collect();
        (!tokens.is_empty()).then_some(Self(tokens))
    }

    /// Whether the headers carry one of the tokens.
    fn accept(&self, headers: &http::HeaderMap) -> bool {
        let Some(value) = headers.get(http::header::AUTHORIZATION) else {
            return false;
        };
        let Some((scheme, token)) = value.to_str().ok().and_then(|text| text.split_once(' '))
        else {
            return false;
        };
        let digest: [u8; 32] = Sha256::digest(token.trim()).into();
        scheme.eq_ignore_ascii_case("bearer") && self.0.contains(&digest)
    }
}

/// Puts the [`Principal`] of each call into the extensions of its request, and
/// rejects calls without a known token with UNAUTHENTICATED.
#[derive(Clone, Debug)]
pub struct AuthLayer {
    tokens: Option<Arc<Tokens>>,
}

impl AuthLayer {
    /// Accepts the calls that carry one of the tokens; without `tokens`, all
    /// calls.
    pub fn new(tokens: Option<Tokens>) -> Self {
        Self {
            tokens: tokens.map(Arc::new),
        }
    }

    /// Returns the caller of a request with these headers; `None` if the call
    /// must be rejected.
    fn authenticate(&self, headers: &http::HeaderMap) -> Option<Principal> {
        match &self.tokens {
            None => Some(Principal::anonymous()),
            Some(tokens) => tokens.accept(headers).then(Principal::admin),
        }
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = AuthService<S>;

    fn layer(&self, inner: S) -> AuthService<S> {
        AuthService {
            inner,
            layer: self.clone(),
        }
    }
}

/// A service behind an [`AuthLayer`].
#[derive(Clone, Debug)]
pub struct AuthService<S> {
    inner: S,
    layer: AuthLayer,
}

impl<S> Service<http::Request<Body>> for AuthService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<http::Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        match self.layer.authenticate(request.headers()) {
            Some(principal) => {
                request.extensions_mut().insert(principal);
                Either::Left(self.inner.call(request))
            }
            None => Either::Right(ready(Ok(status::unauthenticated().into_http()))),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn principal(layer: &AuthLayer, authorization: Option<&str>) -> Option<Principal> {
        let mut headers = http::HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(http::header::AUTHORIZATION, value.parse().unwrap());
        }
        layer.authenticate(&headers)
    }

    #[test]
    fn only_calls_with_one_of_the_tokens_are_accepted() {
        let tokens = Tokens::parse("# ours\nfirst\n\n  second  \n");
        let layer = AuthLayer::new(Some(tokens.unwrap()));
        for right in ["Bearer first", "bearer second"] {
            assert_eq!(principal(&layer, Some(right)), Some(Principal::admin()));
        }
        for wrong in [
            "Bearer third",
            "Bearer # ours",
            "Bearer ",
            "Bearer",
            "Basic first",
            "first",
        ] {
            assert_eq!(principal(&layer, Some(wrong)), None, "{wrong:?}");
        }
        assert_eq!(principal(&layer, None), None);
    }

    #[test]
    fn without_tokens_every_call_is_anonymous() {
        let layer = AuthLayer::new(None);
        for authorization in [None, Some("Bearer any")] {
            assert_eq!(
                principal(&layer, authorization),
                Some(Principal::anonymous())
            );
        }
    }

    #[test]
    fn a_byte_order_mark_is_not_part_of_the_first_token() {
        let tokens = Tokens::parse("\u{feff}first\n");
        let layer = AuthLayer::new(Some(tokens.unwrap()));
        assert!(principal(&layer, Some("Bearer first")).is_some());
    }

    #[test]
    fn a_file_with_only_comments_has_no_tokens() {
        assert!(Tokens::parse("\n# nothing\n").is_none());
    }
}
