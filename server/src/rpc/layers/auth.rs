//! Authentication and authorisation: rejects calls without known credentials
//! and calls that the caller's roles do not allow, and adds the [`Principal`]
//! to those that it passes on.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, Either};
use http_body_util::BodyExt;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Bytes, Service, http};
use tower::Layer;

use super::revocation::RevocableCall;
use crate::access::AccessControl;
use crate::rpc::call_record::CallRecord;
use crate::rpc::principal::{Principal, Role};
use crate::rpc::status;

/// Maximum size of a rejected request that is read to its end: that of most
/// unary requests.
const MAX_REST_BYTES: usize = 64 * 1024;

/// Maximum time to wait for the end of a rejected request: unary ones come with
/// their headers.
const MAX_REST_TIME: Duration = Duration::from_millis(200);

/// Methods of `ModelService` that change models; the others read them.
const MODEL_CHANGES: [&str; 2] = ["DeleteModel", "ImportModel"];

/// Returns the role that a method requires; `None`: any principal may call it.
/// The role of a new method is that of its service.
fn required_role(path: &str) -> Option<Role> {
    // The HTTP API generates and lists models.
    if path.starts_with("/v1/") {
        return Some(Role::Generate);
    }
    let (service, method) = path.strip_prefix("/charlstm.v1.")?.split_once('/')?;
    match service {
        "GenerationService" | "SessionService" => Some(Role::Generate),
        "ModelService" if MODEL_CHANGES.contains(&method) => Some(Role::Train),
        "ModelService" => Some(Role::Generate),
        "TrainingService" => Some(Role::Train),
        _ => None,
    }
}

/// Puts the [`Principal`] of each call into the extensions of its request.
/// Rejects calls without known credentials with UNAUTHENTICATED, and those
/// that the caller's roles do not allow with PERMISSION_DENIED.
#[derive(Clone, Debug)]
pub struct AuthLayer {
    access: Arc<AccessControl>,
}

impl AuthLayer {
    /// Accepts the calls of the principals that `access` knows.
    pub fn new(access: Arc<AccessControl>) -> Self {
        Self { access }
    }

    /// Returns the caller of a request, if it may make the call.
    fn admit<B>(&self, request: &http::Request<B>) -> Result<Principal, Status> {
        let (path, extensions) = (request.uri().path(), request.extensions());
        let record = CallRecord::of(extensions);
        let principal = self
            .access
            .authenticate(request.headers(), extensions)
            .map_err(|rejection| {
                record.rejected(rejection.reason());
                status::unauthenticated()
            })?;
        record.principal(principal.owner().as_str());
        if let Some(role) = required_role(path) {
            principal
                .require(role)
                .inspect_err(|status| record.rejected(status.message()))?;
        }
        Ok(principal)
    }
}

/// Reads the rest of a request that is rejected, if it is short and arrives
/// soon. A response to a request that was not read resets its stream, and after
/// some hundred resets the connection is closed, with the calls of others that
/// share it behind a proxy.
async fn read_rest(mut body: Body) {
    let read = async {
        let mut left = MAX_REST_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(bytes) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    // Too late or too long: the stream is reset.
    let _ = tokio::time::timeout(MAX_REST_TIME, read).await;
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
    type Future = Either<
        RevocableCall<S::Future>,
        BoxFuture<'static, Result<http::Response<Body>, Infallible>>,
    >;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        match self.layer.admit(&request) {
            Ok(principal) => {
                let revoked = principal.revoked().clone();
                request.extensions_mut().insert(principal);
                Either::Left(RevocableCall::new(self.inner.call(request), revoked))
            }
            Err(status) => Either::Right(Box::pin(async move {
                read_rest(request.into_body()).await;
                Ok(status.into_http())
            })),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use charlstm_proto::METHODS;
    use tonic::Code;

    use super::*;
    use crate::access::token::TokenDigest;

    #[test]
    fn each_method_requires_its_role_and_an_administrator_may_call_all() {
        let text = ["generate", "train", "admin"].map(|role| {
            let digest = TokenDigest::of(role).to_hex();
            format!(
                "[[principal]]\nname = \"{role}-1\"\ntoken_sha256 = \"{digest}\"\n\
                 roles = [\"{role}\"]\n"
            )
        });
        let access = AccessControl::of_principals(&text.concat()).unwrap();
        let layer = AuthLayer::new(Arc::new(access));
        let admit = |path: &str, token: &str| {
            let request = http::Request::builder()
                .uri(path)
                .header("authorization", format!("Bearer {token}"));
            layer.admit(&request.body(()).unwrap()).map(drop)
        };
        let paths = METHODS.iter().map(|method| method.path);
        let http = ["/v1/completions", "/v1/models", "/openapi.json"];
        for path in paths
            .chain(http)
            .chain(["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"])
        {
            admit(path, "admin").unwrap();
            let status = admit(path, "unknown").unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated);
            for other in [Role::Generate, Role::Train] {
                let admitted = admit(path, other.name());
                let Some(role) = required_role(path).filter(|role| *role != other) else {
                    admitted.unwrap();
                    continue;
                };
                let status = admitted.unwrap_err();
                assert_eq!(status.code(), Code::PermissionDenied, "{path}");
                let named = format!("role {}", role.name());
                assert!(status.message().contains(&named), "{status}");
            }
        }
        let role_of = |name: &str| required_role(&format!("/charlstm.v1.{name}"));
        assert_eq!(role_of("ModelService/DeleteModel"), Some(Role::Train));
        assert_eq!(role_of("ModelService/GetModel"), Some(Role::Generate));
        assert_eq!(role_of("TrainingService/Train"), Some(Role::Train));
        assert_eq!(role_of("GenerationService/New"), Some(Role::Generate));
        assert_eq!(role_of("ServerService/GetServerStatus"), None);
        for path in ["/v1/completions", "/v1/models", "/v1/models/book"] {
            assert_eq!(required_role(path), Some(Role::Generate));
        }
        assert_eq!(required_role("/openapi.json"), None);
    }
}
