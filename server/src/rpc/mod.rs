//! The gRPC services: protobuf in, calls of the domain, protobuf out. The
//! crates below know neither the generated types nor `tonic`.

pub mod call_context;
pub mod call_record;
pub mod caller;
mod convert;
mod deadline;
pub mod generation;
pub mod layers;
pub mod model;
pub mod peer;
pub mod principal;
pub mod server;
pub mod session;
pub mod status;
pub mod training;
pub mod transfers;
pub mod usage;
