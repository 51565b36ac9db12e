//! The tower layers around every service of charlstm, from the outermost to
//! the innermost: call metrics, deadline, authentication, the end of requests,
//! calls in flight. Health and reflection have none: probes need no token, and
//! a client that watches the health does not delay the shutdown.

pub mod auth;
pub mod call_metrics;
pub mod deadline;
pub mod in_flight;
pub mod request_end;
