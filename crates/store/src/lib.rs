//! Durable storage of charlstm.
//!
//! - [`atomic_file`] replaces a file as a whole, so that a crash leaves either
//!   the old or the new one.
//! - [`hex`] writes and reads digests as text.
//! - [`session`] stores sessions: the record, the interface
//!   ([`session::SessionStorage`]) and its backends.
//!
//! Nothing here knows networks, tensors or arithmetic: the state of a network
//! is a string of bytes whose length is bounded.

pub mod atomic_file;
pub mod hex;
pub mod session;
