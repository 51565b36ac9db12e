//! The tower layers around every service of charlstm, from the outermost to
//! the innermost: call metrics, call log, protocol, deadline, authentication, the
//! body of requests, calls in flight. Reflection has only the log and
//! authentication, and health has none: probes need no token, and a client that
//! watches the health does not delay the shutdown. The HTTP API has all but the
//! protocol, the deadline and the body of requests.

pub mod auth;
pub mod call_log;
pub mod call_metrics;
pub(crate) mod call_outcome;
pub mod deadline;
pub mod in_flight;
mod observed_call;
pub mod protocol;
pub mod request_body;
mod revocation;

use self::auth::AuthLayer;
use self::call_log::CallLogLayer;
use self::call_metrics::CallMetricsLayer;
use self::in_flight::InFlightLayer;
use self::request_body::RequestBodyLayer;

/// The layers that have a state, which all services share.
#[derive(Clone)]
pub(crate) struct Layers {
    pub(crate) call_metrics: CallMetricsLayer,
    pub(crate) call_log: CallLogLayer,
    pub(crate) auth: AuthLayer,
    pub(crate) request_body: RequestBodyLayer,
    pub(crate) in_flight: InFlightLayer,
}

/// Returns the beginning of a path that a stranger chose, for the log.
fn excerpt(path: &str) -> &str {
    const MAX_BYTES: usize = 100;
    &path[..path.floor_char_boundary(MAX_BYTES)]
}
