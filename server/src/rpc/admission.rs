//! The door before each service: who is let in, and how many are inside.
//! Health and reflection have no door, so that probes need no token and a
//! watcher of health does not hold up the end of the server.

use std::collections::HashSet;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http_body::{Frame, SizeHint};
use sha2::{Digest, Sha256};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::{Bytes, Service, http};
use tonic::server::NamedService;

use super::status;
use crate::metrics::{Metrics, StartedCall};

/// The tokens of which a caller must show one, as digests: the time that a
/// look-up takes tells nothing about them.
#[derive(Debug)]
pub struct Tokens(HashSet<[u8; 32]>);

impl Tokens {
    /// One token a line; blank lines and those that begin with `#` do not
    /// count. `None` where there is no token at all.
    pub fn parse(text: &str) -> Option<Self> {
        let tokens: HashSet<_> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| Sha256::digest(line).into())
            .collect();
        (!tokens.is_empty()).then_some(Self(tokens))
    }

    fn admit(&self, headers: &http::HeaderMap) -> bool {
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

/// What all doors share.
#[derive(Clone, Debug, Default)]
pub struct Door {
    /// `None`: everybody is let in.
    pub tokens: Option<Arc<Tokens>>,
    /// Tracks each call until the last byte of its answer is handed over.
    pub inside: TaskTracker,
    /// Counts the calls by how they ended, also those that were not let in.
    pub metrics: Metrics,
}

/// A service behind the door.
#[derive(Clone, Debug)]
pub struct Admitted<S> {
    service: S,
    door: Door,
}

impl<S> Admitted<S> {
    /// Puts the service behind the door.
    pub fn new(service: S, door: Door) -> Self {
        Self { service, door }
    }
}

impl<S: NamedService> NamedService for Admitted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Admitted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let mut visit = Visit {
            call: self.door.metrics.call_started(request.uri().path()),
            counted: false,
            metrics: self.door.metrics.clone(),
        };
        let tokens = self.door.tokens.as_ref();
        if tokens.is_some_and(|tokens| !tokens.admit(request.headers())) {
            let status = status::unauthenticated();
            visit.ended(status.code());
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        let token = self.door.inside.token();
        let answer = self.service.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            // Where there is nothing but a status, it stands in the head.
            visit.look_at(answer.headers());
            Ok(answer.map(|body| {
                Body::new(Inside {
                    body,
                    visit,
                    _token: token,
                })
            }))
        })
    }
}

/// The body of an answer; while it lives, its call is inside.
struct Inside {
    body: Body,
    visit: Visit,
    _token: TaskTrackerToken,
}

impl http_body::Body for Inside {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            self.visit.look_at(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A call under way. It is counted before its end is told, or when it is
/// dropped without.
struct Visit {
    call: StartedCall,
    counted: bool,
    metrics: Metrics,
}

impl Visit {
    fn look_at(&mut self, headers: &http::HeaderMap) {
        if let Some(code) = headers.get("grpc-status") {
            self.ended(Code::from_bytes(code.as_bytes()));
        }
    }

    fn ended(&mut self, code: Code) {
        if !self.counted {
            self.counted = true;
            self.metrics.call_handled(self.call, code);
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        // Dropped before its end was told: the caller has left.
        self.ended(Code::Cancelled);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn admitted(tokens: &Tokens, authorization: Option<&str>) -> bool {
        let mut headers = http::HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(http::header::AUTHORIZATION, value.parse().unwrap());
        }
        tokens.admit(&headers)
    }

    #[test]
    fn only_who_shows_one_of_the_tokens_is_let_in() {
        let tokens = Tokens::parse("# ours\nfirst\n\n  second  \n").unwrap();
        assert!(admitted(&tokens, Some("Bearer first")));
        assert!(admitted(&tokens, Some("bearer second")));
        for wrong in [
            "Bearer third",
            "Bearer # ours",
            "Bearer ",
            "Bearer",
            "Basic first",
            "first",
        ] {
            assert!(!admitted(&tokens, Some(wrong)), "{wrong:?}");
        }
        assert!(!admitted(&tokens, None));
    }

    #[test]
    fn a_file_without_a_token_is_none() {
        assert!(Tokens::parse("\n# nothing\n").is_none());
    }
}
