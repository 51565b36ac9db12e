//! The contract of charlstm as Rust types: what `proto/charlstm/v1/*.proto`
//! says, generated at build time, and its descriptor set. Nothing is written
//! by hand here.

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

/// The compiled descriptors of all files, encoded as a
/// `google.protobuf.FileDescriptorSet`, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
