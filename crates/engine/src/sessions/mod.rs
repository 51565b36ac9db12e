//! Sessions: where a text stands, kept between two calls. What is kept and
//! for how long, how it is forked, and how it is written as bytes. How a
//! session moves on is in `generation`; there is no thread, no clock and no
//! arithmetic here.

pub mod disk;
pub mod id;
pub mod snapshot;
pub mod state;
pub mod store;
mod tombstones;

pub use id::SessionId;
pub use snapshot::Snapshot;
pub use state::{ModelKey, SessionState, TokenIds};
pub use store::SessionStore;
pub use tombstones::Reason;
