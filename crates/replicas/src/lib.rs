//! What several replicas of the server share.
//!
//! - [`database`] is the connection to PostgreSQL: a bounded pool whose
//!   statements always end, and the migrations.
//! - [`registry`] is the list of the replicas that use the database, and the
//!   heartbeat of this one.
//! - [`changes`] is what a replica learns of the changes of others by notifications
//!   and heartbeats.
//! - [`sessions`] stores sessions in it.
//! - [`object_store`] holds large data that never changes.
//! - [`models`] are model versions: rows in the database, files in the object
//!   store.
//! - [`copying`] is for the data of a server that becomes one of several.
//! - [`trainings`] are jobs that one replica at a time runs.
//!
//! Everything in the database that is decided by a time is decided by its own
//! clock (`clock_timestamp()`).

mod blocking;
pub mod changes;
pub mod copying;
pub mod database;
pub mod models;
pub mod object_store;
pub mod registry;
pub mod sessions;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod trainings;
