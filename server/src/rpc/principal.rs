//! Who makes a call.

use charlstm_store::session::Owner;
use tonic::{Request, Status};

use super::status;

/// The caller of a request, as established by the auth layer. What the caller
/// creates belongs to [`Self::owner`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    owner: Owner,
    authenticated: bool,
}

impl Principal {
    /// A caller of a server that requires no token. What it creates belongs to
    /// the administrator: adding tokens later changes nobody's sessions.
    pub fn anonymous() -> Self {
        Self {
            owner: Owner::admin(),
            authenticated: false,
        }
    }

    /// A caller with an access token.
    pub fn admin() -> Self {
        Self {
            owner: Owner::admin(),
            authenticated: true,
        }
    }

    /// Returns the owner of what this caller creates.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Returns the caller of a request.
    ///
    /// # Errors
    /// INTERNAL if the request did not come through the auth layer: a service
    /// that was wired without it must not serve anyone.
    pub(super) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let principal = request.extensions().get::<Self>();
        principal
            .cloned()
            .ok_or_else(|| status::internal(&"a request without a principal"))
    }
}
