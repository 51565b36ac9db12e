//! Which hosts and origins may use HTTP. A browser sends requests of any page
//! that a person visits, also to addresses that only that person's machine can
//! reach: with the page's `Origin`, or, after DNS rebinding, with the page's
//! own name as `Host`. Both are rejected unless they are known.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::http::request::Parts;
use axum::http::uri::{Authority, Scheme, Uri};
use axum::http::{HeaderMap, HeaderValue, header};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;
use tokio::sync::watch;

use crate::access::certificate::dns_names;

/// Why a request is rejected.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum OriginRejection {
    /// `Host` is missing, or there are several.
    #[error("a request must have exactly one valid Host header")]
    NoHost,
    /// `Host` is not known.
    #[error(
        "host {0:?} is not allowed: use an IP address or localhost, or allow it with --allowed-host"
    )]
    Host(String),
    /// `Origin` is neither this server nor allowed.
    #[error("origin {0:?} is not allowed: see --cors-origin")]
    Origin(String),
}

/// The hosts and origins that are allowed.
#[derive(Clone, Debug)]
pub(crate) struct OriginPolicy {
    is_tls: bool,
    /// The names of the server's certificate, which can be replaced, in lower
    /// case. `*.example.com` stands for one more label.
    certificate_names: watch::Receiver<Vec<String>>,
    /// Further names, in lower case.
    hosts: Vec<String>,
    /// Origins in lower case, other than the server's own.
    origins: Vec<String>,
}

impl OriginPolicy {
    /// Allows the current names of the server's own certificate, as [`own_names`]
    /// returns them, and hosts and origins as [`allowed_host`] and
    /// [`cors_origin`] return them.
    pub(crate) fn new(
        is_tls: bool,
        certificate_names: watch::Receiver<Vec<String>>,
        hosts: &[String],
        origins: &[String],
    ) -> Self {
        Self {
            is_tls,
            certificate_names,
            hosts: hosts.to_vec(),
            origins: origins.to_vec(),
        }
    }

    /// Returns the origins of `--cors-origin`, as headers have them.
    pub(crate) fn foreign_origins(&self) -> Vec<HeaderValue> {
        let values = self.origins.iter().map(|origin| origin.parse());
        values.filter_map(Result::ok).collect()
    }

    /// Checks the host and the origin of a request.
    ///
    /// # Errors
    /// [`OriginRejection`].
    pub(crate) fn check(&self, request: &Parts) -> Result<(), OriginRejection> {
        let host = host(&request.uri, &request.headers)?;
        if !self.allows_host(host.host()) {
            return Err(OriginRejection::Host(host.host().to_owned()));
        }
        let mut origins = request.headers.get_all(header::ORIGIN).iter();
        let Some(origin) = origins.next() else {
            return Ok(());
        };
        let text = origin.to_str().unwrap_or_default().to_ascii_lowercase();
        let is_allowed = self.origins.contains(&text) || self.is_own(&text, &host);
        if is_allowed && origins.next().is_none() {
            Ok(())
        } else {
            Err(OriginRejection::Origin(
                String::from_utf8_lossy(origin.as_bytes()).into_owned(),
            ))
        }
    }

    fn allows_host(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let is_one_of = |names: &[String]| names.iter().any(|name| matches_name(name, &host));
        is_ip_literal(&host)
            || host == "localhost"
            || is_one_of(&self.hosts)
            || is_one_of(&self.certificate_names.borrow())
    }

    /// Whether an origin is the address that the request was sent to. With TLS
    /// only over TLS; without it, a proxy may have terminated TLS.
    fn is_own(&self, origin: &str, host: &Authority) -> bool {
        let Some((scheme, authority)) = parse_origin(origin) else {
            return false;
        };
        let is_https = scheme == Scheme::HTTPS;
        let port = |authority: &Authority| {
            let default = if is_https { 443 } else { 80 };
            authority.port_u16().unwrap_or(default)
        };
        (is_https || !self.is_tls)
            && authority.host().eq_ignore_ascii_case(host.host())
            && port(&authority) == port(host)
    }
}

