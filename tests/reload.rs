//! Files that are read again while the server runs.

use std::time::Duration;

use tonic::Code;

use crate::support::Server;
use crate::support::files::write_secret;
use crate::support::principals::{Entry, Fixture};
use crate::support::wire::{self, assert_status};

const PRINCIPALS: [Entry; 3] = [
    Entry::new("alice", &["generate"]),
    Entry::new("bob", &["generate"]),
    Entry::new("root", &["admin"]),
];

/// Waits until the log contains a text.
async fn logged(server: &Server, text: &str) {
    let found = async {
        while !server.log().contains(text) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(wire::LIMIT, found).await;
    assert!(found.is_ok(), "{text:?} is not in {}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_principal_loses_its_calls_and_the_others_keep_theirs() {
    let fixture = Fixture::start(tempfile::tempdir().unwrap(), &PRINCIPALS).await;
    assert_eq!(fixture.train("root", "verse"), Some(0));
    let endless = || wire::endless(wire::start("", 1));
    let mut of_alice = fixture.open("alice", endless()).await.unwrap();
    let mut of_bob = fixture.open("bob", endless()).await.unwrap();
    wire::read(&mut of_alice, 1).await;
    wire::read(&mut of_bob, 1).await;

    // An invalid file changes nothing.
    write_secret(&fixture.file(), "[[principal]]\nname = 7\n");
    logged(&fixture.server, "cannot reload").await;
    wire::read(&mut of_alice, 100).await;

    fixture.rewrite_without("alice");
    // Unread, the stream waits: a fast machine would otherwise end it before.
    logged(&fixture.server, "reloaded").await;
    let ended = tokio::time::timeout(wire::LIMIT, wire::rest(&mut of_alice)).await;
    let status = ended.unwrap().err().unwrap();
    assert_status(&status, Code::Unauthenticated, "CREDENTIALS_REVOKED");
    let rejected = fixture.open("alice", endless()).await.unwrap_err();
    assert_status(&rejected, Code::Unauthenticated, "TOKEN_NEEDED");
    wire::read(&mut of_bob, 100).await;

    fixture.rewrite_without("");
    let call = async || fixture.generate("alice", wire::start("", 1)).await;
    wire::accepted(Code::Unauthenticated, call).await;
    wire::read(&mut of_bob, 100).await;
}
