//! Named, versioned models on disk, and those that are loaded.

use std::sync::Arc;

use crate::model::step::StepWeights;
use crate::model::vocabulary::Vocabulary;

/// One version of a model.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId {
    /// Its name.
    pub name: String,
    /// Its version, from 1.
    pub version: u64,
}

/// A model version in memory, ready to be stepped.
#[derive(Debug)]
pub struct LoadedModel {
    /// What it is.
    pub id: ModelId,
    /// SHA-256 of its file: another file of the same name is another model.
    pub digest: [u8; 32],
    /// Its characters.
    pub vocabulary: Vocabulary,
    /// Its weights.
    pub weights: Arc<StepWeights>,
}
