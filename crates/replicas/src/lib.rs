//! What several replicas of the server share: the object store.

pub mod object_store;
