//! Feeds bytes to the reader of exported sessions: as they are, and with the
//! checksum made right, because no guess gets past it. What is read must be
//! written as bytes that read as the same session.

#![no_main]

use charlstm_engine::sessions::Snapshot;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

fuzz_target!(|content: &[u8]| {
    let _ = Snapshot::from_bytes(content);
    let mut bytes = content.to_vec();
    bytes.extend_from_slice(&Sha256::digest(content));
    if let Ok(snapshot) = Snapshot::from_bytes(&bytes) {
        // Bytes are compared, not sessions: a state may hold NaN.
        let written = snapshot.to_bytes();
        let again = Snapshot::from_bytes(&written).expect("what was written can be read");
        assert_eq!(again.to_bytes(), written);
    }
});
