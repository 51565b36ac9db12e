//! The tower layers around every service of charlstm, from the outermost to
//! the innermost: call metrics, protocol, deadline, authentication, the body of
//! requests, calls in flight. Health and reflection have none but, for
//! reflection, authentication: probes need no token, and a client that watches
//! the health does not delay the shutdown.

pub mod auth;
pub mod call_metrics;
pub mod deadline;
pub mod in_flight;
pub mod protocol;
pub mod request_body;
