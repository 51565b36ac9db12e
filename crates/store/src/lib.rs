//! Durable storage of charlstm.
//!
//! - [`atomic_file`] replaces a file as a whole, so that a crash leaves either
//!   the old or the new one.
//! - [`checksummed_json`] writes JSON objects that carry a checksum.
//! - [`disk_error`] says what a client may know of an error of the disk.
//! - [`hex`] writes and reads digests as text.
//! - [`secret_file`] reads keys and tokens, which only some users may read.
//! - [`session`] stores sessions: the record, the interface
//!   ([`session::SessionStorage`]) and its backends.
//! - [`unix_time`] is the time of day.
//!
//! Nothing here computes: the state of a network is a string of bytes whose
//! length is bounded. Of `charlstm-model` it uses the names that belong to a
//! session: the precision, the revision of the arithmetic, the random state.

pub mod atomic_file;
pub mod checksummed_json;
pub mod disk_error;
#[cfg(feature = "testing")]
pub mod folder_copy;
pub mod hex;
pub mod secret_file;
pub mod session;
pub mod unix_time;
