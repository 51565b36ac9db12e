//! Parses arbitrary bytes as an exported session, as ImportSession does: as they
//! are, and with a valid checksum appended, which fuzzing cannot guess. A session
//! that was read must survive a round trip of writing and reading.

#![no_main]

use bytes::Bytes;
use charlstm_store::session::SessionRecord;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let _ = SessionRecord::decode(&Bytes::copy_from_slice(content));
    let mut bytes = content.to_vec();
    bytes.extend_from_slice(&crc32c::crc32c(content).to_le_bytes());
    if let Ok(record) = SessionRecord::decode(&bytes.into()) {
        let written = record.encode().expect("a record that was read can be written");
        let again = SessionRecord::decode(&written).expect("a written record can be read");
        assert_eq!(again, record);
    }
});
