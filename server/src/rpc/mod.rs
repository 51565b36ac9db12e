//! The tonic services: protobuf in, domain calls, protobuf out. Generated
//! types and `tonic` stop here.

pub mod status;
pub mod training;
