//! Callers, among whom slots and queues are shared.

use std::sync::Arc;

/// Names one caller. Calls with the same name share what one caller gets; the
/// default name is one caller too. Clones are cheap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CallerId(Option<Arc<str>>);

impl From<Arc<str>> for CallerId {
    fn from(name: Arc<str>) -> Self {
        Self(Some(name))
    }
}

impl From<&str> for CallerId {
    fn from(name: &str) -> Self {
        Self(Some(name.into()))
    }
}