/// Reads a value of `--allowed-host`: a name without a port.
///
/// # Errors
/// What it must be.
pub(crate) fn allowed_host(text: &str) -> Result<String, String> {
    let name = text.to_ascii_lowercase();
    let is_name = name.parse::<Authority>().is_ok_and(|authority| {
        authority.host() == name && authority.port().is_none() && !name.contains(['*', '@'])
    });
    if is_name {
        Ok(name)
    } else {
        Err("must be a host name without a port, such as app.example.com".to_owned())
    }
}

/// Reads a value of `--cors-origin`.
///
/// # Errors
/// What it must be.
pub(crate) fn cors_origin(text: &str) -> Result<String, String> {
    let origin = text.to_ascii_lowercase();
    // An origin has no path, not even an empty one.
    if parse_origin(&origin).is_some() && !origin.ends_with('/') {
        Ok(origin)
    } else {
        let requirement = "must be SCHEME://HOST or SCHEME://HOST:PORT, such as \
                           https://app.example.com";
        Err(requirement.to_owned())
    }
}

/// Returns the host that a request was sent to: HTTP/2 has it in the URI,
/// HTTP/1.1 in a header. If there are both, they must be the same.
fn host(uri: &Uri, headers: &HeaderMap) -> Result<Authority, OriginRejection> {
    let mut values = headers.get_all(header::HOST).iter();
    let from_header = match values.next() {
        Some(value) => {
            let text = value.to_str().map_err(|_| OriginRejection::NoHost)?;
            let host = text.parse::<Authority>();
            Some(host.map_err(|_| OriginRejection::NoHost)?)
        }
        None => None,
    };
    if values.next().is_some() {
        return Err(OriginRejection::NoHost);
    }
    match (uri.authority().cloned(), from_header) {
        (Some(one), Some(other)) if one != other => Err(OriginRejection::NoHost),
        (Some(host), _) | (None, Some(host)) if is_host_and_port(&host) => Ok(host),
        _ => Err(OriginRejection::NoHost),
    }
}

/// Whether there is nothing but a host and, if any, a port number.
fn is_host_and_port(authority: &Authority) -> bool {
    match authority.as_str().strip_prefix(authority.host()) {
        Some("") => true,
        Some(rest) => rest.starts_with(':') && authority.port_u16().is_some(),
        None => false,
    }
}

/// Splits `SCHEME://HOST[:PORT]`. `None` if it is anything else.
fn parse_origin(text: &str) -> Option<(Scheme, Authority)> {
    let uri: Uri = text.parse().ok()?;
    let (scheme, authority) = (uri.scheme()?.clone(), uri.authority()?.clone());
    let is_bare = uri.path() == "/" && uri.query().is_none();
    let is_http = scheme == Scheme::HTTP || scheme == Scheme::HTTPS;
    (is_bare && is_http && !authority.as_str().contains('@')).then_some((scheme, authority))
}

/// Whether a host is an address: no name has to be resolved, so none can be
/// made to point elsewhere.
fn is_ip_literal(host: &str) -> bool {
    let v6 = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    match v6 {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<Ipv4Addr>().is_ok(),
    }
}

fn matches_name(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(domain) => host
            .split_once('.')
            .is_some_and(|(label, rest)| !label.is_empty() && rest == domain),
        None => name == host,
    }
}

