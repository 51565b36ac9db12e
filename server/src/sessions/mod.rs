//! Sessions: where a text stands, kept between two calls. What is kept and
//! for how long, how it is forked, and how it is written as bytes. How a
//! session moves on is in `generation`; there is no thread, no clock and no
//! arithmetic here.

pub mod disk;
mod forgotten;
pub mod id;
pub mod point;
pub mod snapshot;
pub mod store;

pub use forgotten::Reason;
pub use id::SessionId;
pub use point::{ModelKey, Point, Tokens};
pub use snapshot::Snapshot;
pub use store::SessionStore;
