//! What is known of a call, for its line in the log and its trace.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tonic::codegen::http::{Extensions, HeaderMap};

/// The metadata with the id of a request, in both directions.
pub const REQUEST_ID: &str = "x-request-id";

/// Maximum length of an id that a client chooses: room for a UUID and more.
const MAX_ID_CHARS: usize = 128;

/// Maximum number of characters of a prompt and a text in the log.
const MAX_LOGGED_CHARS: usize = 10_000;

/// Maximum number of characters of a name that a client sent, in the log.
const MAX_NAME_CHARS: usize = 150;

/// What is known of a call. The layers and the service fill it in; clones share
/// it.
#[derive(Clone, Debug)]
pub struct CallRecord(Arc<Record>);

#[derive(Debug)]
struct Record {
    request_id: String,
    logs_text: bool,
    fields: Mutex<CallFields>,
}

/// The times of a generation, for its trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// It has a slot in the batch.
    pub started: Option<Moment>,
    /// Its first text was handed to the transport.
    pub first_text: Option<Moment>,
    /// Its last text was handed to the transport.
    pub last_text: Option<Moment>,
    /// It has ended, and its session is committed.
    pub finished: Option<Moment>,
}

/// A point in time, for durations and for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// For durations.
    pub instant: Instant,
    /// For traces.
    pub time: SystemTime,
}

impl Moment {
    /// Returns the current time.
    pub fn now() -> Self {
        Self {
            instant: Instant::now(),
            time: SystemTime::now(),
        }
    }
}

/// What the log shows of a call.
#[derive(Clone, Debug, Default)]
pub struct CallFields {
    /// Name of the caller.
    pub principal: Option<String>,
    /// The model, as the client named it, or the version that was used.
    pub model: Option<String>,
    /// Id of the session.
    pub session: Option<String>,
    /// Id of the training.
    pub training: Option<String>,
    /// Why the call was rejected before its service saw it.
    pub rejection: Option<String>,
    /// Characters that were sent.
    pub chars: u64,
    /// Messages of text that were sent.
    pub messages: u64,
    /// Time that the transport took to accept text.
    pub sending: Duration,
    /// Times of a generation.
    pub phases: Phases,
    /// The prompt, if texts are logged.
    pub prompt: String,
    /// The text, if texts are logged.
    pub text: String,
}

impl Default for CallRecord {
    /// A record that nobody reads.
    fn default() -> Self {
        Self::new(String::new(), false)
    }
}

impl CallRecord {
    /// The record of a call with this id.
    pub fn new(request_id: String, logs_text: bool) -> Self {
        Self(Arc::new(Record {
            request_id,
            logs_text,
            fields: Mutex::default(),
        }))
    }

    /// Returns the record of a request. Without the layer that logs calls, it is
    /// one that nobody reads.
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_default()
    }

    /// Returns the id of the request.
    pub fn request_id(&self) -> &str {
        &self.0.request_id
    }

    /// Whether prompts and texts may be logged.
    pub fn logs_text(&self) -> bool {
        self.0.logs_text
    }

    /// Returns what is known.
    pub fn fields(&self) -> CallFields {
        self.lock().clone()
    }

    /// Records who calls.
    pub fn principal(&self, name: &str) {
        self.lock().principal = Some(name.to_owned());
    }

    /// Records why the call is rejected.
    pub fn rejected(&self, reason: &str) {
        self.lock().rejection = Some(reason.to_owned());
    }

    /// Records the model and the session that a client named.
    pub fn requested(&self, model: &str, session: &str, prompt: &str) {
        let mut fields = self.lock();
        fields.model = name(model);
        fields.session = name(session);
        if self.0.logs_text {
            fields.prompt = prompt.chars().take(MAX_LOGGED_CHARS).collect();
        }
    }

    /// Records the training.
    pub fn training(&self, id: &str) {
        self.lock().training = name(id);
    }

    /// Records that a generation has a slot, and the model version.
    pub fn started(&self, model: String) {
        let mut fields = self.lock();
        fields.model = Some(model);
        // A request over HTTP can have several texts; the first one counts.
        fields.phases.started.get_or_insert_with(Moment::now);
    }

    /// Records a text that was handed to the transport.
    pub fn text(&self, text: &str, chars: u64) {
        let now = Some(Moment::now());
        let mut fields = self.lock();
        fields.chars += chars;
        fields.messages += 1;
        fields.phases.first_text = fields.phases.first_text.or(now);
        fields.phases.last_text = now;
        if self.0.logs_text {
            let space = MAX_LOGGED_CHARS.saturating_sub(fields.text.chars().count());
            fields.text.extend(text.chars().take(space));
        }
    }

    /// Records that the transport has accepted a text after this time.
    pub fn sent(&self, waited: Duration) {
        self.lock().sending += waited;
    }

    /// Records that a generation has ended and is committed.
    pub fn finished(&self) {
        self.lock().phases.finished = Some(Moment::now());
    }

    fn lock(&self) -> MutexGuard<'_, CallFields> {
        self.0.fields.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns a name that a client sent, shortened; `None` if it is empty.
fn name(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.chars().take(MAX_NAME_CHARS).collect())
}

/// Returns the id that the client chose, if it is 1 to 128 printable ASCII
/// characters, or a new one.
pub fn request_id(headers: &HeaderMap) -> String {
    let given = headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok());
    let is_valid = |id: &&str| {
        (1..=MAX_ID_CHARS).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
    };
    given
        .filter(is_valid)
        .map_or_else(|| format!("{:032x}", rand::random::<u128>()), str::to_owned)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_the_client_is_kept_if_it_is_printable_and_short() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, value.parse().unwrap());
            request_id(&headers)
        };
        assert_eq!(of("order-7/a"), "order-7/a");
        for invalid in ["", "a b", &"x".repeat(129)] {
            assert_eq!(of(invalid).len(), 32, "{invalid:?}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }

    #[test]
    fn texts_are_recorded_only_if_they_may_be_logged() {
        for logs_text in [false, true] {
            let record = CallRecord::new("id".to_owned(), logs_text);
            record.requested("m", "s", "prompt");
            record.text("text", 4);
            let fields = record.fields();
            assert_eq!(fields.chars, 4);
            assert_eq!(fields.prompt == "prompt", logs_text);
            assert_eq!(fields.text == "text", logs_text);
        }
    }
}