/// Returns the DNS names, in lower case, of the first certificate of a PEM file.
/// Empty if it cannot be read, which setting up TLS reports.
pub(crate) fn own_names(pem: &[u8]) -> Vec<String> {
    let certificate = CertificateDer::from_pem_slice(pem);
    let names = certificate.map_or_else(|_| Vec::new(), |der| dns_names(&der));
    names.iter().map(|name| name.to_ascii_lowercase()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn policy(is_tls: bool) -> OriginPolicy {
        let names = ["own.example.com", "*.wild.example"].map(str::to_owned);
        let names = watch::Sender::new(names.to_vec()).subscribe();
        let hosts = [allowed_host("Models.internal").unwrap()];
        let origins = [cors_origin("https://app.example.com").unwrap()];
        OriginPolicy::new(is_tls, names, &hosts, &origins)
    }

    fn check(host: &str, origin: Option<&str>) -> Result<(), OriginRejection> {
        let mut request = Request::builder().uri("/v1/models").header("host", host);
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        policy(false).check(&parts)
    }

    #[test]
    fn addresses_localhost_own_names_and_allowed_hosts_are_accepted() {
        for host in [
            "127.0.0.1:50051",
            "10.1.2.3",
            "[::1]:50051",
            "localhost:50051",
            "LOCALHOST",
            "own.example.com",
            "a.wild.example:443",
            "models.internal:50051",
        ] {
            assert_eq!(check(host, None), Ok(()), "{host}");
        }
    }

    #[test]
    fn the_names_of_a_replaced_certificate_are_allowed() {
        let names = watch::Sender::new(vec!["old.example".to_owned()]);
        let policy = OriginPolicy::new(true, names.subscribe(), &[], &[]);
        assert!(policy.allows_host("old.example"));
        names.send_replace(vec!["new.example".to_owned()]);
        assert!(policy.allows_host("New.example"));
        assert!(!policy.allows_host("old.example"));
    }

    #[test]
    fn every_other_host_is_rejected() {
        for host in [
            "evil.example:50051",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "a.b.wild.example",
            ".wild.example",
            "wild.example",
            "other.models.internal",
            "localhost.",
        ] {
            let rejected = check(host, None);
            assert!(
                matches!(rejected, Err(OriginRejection::Host(_))),
                "{host}: {rejected:?}"
            );
        }
        for host in ["", "a b", "evil@127.0.0.1", "127.0.0.1:port"] {
            assert_eq!(check(host, None), Err(OriginRejection::NoHost), "{host}");
        }
    }

    #[test]
    fn a_request_with_two_hosts_is_rejected() {
        let two = Request::builder()
            .uri("/")
            .header("host", "localhost")
            .header("host", "evil.example");
        let differing = Request::builder()
            .uri("http://localhost/")
            .header("host", "evil.example");
        for request in [two, differing] {
            let (parts, ()) = request.body(()).unwrap().into_parts();
            assert_eq!(policy(false).check(&parts), Err(OriginRejection::NoHost));
        }
    }

    #[test]
    fn only_the_own_and_allowed_origins_are_accepted() {
        let host = "127.0.0.1:50051";
        for origin in ["http://127.0.0.1:50051", "https://app.example.com"] {
            assert_eq!(check(host, Some(origin)), Ok(()), "{origin}");
        }
        assert_eq!(check("localhost", Some("http://localhost")), Ok(()));
        // TLS that ended at a proxy.
        assert_eq!(
            check("own.example.com", Some("https://own.example.com")),
            Ok(())
        );
        for origin in [
            "http://127.0.0.1:8080",
            "http://localhost:50051",
            "https://app.example.com:444",
            "http://app.example.com",
            "https://evil.example",
            "null",
            "",
            "file://127.0.0.1:50051",
            "http://127.0.0.1:50051/path",
        ] {
            let rejected = check(host, Some(origin));
            assert!(
                matches!(rejected, Err(OriginRejection::Origin(_))),
                "{origin}"
            );
        }
    }

    #[test]
    fn with_tls_the_own_origin_is_https() {
        let (parts, ()) = Request::builder()
            .uri("https://own.example.com/")
            .header("origin", "http://own.example.com")
            .body(())
            .unwrap()
            .into_parts();
        assert!(policy(true).check(&parts).is_err());
    }

    #[test]
    fn settings_that_are_not_hosts_or_origins_are_rejected() {
        for host in ["http://a", "a:80", "a/b", "", "*.a", "a@b"] {
            assert!(allowed_host(host).is_err(), "{host:?}");
        }
        for origin in [
            "a.example",
            "https://a/",
            "https://a/b",
            "*",
            "null",
            "ftp://a",
        ] {
            assert!(cors_origin(origin).is_err(), "{origin:?}");
        }
    }
}
