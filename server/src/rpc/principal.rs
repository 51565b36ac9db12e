//! Who makes a call, and what they may do.

use std::sync::Arc;

use charlstm_repository::Publisher;
use charlstm_store::session::Owner;
use charlstm_training::jobs::Requester;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::Extensions;
use tonic::{Request, Status};

use super::status;
use super::usage::{CharThrottle, StreamGuard, Usage};

/// What a principal may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Generate and score text, use sessions, read models.
    Generate,
    /// Train, import and delete models.
    Train,
    /// Everything, also with what belongs to other principals.
    Admin,
}

impl Role {
    /// Its name, as in the file of `--principals`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Train => "train",
            Self::Admin => "admin",
        }
    }
}

/// A set of roles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    generate: bool,
    train: bool,
    admin: bool,
}

impl Roles {
    /// Whether these roles allow what a role is required for. `admin` allows
    /// everything.
    pub fn allow(self, role: Role) -> bool {
        self.admin
            || match role {
                Role::Generate => self.generate,
                Role::Train => self.train,
                Role::Admin => false,
            }
    }

    /// Whether there is no role.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        let mut set = Self::default();
        for role in roles {
            match role {
                Role::Generate => set.generate = true,
                Role::Train => set.train = true,
                Role::Admin => set.admin = true,
            }
        }
        set
    }
}

/// Limits of a principal; `None`: no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Maximum number of generations at a time, on this server.
    pub max_streams: Option<u64>,
    /// Maximum rate of generated characters, over all generations on this
    /// server. Beyond it, generations become slower.
    pub chars_per_minute: Option<u64>,
    /// Maximum number of sessions.
    pub max_sessions: Option<u64>,
    /// Maximum number of trainings that wait or run.
    pub max_trainings: Option<u64>,
    /// Maximum size of a corpus, in bytes.
    pub max_corpus_bytes: Option<u64>,
}

/// The caller of a request, as established by the auth layer. What the caller
/// creates belongs to [`Self::owner`]. Clones are cheap.
#[derive(Clone, Debug)]
pub struct Principal {
    identity: Arc<Identity>,
    usage: Arc<Usage>,
    /// Cancelled when the credentials of the call are no longer accepted.
    revoked: CancellationToken,
}

#[derive(Debug)]
struct Identity {
    owner: Owner,
    roles: Roles,
    quotas: Quotas,
    is_anonymous: bool,
}

impl Principal {
    /// A principal of the file of `--principals`.
    pub fn new(owner: Owner, roles: Roles, quotas: Quotas) -> Self {
        Self::of_identity(Identity {
            owner,
            roles,
            quotas,
            is_anonymous: false,
        })
    }

    fn of_identity(identity: Identity) -> Self {
        Self {
            identity: Arc::new(identity),
            usage: Arc::default(),
            revoked: CancellationToken::new(),
        }
    }

    /// Returns the same principal with other counters and another token that
    /// ends its calls.
    pub fn continuing(mut self, usage: Arc<Usage>, revoked: CancellationToken) -> Self {
        (self.usage, self.revoked) = (usage, revoked);
        self
    }

    /// A caller of a server that requires no token. It may do everything, and
    /// what it creates belongs to the administrator: adding principals later
    /// changes nobody's sessions.
    pub fn anonymous() -> Self {
        Self::of_identity(Identity {
            owner: Owner::admin(),
            roles: [Role::Admin].into_iter().collect(),
            quotas: Quotas::default(),
            is_anonymous: true,
        })
    }

    /// A caller with a token of `--auth-token-file`.
    pub fn admin() -> Self {
        let roles = [Role::Admin].into_iter().collect();
        Self::new(Owner::admin(), roles, Quotas::default())
    }

    /// Returns the owner of what this caller creates.
    pub fn owner(&self) -> &Owner {
        &self.identity.owner
    }

    /// Whether the server does not know who calls, because it requires no
    /// credentials: callers differ by their addresses only.
    pub fn is_anonymous(&self) -> bool {
        self.identity.is_anonymous
    }

    /// Whether it may do what this role is required for.
    pub fn has_role(&self, role: Role) -> bool {
        self.identity.roles.allow(role)
    }

    /// Whether it may use what belongs to other principals.
    pub fn is_admin(&self) -> bool {
        self.has_role(Role::Admin)
    }

    /// Returns its limits.
    pub fn quotas(&self) -> &Quotas {
        &self.identity.quotas
    }

    /// Returns what it uses at the moment.
    pub fn usage(&self) -> &Arc<Usage> {
        &self.usage
    }

    /// Returns the token that is cancelled when the credentials of this call are
    /// no longer accepted: the call is to end with UNAUTHENTICATED.
    pub fn revoked(&self) -> &CancellationToken {
        &self.revoked
    }

