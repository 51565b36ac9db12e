//! Parses arbitrary bytes as an exported session, as ImportSession does with those
//! that this server has not sealed: as they are, and with the checksum of version
//! 0.1 appended, which fuzzing cannot guess.

#![no_main]

use bytes::Bytes;
use charlstm_store::session::PortableSession;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

fuzz_target!(|content: &[u8]| {
    let _ = PortableSession::read_unsealed(&Bytes::copy_from_slice(content));
    let mut bytes = content.to_vec();
    bytes.extend_from_slice(&Sha256::digest(content));
    let _ = PortableSession::read_unsealed(&bytes.into());
});
