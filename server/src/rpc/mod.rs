//! The tonic services: protobuf in, domain calls, protobuf out. Generated
//! types and `tonic` stop here.

pub mod admission;
mod convert;
mod deadline;
pub mod generation;
pub mod model;
pub mod server;
pub mod session;
pub mod status;
pub mod training;
