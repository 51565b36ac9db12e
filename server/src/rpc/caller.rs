//! Callers, among whom the resources of the server are shared.

use std::net::IpAddr;
use std::sync::Arc;

use tonic::codegen::http::Extensions;

use super::peer::Peer;
use super::principal::Principal;

/// One caller: a principal, or, if the server does not know who calls, an
/// address. All clients behind one proxy have its address and are one caller;
/// headers such as `X-Forwarded-For` are not trusted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller(Arc<str>);

impl Caller {
    /// Returns the caller of the request with these extensions.
    pub fn of(extensions: &Extensions) -> Self {
        let principal = extensions.get::<Principal>();
        if let Some(principal) = principal.filter(|principal| !principal.is_anonymous()) {
            return Self(format!("principal {}", principal.owner()).into());
        }
        let address = Peer::of(extensions).address.map(|address| address.ip());
        Self(match address {
            Some(IpAddr::V6(address)) if address.to_ipv4_mapped().is_none() => {
                // A host chooses the rest of its address itself.
                let [a, b, c, d, ..] = address.segments();
                format!("address {a:x}:{b:x}:{c:x}:{d:x}::/64").into()
            }
            Some(address) => format!("address {}", address.to_canonical()).into(),
            None => "unknown".into(),
        })
    }

    /// Returns a name for it, which no other caller has.
    pub fn name(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use charlstm_store::session::Owner;
    use tonic::transport::server::TcpConnectInfo;

    use super::*;
    use crate::rpc::principal::{Quotas, Role};

    fn caller(address: &str, principal: Option<Principal>) -> Caller {
        let mut extensions = Extensions::new();
        extensions.insert(TcpConnectInfo {
            local_addr: None,
            remote_addr: Some(address.parse().unwrap()),
        });
        extensions.insert(principal.unwrap_or_else(Principal::anonymous));
        Caller::of(&extensions)
    }

    #[test]
    fn without_principals_a_caller_is_an_address_without_its_port() {
        assert_eq!(caller("1.2.3.4:1", None), caller("1.2.3.4:2", None));
        assert_ne!(caller("1.2.3.4:1", None), caller("1.2.3.5:1", None));
        assert_eq!(
            caller("[::ffff:1.2.3.4]:1", None),
            caller("1.2.3.4:2", None)
        );
        assert_eq!(
            caller("[1:2:3:4::5]:1", None),
            caller("[1:2:3:4:6::]:1", None)
        );
        assert_ne!(
            caller("[1:2:3:4::5]:1", None),
            caller("[1:2:3:5::5]:1", None)
        );
    }

    #[test]
    fn a_principal_is_one_caller_at_all_addresses() {
        let alice = || {
            let roles = [Role::Generate].into_iter().collect();
            let owner = Owner::new("alice").unwrap();
            Some(Principal::new(owner, roles, Quotas::default()))
        };
        assert_eq!(caller("1.2.3.4:1", alice()), caller("5.6.7.8:1", alice()));
        assert_ne!(caller("1.2.3.4:1", alice()), caller("1.2.3.4:1", None));
    }
}
