//! What several replicas of the server share.
//!
//! - [`database`] is the connection to PostgreSQL: a bounded pool whose
//!   statements always end, and the migrations.
//! - [`registry`] is the list of the replicas that use the database.
//! - [`sessions`] stores sessions in it.
//!
//! Everything in the database that is decided by a time is decided by its own
//! clock (`clock_timestamp()`).

pub mod database;
pub mod registry;
pub mod sessions;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
