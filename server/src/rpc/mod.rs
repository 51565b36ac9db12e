//! The tonic services: protobuf in, domain calls, protobuf out. Generated
//! types and `tonic` stop here.

mod deadline;
pub mod generation;
pub mod session;
pub mod status;
