//! Who may publish and delete models under a name.

use charlstm_store::session::Owner;
use serde::{Deserialize, Serialize};

/// A principal that publishes or deletes models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publisher {
    /// Its name: the owner of the model names that it publishes first.
    pub owner: Owner,
    /// Whether it may also publish and delete under the names of others.
    pub is_admin: bool,
}

impl Publisher {
    /// The publisher of everything that is created without principals.
    pub fn admin() -> Self {
        Self {
            owner: Owner::admin(),
            is_admin: true,
        }
    }

    /// Whether it may publish and delete under a name of this owner.
    pub fn may_change(&self, owner: &Owner) -> bool {
        self.is_admin || self.owner == *owner
    }
}
