//! The rules of session storage as tests, for every backend.
//!
//! [`session_storage_rules!`](crate::session_storage_rules) makes a module with
//! a test for each rule.
// The names of rules are sentences.
#![allow(missing_docs, clippy::unwrap_used)]

pub mod fixture;
pub mod rules;

/// Makes a module with a test for each rule of session storage.
///
/// `$start` is the name of a function of the module around it, a
/// [`fixture::Start`](crate::session::testing::fixture::Start). The tests are
/// skipped if `$ready` returns false, which is such a function, too.
#[macro_export]
macro_rules! session_storage_rules {
    ($backend:ident, $start:ident, if $ready:ident) => {
        $crate::session_storage_rules!(@rules $backend, $start, $ready, [
            a_commit_is_what_the_next_call_continues_from,
            a_session_that_was_only_opened_does_not_exist,
            a_session_that_is_to_be_created_is_not_shown_and_counts,
            only_one_call_has_a_session,
            the_end_of_a_call_wakes_those_that_wait,
            an_expected_position_must_be_the_end_or_the_beginning_of_the_last_call,
            a_repeat_that_is_cut_off_never_moves_a_session_back,
            a_repeat_that_gets_further_moves_the_session_on,
            a_rewind_with_other_parameters_is_a_new_branch,
            a_call_that_adds_nothing_changes_nothing,
            a_commit_must_fit_what_was_opened,
            deleting_ends_a_running_call_and_frees_the_name,
            a_fork_is_where_the_original_is_and_leaves_it_alone,
            an_exported_record_can_be_imported_under_another_name,
            two_owners_can_use_the_same_id,
            the_least_recently_used_session_is_evicted_for_a_new_one,
            the_limit_on_bytes_evicts_too,
            an_imported_session_that_is_evicted_at_once_was_imported,
            sessions_in_use_are_never_evicted,
            idle_sessions_are_evicted_by_running_time,
            without_limits_no_session_is_ever_too_old,
            a_tombstone_is_kept_until_the_session_is_deleted_or_recreated,
            old_tombstones_make_room_for_new_ones,
            pages_go_from_the_most_recently_used_to_the_least,
            model_versions_in_use_are_counted_and_can_be_retired,
            sessions_of_a_model_can_be_evicted,
            an_owner_has_a_limit_of_its_own,
            a_session_of_another_arithmetic_is_rejected,
            nothing_changes_after_a_shutdown,
            random_calls_leave_what_a_simple_model_predicts,
        ]);
    };
    (@rules $backend:ident, $start:ident, $ready:ident, [$($rule:ident),* $(,)?]) => {
        mod $backend {
            $(
                #[tokio::test]
                async fn $rule() {
                    if super::$ready() {
                        $crate::session::testing::rules::$rule(super::$start).await;
                    }
                }
            )*
        }
    };
}
