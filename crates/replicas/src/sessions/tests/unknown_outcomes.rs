//! Commits whose first attempt may have been carried out.

use charlstm_store::session::SessionError;
use charlstm_store::session::testing::fixture::key;

use super::lossy_link::{Loss, LossyLink};
use super::*;
use crate::database::DatabaseSettings;
use crate::testing::test_database_url;

/// Makes the first commit fail as if the response was lost, and rejects all
/// later ones. The sequence counts the attempts: it is not rolled back.
const FAILING_COMMITS: [&str; 3] = [
    "CREATE SEQUENCE attempts",
    "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF nextval('attempts') = 1 THEN
            RAISE EXCEPTION 'shutting down' USING ERRCODE = 'admin_shutdown';
        END IF;
        RAISE EXCEPTION 'rejected' USING ERRCODE = 'check_violation';
    END $$",
    "CREATE TRIGGER failing BEFORE INSERT OR UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION fail()",
];

#[tokio::test]
async fn a_commit_that_is_rejected_when_it_is_repeated_has_an_unknown_outcome() {
    let Some(database) = test_database().await else {
        return;
    };
    let one = fixture(&replica(database.clone(), "one", SessionLimits::default()).await);
    let opened = one.open("a").await.unwrap();
    for statement in FAILING_COMMITS {
        database.fetch_all(sqlx::query(statement)).await.unwrap();
    }
    let outcome = one.finish(opened, 5, "p").await;
    assert_eq!(outcome, Err(SessionError::CommitUnknown));
}

/// Two replicas on a new database, one of which is connected by a link that loses
/// what a test wants, and the database; `None` if PostgreSQL is not installed.
async fn behind_a_lossy_link() -> Option<(Fixture, Fixture, LossyLink, Database)> {
    let url = test_database_url().await?;
    let link = LossyLink::start(&url).await;
    let connect = async |url| {
        let settings = DatabaseSettings::new(url);
        Database::connect(settings).await.unwrap()
    };
    let (database, behind) = (connect(url).await, connect(link.url()).await);
    let one = fixture(&replica(behind, "one", SessionLimits::default()).await);
    let two = fixture(&replica(database.clone(), "two", SessionLimits::default()).await);
    one.call(ID, 10).await.unwrap();
    Some((one, two, link, database))
}

/// Part of the statement of a commit, and of no other one in these tests: what else
/// concerns the session is sent before, or on the connection of the other replica.
const ID: &str = "whose-commit-is-lost";

#[tokio::test]
async fn a_commit_whose_answer_or_statement_was_lost_is_carried_out_once() {
    let Some((one, two, link, _)) = behind_a_lossy_link().await else {
        return;
    };
    let mut position = 10;
    for loss in [Loss::Answer, Loss::Statement, Loss::Answer] {
        let opened = one.open(ID).await.unwrap();
        link.lose(loss, ID);
        let lost = async {
            link.wait_until_lost().await;
            // Seen by the other replica if it was carried out, and only then.
            let found = two.position(ID).await;
            link.resume();
            found
        };
        let (outcome, found) = tokio::join!(one.finish(opened, 7, "p"), lost);
        outcome.unwrap();
        let is_carried_out = loss == Loss::Answer;
        assert_eq!(found, position + if is_carried_out { 7 } else { 0 });
        position += 7;
        assert_eq!(two.position(ID).await, position);
        two.call(ID, 1).await.unwrap();
        position += 1;
    }
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_before_another_replica_continued_is_unknown() {
    let Some((one, two, link, _)) = behind_a_lossy_link().await else {
        return;
    };
    let opened = one.open(ID).await.unwrap();
    link.lose(Loss::Answer, ID);
    let taken_over = async {
        link.wait_until_lost().await;
        two.call(ID, 3).await.unwrap();
        link.resume();
    };
    let (outcome, ()) = tokio::join!(one.finish(opened, 7, "p"), taken_over);
    assert_eq!(outcome, Err(SessionError::CommitUnknown));
    // The repeat of the call finds out that the session is further.
    let repeated = one.open_at(ID, 10).await.unwrap_err();
    let further = SessionError::PositionMismatch {
        expected: 10,
        position: 20,
        last_call_position: 17,
    };
    assert_eq!(repeated, further);
}

#[tokio::test]
async fn a_commit_that_was_lost_before_another_replica_took_over_is_never_carried_out() {
    let Some((one, two, link, database)) = behind_a_lossy_link().await else {
        return;
    };
    let opened = one.open(ID).await.unwrap();
    link.lose(Loss::Statement, ID);
    let taken_over = async {
        link.wait_until_lost().await;
        expire_leases(&database).await;
        two.call(ID, 3).await.unwrap();
        link.resume();
    };
    let (outcome, ()) = tokio::join!(one.finish(opened, 7, "p"), taken_over);
    // It cannot know that the first attempt was not carried out.
    assert_eq!(outcome, Err(SessionError::CommitUnknown));
    assert_eq!(two.position(ID).await, 13);
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_not_repeated_in_a_session_that_was_created_again() {
    let Some((one, two, link, _)) = behind_a_lossy_link().await else {
        return;
    };
    let opened = one.open(ID).await.unwrap();
    link.lose(Loss::Answer, ID);
    let created_again = async {
        link.wait_until_lost().await;
        two.storage.delete(&key(ID)).await.unwrap();
        two.call(ID, 3).await.unwrap();
        link.resume();
    };
    let (outcome, ()) = tokio::join!(one.finish(opened, 7, "p"), created_again);
    assert_eq!(outcome, Err(SessionError::CommitUnknown));
    assert_eq!(two.position(ID).await, 3);
}
