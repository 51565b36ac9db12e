//! HTTP on the port of gRPC: gRPC-Web, an API in the format of OpenAI's
//! completions, probes, and the web page. `dispatch` separates it from gRPC.

mod api_error;
mod completions;
mod dispatch;
mod models;
mod openapi;
mod origin_policy;
mod page;
mod probes;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body as HttpBody;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, Method, Request, Response};
use axum::routing::{get, post};
use charlstm_repository::Repository;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use self::api_error::ApiError;
use self::dispatch::Dispatch;
pub(crate) use self::origin_policy::{OriginPolicy, allowed_host, cors_origin, own_names};
use crate::rpc::call_record::REQUEST_ID;
use crate::rpc::generation::GenerationRpc;
use crate::rpc::layers::Layers;
use crate::rpc::layers::call_outcome::CallOutcome;
use crate::rpc::status;

/// Maximum size of the body of a request, in bytes: a prompt of the maximum
/// length, with every character escaped, and some other fields.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;

/// Headers that a page of another origin may read.
const EXPOSED_HEADERS: [&str; 5] = [
    "grpc-status",
    "grpc-message",
    "grpc-status-details-bin",
    "retry-after",
    REQUEST_ID,
];

/// What the HTTP API serves.
#[derive(Clone)]
pub(crate) struct ApiState {
    pub(crate) generation: GenerationRpc,
    pub(crate) repository: Repository,
}

/// What HTTP needs besides the gRPC services.
pub(crate) struct HttpParts {
    pub(crate) state: ApiState,
    pub(crate) policy: OriginPolicy,
    pub(crate) layers: Layers,
    /// Cancelled when the server begins to shut down.
    pub(crate) shutdown: CancellationToken,
}

/// Returns the routes of the whole port: those of gRPC, and HTTP.
pub(crate) fn router(grpc: Router, parts: HttpParts) -> Router {
    let policy = Arc::new(parts.policy);
    let cors = cors(&policy);
    let with_cors = |routes: Router| match &cors {
        Some(cors) => routes.layer(cors.clone()),
        None => routes,
    };
    let api = api(parts.state, parts.layers);
    let shutdown = parts.shutdown;
    let web = Router::new()
        .route("/healthz", get(probes::healthz))
        .route("/readyz", get(async move || probes::readyz(&shutdown)))
        .route_service("/openapi.json", api.clone())
        .route_service("/v1/{*rest}", api)
        .merge(page::routes())
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .fallback(async || ApiError::unknown_path());
    let grpc_web = tonic_web::GrpcWebLayer::new().layer(
        grpc.clone()
            .map_request(|request: Request<Body>| request.map(HttpBody::new)),
    );
    let grpc_web = Router::new().fallback_service(grpc_web);
    let dispatch = Dispatch {
        grpc,
        grpc_web: with_cors(grpc_web),
        web: with_cors(web),
        policy,
    };
    Router::new().fallback_service(dispatch)
}

/// Returns the API, behind the same metrics, log, authentication and tracking as
/// the gRPC services.
fn api(
    state: ApiState,
    layers: Layers,
) -> impl Service<
    Request<HttpBody>,
    Response = Response<HttpBody>,
    Error = Infallible,
    Future: Send + 'static,
> + Clone
+ Send
+ Sync
+ 'static {
    let routes = Router::new()
        .route("/v1/completions", post(completions::complete))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{id}", get(models::get))
        .route("/openapi.json", get(openapi::document))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .fallback(async || ApiError::unknown_path())
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(state);
    let inner = routes
        .map_request(|request: Request<Body>| request.map(HttpBody::new))
        .map_response(|mut response: Response<HttpBody>| {
            let extensions = response.extensions_mut();
            extensions.get_or_insert_with(CallOutcome::default);
            response.map(Body::new)
        });
    let layered = ServiceBuilder::new()
        .layer(layers.call_metrics)
        .layer(layers.call_log)
        .layer(layers.auth)
        .layer(layers.in_flight)
        .service(inner);
    service_fn(move |request: Request<HttpBody>| {
        let layered = layered.clone();
        async move {
            let response = layered.oneshot(request.map(Body::new)).await?;
            Ok(as_http(response))
        }
    })
}

/// Turns a status of a layer, which is in the format of gRPC, into an error in
/// the format of the API.
fn as_http(response: Response<Body>) -> Response<HttpBody> {
    let Some(status) = status::of_response(response.headers()) else {
        return response.map(HttpBody::new);
    };
    let mut error = Response::from(ApiError::from(status));
    if let Some(id) = response.headers().get(REQUEST_ID) {
        error.headers_mut().insert(REQUEST_ID, id.clone());
    }
    error
}

/// Lets pages of the origins of `--cors-origin` read responses; `None` if there
/// is none.
fn cors(policy: &OriginPolicy) -> Option<CorsLayer> {
    let origins = policy.foreign_origins();
    if origins.is_empty() {
        return None;
    }
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED_HEADERS.map(HeaderName::from_static));
    Some(layer)
}
