//! Feeds bytes to the reader of what `torch.save` writes, which come from
//! anybody who may call ImportModel. No code in them may be run, and they must
//! be refused or read, never break the server.

#![no_main]

use std::io::Cursor;

use charlstm_model::notebook;
use charlstm_model::vocabulary::Vocabulary;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = notebook::read(Cursor::new(bytes), None);
    let _ = notebook::read(Cursor::new(bytes), Some(&Vocabulary::of("abc".chars())));
});