    /// Counts a generation of this principal until the guard is dropped.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if there are as many as the principal may have.
    pub(super) fn start_stream(&self) -> Result<StreamGuard, Status> {
        let limit = self.quotas().max_streams;
        self.usage.start_stream(limit).ok_or_else(|| {
            let limit = limit.unwrap_or_default();
            status::stream_quota(limit)
        })
    }

    /// Returns what slows its generations down, if anything does.
    pub(super) fn throttle(&self) -> Option<CharThrottle> {
        let per_minute = self.quotas().chars_per_minute?;
        Some(CharThrottle::new(Arc::clone(&self.usage), per_minute))
    }

    /// Returns the maximum number of sessions of an owner for whom this caller
    /// acts. An administrator who acts for others is not limited.
    pub fn max_sessions(&self, owner: &Owner) -> Option<u64> {
        let is_own = self.owner() == owner;
        self.quotas().max_sessions.filter(|_| is_own)
    }

    /// Returns what it is to the models.
    pub fn publisher(&self) -> Publisher {
        Publisher {
            owner: self.owner().clone(),
            is_admin: self.is_admin(),
        }
    }

    /// Returns what it is to the trainings.
    pub fn requester(&self) -> Requester {
        Requester {
            publisher: self.publisher(),
            max_trainings: self.quotas().max_trainings,
            max_corpus_bytes: self.quotas().max_corpus_bytes,
        }
    }

    /// Returns the caller of a request.
    ///
    /// # Errors
    /// INTERNAL if the request did not come through the auth layer: a service
    /// without it must not serve anyone.
    pub(super) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        Self::of_extensions(request.extensions())
    }

    /// Returns the caller of the request with these extensions.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub(super) fn of_extensions(extensions: &Extensions) -> Result<Self, Status> {
        let principal = extensions.get::<Self>();
        principal
            .cloned()
            .ok_or_else(|| status::internal(&"a request without a principal"))
    }

    /// Checks that the caller may do what a role is required for.
    ///
    /// # Errors
    /// PERMISSION_DENIED with the name of the role.
    pub(super) fn require(&self, role: Role) -> Result<(), Status> {
        match self.has_role(role) {
            true => Ok(()),
            false => Err(status::permission_denied(role)),
        }
    }

    /// Returns the owner that a request is about: the caller, unless the
    /// request names another one.
    ///
    /// # Errors
    /// PERMISSION_DENIED if that is another principal and the caller is not
    /// an administrator; INVALID_ARGUMENT if it is not a name.
    pub(super) fn owner_or(&self, requested: Option<&str>) -> Result<Owner, Status> {
        let Some(name) = requested.filter(|name| !name.is_empty()) else {
            return Ok(self.owner().clone());
        };
        if name != self.owner().as_str() {
            self.require(Role::Admin)?;
        }
        Owner::new(name).map_err(|error| status::invalid("owner", error.to_string()))
    }

    /// Returns the owner whose things a request lists; `None`: those of all.
    ///
    /// # Errors
    /// As [`Self::owner_or`].
    pub(super) fn owner_to_list(&self, requested: Option<&str>) -> Result<Option<Owner>, Status> {
        let is_named = requested.is_some_and(|name| !name.is_empty());
        match self.is_admin() && !is_named {
            true => Ok(None),
            false => self.owner_or(requested).map(Some),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tonic::Code;

    use super::*;

    fn principal(name: &str, role: Role) -> Principal {
        let roles = [role].into_iter().collect();
        Principal::new(Owner::new(name).unwrap(), roles, Quotas::default())
    }

    #[test]
    fn only_an_administrator_may_name_another_owner() {
        let alice = principal("alice", Role::Generate);
        for own in [None, Some(""), Some("alice")] {
            assert_eq!(alice.owner_or(own).unwrap().as_str(), "alice");
            let listed = alice.owner_to_list(own).unwrap();
            assert_eq!(listed.unwrap().as_str(), "alice");
        }
        for denied in [
            alice.owner_or(Some("bob")).unwrap_err(),
            alice.owner_to_list(Some("bob")).unwrap_err(),
        ] {
            assert_eq!(denied.code(), Code::PermissionDenied);
            assert!(denied.message().contains("role admin"), "{denied}");
        }
        let root = principal("root", Role::Admin);
        assert_eq!(root.owner_or(None).unwrap().as_str(), "root");
        assert_eq!(root.owner_or(Some("bob")).unwrap().as_str(), "bob");
        assert_eq!(root.owner_to_list(None).unwrap(), None);
        let listed = root.owner_to_list(Some("bob")).unwrap().unwrap();
        assert_eq!(listed.as_str(), "bob");
        let status = root.owner_or(Some("a b")).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
}
