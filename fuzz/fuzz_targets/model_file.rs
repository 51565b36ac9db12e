//! Parses arbitrary bytes as a model file, as ImportModel does. The parser must
//! return a model or an error; it must not panic.

#![no_main]

use charlstm_model::model_file::ModelFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = ModelFile::from_bytes(bytes);
});
