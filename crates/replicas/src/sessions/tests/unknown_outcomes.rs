//! Commits whose first attempt may have been carried out.

use charlstm_store::session::SessionError;

use super::*;

/// Makes the first commit fail as if the response was lost, and rejects all
/// later ones. The sequence counts the attempts: it is not rolled back.
const FAILING_COMMITS: [&str; 2] = [
    "CREATE SEQUENCE attempts",
    "CREATE OR REPLACE FUNCTION session_commit(
        p_owners text[], p_ids text[], p_tokens uuid[], p_commit_ids uuid[], p_models text[],
        p_model_versions bigint[], p_digests bytea[], p_precisions smallint[],
        p_revisions integer[], p_positions bigint[], p_last_call_positions bigint[],
        p_created_ms bigint[], p_bytes integer[], p_records bytea[]
    ) RETURNS TABLE (o_token uuid, o_outcome text, o_replica text) LANGUAGE plpgsql AS $$
    BEGIN
        IF nextval('attempts') = 1 THEN
            RAISE EXCEPTION 'shutting down' USING ERRCODE = 'admin_shutdown';
        END IF;
        RAISE EXCEPTION 'rejected' USING ERRCODE = 'check_violation';
    END $$",
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
