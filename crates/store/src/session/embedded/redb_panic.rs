//! redb answers some kinds of damage with a panic. Here it becomes an error.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use super::database::DatabaseError;

thread_local! {
    /// Whether a panic of this thread becomes an error.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs redb so that a panic is [`DatabaseError::Damaged`] and is not printed.
pub(super) fn guarded<T>(
    run: impl FnOnce() -> Result<T, DatabaseError>,
) -> Result<T, DatabaseError> {
    silence_guarded_panics();
    let was_guarded = IS_GUARDED.replace(true);
    // Whatever was being changed is dropped with the transaction.
    let outcome = catch_unwind(AssertUnwindSafe(run));
    IS_GUARDED.set(was_guarded);
    outcome.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(DatabaseError::Damaged(
            text.unwrap_or("a check failed").to_owned(),
        ))
    })
}

/// Keeps the panic hook of the process from printing what becomes an error: the
/// user would see a stack trace in front of the message.
fn silence_guarded_panics() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let hook = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_GUARDED.get() {
                hook(panic);
            }
        }));
    });
}
