#![allow(clippy::unwrap_used)]

use super::*;
use crate::rpc::principal::Role;

fn caller(access: &AccessControl, authorization: &[&str]) -> Option<String> {
    let mut headers = HeaderMap::new();
    for value in authorization {
        headers.append(header::AUTHORIZATION, value.parse().unwrap());
    }
    let caller = access.authenticate(&headers, &Extensions::new());
    caller.ok().map(|caller| caller.owner().to_string())
}

fn principals(entries: &str) -> Result<AccessControl, String> {
    AccessControl::of_principals(entries).map_err(|error| error.to_string())
}

/// An entry with one token.
fn entry(name: &str, token: &str, rest: &str) -> String {
    let digest = TokenDigest::of(token).to_hex();
    format!("[[principal]]\nname = \"{name}\"\ntoken_sha256 = \"{digest}\"\n{rest}\n")
}

#[test]
fn only_calls_with_one_of_the_tokens_are_accepted_and_they_are_admin() {
    let access = AccessControl::of_tokens("# ours\nfirst\n\n  second  \n");
    for right in ["Bearer first", "bearer second"] {
        assert_eq!(caller(&access, &[right]).as_deref(), Some("admin"));
    }
    for wrong in [
        "Bearer third",
        "Bearer # ours",
        "Bearer ",
        "Bearer",
        "Basic first",
        "first",
    ] {
        assert_eq!(caller(&access, &[wrong]), None, "{wrong:?}");
    }
    assert_eq!(caller(&access, &[]), None);
    let two = ["Bearer first", "Bearer second"];
    assert_eq!(caller(&access, &two), None, "two headers are ambiguous");
}

#[test]
fn without_principals_and_tokens_every_caller_is_admin() {
    let access = AccessControl::open();
    for authorization in [&[][..], &["Bearer any"]] {
        assert_eq!(caller(&access, authorization).as_deref(), Some("admin"));
    }
}

#[test]
fn a_token_file_without_tokens_is_rejected() {
    let mut table = PrincipalTable::default();
    let error = table
        .add_tokens("\n# nothing\n", Path::new("t"))
        .unwrap_err();
    assert_eq!(error.to_string(), "t: contains no token");
}

#[test]
fn each_principal_has_its_own_name_roles_and_quotas() {
    let text = entry("alice", "a", "roles = [\"generate\"]\nmax_sessions = 3")
        + &entry("bob", "b", "roles = [\"train\", \"admin\"]");
    let access = principals(&text).unwrap();
    assert_eq!(caller(&access, &["Bearer a"]).as_deref(), Some("alice"));
    assert_eq!(caller(&access, &["Bearer b"]).as_deref(), Some("bob"));
    assert_eq!(caller(&access, &["Bearer c"]), None);
    let of = |value: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        access.authenticate(&headers, &Extensions::new()).unwrap()
    };
    let alice = of("Bearer a");
    assert!(alice.has_role(Role::Generate));
    assert!(!alice.has_role(Role::Train) && !alice.is_admin());
    assert_eq!(alice.quotas().max_sessions, Some(3));
    // An administrator may do everything.
    let bob = of("Bearer b");
    assert!(bob.has_role(Role::Generate) && bob.has_role(Role::Train) && bob.is_admin());
}

#[test]
fn an_invalid_file_is_rejected_with_what_is_wrong() {
    let generate = "roles = [\"generate\"]";
    let digest = TokenDigest::of("a").to_hex();
    for (text, expected) in [
        (String::new(), "contains no [[principal]]"),
        (entry("a b", "a", generate), "name \"a b\": must consist of"),
        (
            entry("a", "a", "roles = []"),
            "principal a: roles must contain",
        ),
        (
            entry("a", "a", "roles = [\"read\"]"),
            "line 4: unknown variant `read`, expected one of `generate`, `train`, `admin`",
        ),
        (
            entry("a", "a", "roles = [\"train\"]\nmax_stream = 1"),
            "line 5: unknown field `max_stream`",
        ),
        (
            entry("a", "a", "roles = [\"train\"]\nmax_streams = -1"),
            "line 5: invalid value: integer `-1`",
        ),
        (
            entry("a", "a", "roles = [\"train\"]\nchars_per_minute = 59"),
            "chars_per_minute must be at least 60",
        ),
        (
            format!("[[principal]]\nname = \"a\"\n{generate}"),
            "principal a: token_sha256 or certificate is missing",
        ),
        (
            format!("[[principal]]\nname = \"a\"\ntoken_sha256 = \"secret\"\n{generate}"),
            "principal a: token_sha256 must be the SHA-256",
        ),
        (
            entry("a", "a", generate) + &entry("a", "b", generate),
            "principal a is listed twice",
        ),
        (
            entry("a", "a", generate) + &entry("b", "a", generate),
            "principals a and b have the same token",
        ),
        (entry("admin", "a", generate), "it must have the role admin"),
    ] {
        let error = principals(&text).unwrap_err();
        assert!(error.contains(expected), "{error}");
        let shows_secret = error.contains("secret\"") || error.contains(&digest);
        assert!(!shows_secret, "{error}");
    }
}

#[test]
fn a_principal_can_have_several_tokens_while_they_are_replaced() {
    let [old, new] = ["old", "new"].map(|token| TokenDigest::of(token).to_hex());
    let text = format!(
        "[[principal]]\nname = \"a\"\ntoken_sha256 = [\"{old}\", \"{new}\"]\nroles = [\"train\"]"
    );
    let access = principals(&text).unwrap();
    for token in ["Bearer old", "Bearer new"] {
        assert_eq!(caller(&access, &[token]).as_deref(), Some("a"));
    }
}

#[test]
fn addresses_are_exposed_unless_they_are_loopback() {
    for (address, expected) in [
        ("127.0.0.1:1", false),
        ("127.9.9.9:1", false),
        ("[::1]:1", false),
        ("[::ffff:127.0.0.1]:1", false),
        ("0.0.0.0:1", true),
        ("[::]:1", true),
        ("192.168.0.7:1", true),
    ] {
        assert_eq!(is_exposed(address.parse().unwrap()), expected, "{address}");
    }
}
