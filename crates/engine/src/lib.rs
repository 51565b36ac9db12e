//! Generation and sessions: many texts at once, one character per batch step,
//! and the session state that is kept between calls.

pub mod generation;
pub mod sessions;
