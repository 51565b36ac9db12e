//! The gRPC contract of charlstm in Rust: messages, clients, servers, descriptors
//! and a table of all methods. Everything is generated from
//! `proto/charlstm/v1/*.proto` at build time.

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

/// A method of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// Request path: `/package.Service/Method`.
    pub path: &'static str,
    /// Full name of the service: `package.Service`.
    pub service: &'static str,
    /// Name of the method, without the service.
    pub name: &'static str,
    /// True if the client sends a stream of messages.
    pub client_streaming: bool,
    /// True if the server sends a stream of messages.
    pub server_streaming: bool,
}

/// All methods of all services, in the order of the `.proto` files.
pub const METHODS: &[Method] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));
