//! The responses of `POST /v1/completions`.

use std::time::{SystemTime, UNIX_EPOCH};

use charlstm_proto::v1 as pb;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

/// A generated text, or a part of a stream. A token is a character.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Completion {
    /// Id of the response.
    pub(super) id: String,
    /// `text_completion`.
    pub(super) object: &'static str,
    /// When the response began, in seconds since 1970-01-01 UTC.
    pub(super) created: u64,
    /// Model, as `name@version`.
    pub(super) model: String,
    /// What determines the text besides request and model.
    pub(super) system_fingerprint: String,
    /// The texts.
    pub(super) choices: Vec<Choice>,
    /// Number of characters. In a stream only in the last event, and only if
    /// `stream_options.include_usage` is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Usage>,
    /// Session; not set if no state is kept. (Extension)
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) session_id: Option<String>,
    /// Number of characters that the session has seen: the
    /// `expected_position` of the next call. In a stream, after this event.
    /// (Extension)
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) position: Option<u64>,
    /// Seed of the first text. (Extension)
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seed: Option<u64>,
    /// Number format of the computation. (Extension)
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) precision: Option<String>,
}

/// One text.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Choice {
    /// The text, or its next part.
    pub(super) text: String,
    /// Number of the text in the response, from 0.
    pub(super) index: usize,
    /// Set if `logprobs` is.
    pub(super) logprobs: Option<Logprobs>,
    /// Why the text ended; `null` while it has not.
    pub(super) finish_reason: Option<&'static str>,
    /// Seed of this text. (Extension)
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seed: Option<u64>,
}

/// The characters of a text with their probabilities.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct Logprobs {
    /// The characters.
    pub(super) tokens: Vec<String>,
    /// Natural logarithm of the probability of each, before sampling filters;
    /// `null` for the first character of a prompt, which nothing predicts.
    pub(super) token_logprobs: Vec<Option<f32>>,
    /// Position of each in the text.
    pub(super) text_offset: Vec<usize>,
    /// Always `null`: other characters are not reported.
    pub(super) top_logprobs: Option<()>,
}

/// Numbers of characters.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// Characters of all prompts.
    pub(super) prompt_tokens: u64,
    /// Characters of all texts.
    pub(super) completion_tokens: u64,
    /// Both.
    pub(super) total_tokens: u64,
}

impl Usage {
    pub(super) fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        }
    }
}

impl Logprobs {
    /// Returns the characters of `text` with the first of `logprobs`, one for each
    /// character. The first character has the position `offset`.
    pub(super) fn new(
        text: &str,
        logprobs: impl Iterator<Item = Option<f32>>,
        offset: usize,
    ) -> Self {
        let tokens: Vec<String> = text.chars().map(String::from).collect();
        Self {
            token_logprobs: logprobs.take(tokens.len()).collect(),
            text_offset: (offset..offset + tokens.len()).collect(),
            tokens,
            top_logprobs: None,
        }
    }

    /// Adds the characters that follow.
    pub(super) fn append(&mut self, text: &str, logprobs: impl Iterator<Item = Option<f32>>) {
        let next = Self::new(text, logprobs, self.tokens.len());
        self.tokens.extend(next.tokens);
        self.token_logprobs.extend(next.token_logprobs);
        self.text_offset.extend(next.text_offset);
    }
}

impl Completion {
    /// A response without texts, computed as `started` says.
    pub(super) fn new(started: &pb::GenerationStarted) -> Self {
        let session = &started.session_id;
        let created = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            id: format!("cmpl-{}", Uuid::new_v4().simple()),
            object: "text_completion",
            created: created.map_or(0, |time| time.as_secs()),
            model: format!("{}@{}", started.model, started.version),
            system_fingerprint: format!(
                "charlstm-{}-{}",
                env!("CARGO_PKG_VERSION"),
                started.precision
            ),
            choices: Vec::new(),
            usage: None,
            session_id: (!session.is_empty()).then(|| session.clone()),
            position: (!session.is_empty()).then_some(started.position),
            seed: Some(started.seed),
            precision: Some(started.precision.clone()),
        }
    }
}

/// Returns what OpenAI's API calls a reason; those that it does not have keep
/// their own name.
pub(super) fn finish_reason(finished: &pb::GenerationFinished) -> &'static str {
    match finished.reason() {
        pb::FinishReason::Length => "length",
        pb::FinishReason::Stop => "stop",
        pb::FinishReason::Cancelled => "cancelled",
        pb::FinishReason::Shutdown | pb::FinishReason::Unspecified => "shutdown",
    }
}
