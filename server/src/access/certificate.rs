//! The names in a certificate.

use std::net::IpAddr;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// Returns the subject alternative names of a certificate in DER, in their
/// order: DNS names, e-mail addresses, URIs and IP addresses as text. Empty if
/// it has none or cannot be read. The certificate was verified before.
pub(super) fn names(der: &[u8]) -> Vec<String> {
    alternative_names(der, name)
}

/// Returns the DNS names among the subject alternative names of a certificate
/// in DER. Empty if it has none or cannot be read.
pub(crate) fn dns_names(der: &[u8]) -> Vec<String> {
    alternative_names(der, |name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    })
}

fn alternative_names(der: &[u8], text: fn(&GeneralName<'_>) -> Option<String>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return Vec::new();
    };
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let names = names.value.general_names.iter();
    names.filter_map(text).collect()
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => {
            Some((*name).to_owned())
        }
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            Some(address.ok()?.to_string())
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    #[test]
    fn every_kind_of_name_is_returned_as_text() {
        let mut params = CertificateParams::new(vec![
            "alice.example.org".to_owned(),
            "192.0.2.7".to_owned(),
            "2001:db8::1".to_owned(),
        ])
        .unwrap();
        for san in [
            SanType::URI("spiffe://example.org/alice".try_into().unwrap()),
            SanType::Rfc822Name("alice@example.org".try_into().unwrap()),
        ] {
            params.subject_alt_names.push(san);
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(
            names(certificate.der()),
            [
                "alice.example.org",
                "192.0.2.7",
                "2001:db8::1",
                "spiffe://example.org/alice",
                "alice@example.org",
            ]
        );
        assert_eq!(dns_names(certificate.der()), ["alice.example.org"]);
        assert!(names(b"no certificate").is_empty());
    }
}
