//! The gRPC contract of charlstm in Rust: messages, clients and servers that
//! are generated from `proto/charlstm/v1/*.proto` at build time, and the
//! descriptor set. This crate contains no hand-written logic.

/// Package `charlstm.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::doc_markdown,
    clippy::large_enum_variant
)]
pub mod v1 {
    tonic::include_proto!("charlstm.v1");
}

/// Descriptors of all `.proto` files, encoded as a
/// `google.protobuf.FileDescriptorSet`. Used for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
