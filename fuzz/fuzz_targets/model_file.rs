//! Feeds bytes to the reader of model files, which come from anybody who may
//! call ImportModel. They must be refused or read, never break the server.

#![no_main]

use charlstm_model::checkpoint::ModelFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = ModelFile::from_bytes(bytes);
});
