//! `GET /openapi.json`: the description of the API, generated from its code.

use axum::Json;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{completions, models};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "charlstm",
        description = "Text generation with character-level LSTMs, in the format of OpenAI's \
            completions API. A token is a character. Training, scoring and the management of \
            sessions are in the gRPC API, which is served on the same port, also as gRPC-Web."
    ),
    paths(completions::complete, models::list, models::get),
    modifiers(&BearerToken)
)]
struct Api;

struct BearerToken;

impl Modify for BearerToken {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

/// Returns the description.
pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Api::openapi())
}
