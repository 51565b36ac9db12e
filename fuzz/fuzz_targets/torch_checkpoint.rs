//! Parses arbitrary bytes as a file written by `torch.save`, as ImportModel does.
//! The parser must return a model or an error; it must not panic, and must not
//! execute code in the file.

#![no_main]

use std::io::Cursor;

use charlstm_model::torch_checkpoint;
use charlstm_model::vocabulary::Vocabulary;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = torch_checkpoint::read(Cursor::new(bytes), None);
    let _ = torch_checkpoint::read(Cursor::new(bytes), Some(&Vocabulary::of("abc".chars())));
});
