//! The request of `POST /v1/completions`.

use std::collections::BTreeMap;

use charlstm_proto::v1 as pb;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::ApiError;
use super::prompts::Prompts;

/// Default of OpenAI's API.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Maximum number of texts of one request, as in OpenAI's API.
const MAX_CHOICES: usize = 128;

/// Maximum number of characters of a response that is not streamed: the limit
/// of `GenerateText`.
const MAX_WHOLE_CHARS: u64 = 100_000;

/// Maximum number of characters of prompts whose log-probabilities are
/// returned: each takes some hundred bytes while the response is built.
const MAX_SCORED_CHARS: u64 = MAX_WHOLE_CHARS;

/// Maximum of `logprobs`, as in OpenAI's API.
const MAX_LOGPROBS: u32 = 5;

/// Where the beginnings of texts come from.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "must be a string or a list of strings")]
pub(super) enum Prompt {
    /// One text.
    One(String),
    /// Several texts, each of which is continued on its own.
    List(Vec<String>),
}

/// Strings that end a text.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "must be a string or a list of strings")]
pub(super) enum Stop {
    /// One string.
    One(String),
    /// Several strings, at most 16.
    List(Vec<String>),
}

/// Options of a stream.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamOptions {
    /// Whether the last event has the `usage`. Default false.
    #[serde(default)]
    pub(super) include_usage: Option<bool>,
}

/// What to generate. A token is a character.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CompletionRequest {
    /// Model, as `name` (its latest version) or `name@version`. If empty: the
    /// model of the session, or the only model of the server.
    pub(super) model: String,
    /// The text to continue. May be empty or missing only if an existing
    /// session is continued.
    #[serde(default)]
    pub(super) prompt: Option<Prompt>,
    /// Number of characters to generate. 0 to 1000000 with `stream`, otherwise
    /// 0 to 100000 for all texts together. Default 16.
    #[serde(default)]
    #[schema(maximum = 1_000_000)]
    pub(super) max_tokens: Option<u32>,
    /// Divides the logits. 0 to 100; 0 always picks the most probable character.
    /// Default 1.
    #[serde(default)]
    #[schema(minimum = 0.0, maximum = 100.0)]
    pub(super) temperature: Option<f64>,
    /// Keeps only the most probable characters whose probabilities sum to at
    /// least this value. Above 0, at most 1. Default 1.
    #[serde(default)]
    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
    pub(super) top_p: Option<f64>,
    /// Strings that end a text. They are not part of it.
    #[serde(default)]
    pub(super) stop: Option<Stop>,
    /// Seed of the random numbers; of the text with index `i`, `seed + i`. The
    /// same seed gives the same text as over gRPC.
    #[serde(default)]
    pub(super) seed: Option<u64>,
    /// Whether the text is sent as server-sent events, as it is generated.
    /// Default false.
    #[serde(default)]
    pub(super) stream: Option<bool>,
    /// Options of a stream.
    #[serde(default)]
    pub(super) stream_options: Option<StreamOptions>,
    /// If set, the response has the logarithm of the probability of each
    /// character, with `echo` also of the prompt. 0 to 5; the probabilities of
    /// other characters are not reported.
    #[serde(default)]
    #[schema(maximum = 5)]
    pub(super) logprobs: Option<u32>,
    /// Number of texts for each prompt. 1 to 128; 1 in a session. Default 1.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 128)]
    pub(super) n: Option<u32>,
    /// Whether the prompt is repeated before the text. Default false.
    #[serde(default)]
    pub(super) echo: Option<bool>,
    /// Accepted, and not used.
    #[serde(default)]
    #[expect(dead_code, reason = "accepted for compatibility")]
    pub(super) user: Option<String>,
    /// Keeps only the k most probable characters; 0 keeps all. Default 0.
    /// (Extension)
    #[serde(default)]
    pub(super) top_k: Option<u32>,
    /// Keeps only characters that are at least this many times as probable as
    /// the most probable one. 0 to 1. Default 0. (Extension)
    #[serde(default)]
    #[schema(minimum = 0.0, maximum = 1.0)]
    pub(super) min_p: Option<f64>,
    /// Session to continue, or to create if it does not exist: 1 to 128 of
    /// [a-z A-Z 0-9 . _ : -]. (Extension)
    #[serde(default)]
    pub(super) session_id: Option<String>,
    /// Position that the session must have. If its last call began there, that
    /// call is repeated: the safe way to retry. (Extension)
    #[serde(default)]
    pub(super) expected_position: Option<u64>,
    /// Number format: `float32` or `int8`. Default: that of the session, or the
    /// server's. (Extension)
    #[serde(default)]
    pub(super) precision: Option<String>,
    /// Not supported: must be 1 if set.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1)]
    pub(super) best_of: Option<u32>,
    /// Not supported: must be 0 if set.
    #[serde(default)]
    #[schema(minimum = 0.0, maximum = 0.0)]
    pub(super) frequency_penalty: Option<f64>,
    /// Not supported: must be 0 if set.
    #[serde(default)]
    #[schema(minimum = 0.0, maximum = 0.0)]
    pub(super) presence_penalty: Option<f64>,
    /// Not supported: must be empty if set.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub(super) logit_bias: Option<BTreeMap<String, Value>>,
    /// Not supported: must be empty if set.
    #[serde(default)]
    #[schema(max_length = 0)]
    pub(super) suffix: Option<String>,
}

impl CompletionRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// 400, which names the field.
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut json = serde_json::Deserializer::from_slice(body);
        let request: Self = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            let message = error.inner();
            if path == "." || path == "?" || message.is_syntax() || message.is_eof() {
                return ApiError::bad_body(message);
            }
            ApiError::invalid(&path, message)
        })?;
        json.end().map_err(ApiError::bad_body)?;
        request.check_unsupported()?;
        Ok(request)
    }

    /// Rejects what this server cannot do.
    fn check_unsupported(&self) -> Result<(), ApiError> {
        let default = |is_default: bool, field: &str, value: &str| {
            if is_default {
                return Ok(());
            }
            let message = format!("is not supported; leave it out, or set it to {value}");
            Err(ApiError::invalid(field, message))
        };
        let is_zero = |value: Option<f64>| value.is_none_or(|value| value == 0.0);
        default(self.best_of.is_none_or(|count| count == 1), "best_of", "1")?;
        default(is_zero(self.frequency_penalty), "frequency_penalty", "0")?;
        default(is_zero(self.presence_penalty), "presence_penalty", "0")?;
        let no_bias = self.logit_bias.as_ref().is_none_or(BTreeMap::is_empty);
        default(no_bias, "logit_bias", "{}")?;
        let no_suffix = self.suffix.as_ref().is_none_or(String::is_empty);
        default(no_suffix, "suffix", "null")?;
        if self.scores_prompts() && self.has_session() {
            let message = "is not supported together with echo in a session: a prompt is \
                           scored as the beginning of a text";
            return Err(ApiError::invalid("logprobs", message));
        }
        if let Some(logprobs) = self.logprobs.filter(|&count| count > MAX_LOGPROBS) {
            let message = format!("must be 0 to {MAX_LOGPROBS}, not {logprobs}");
            return Err(ApiError::invalid("logprobs", message));
        }
        Ok(())
    }

    pub(super) fn streams(&self) -> bool {
        self.stream.unwrap_or_default()
    }

    pub(super) fn echoes(&self) -> bool {
        self.echo.unwrap_or_default()
    }

    /// Whether the response has the log-probabilities of the prompts.
    pub(super) fn scores_prompts(&self) -> bool {
        self.echoes() && self.logprobs.is_some()
    }

    pub(super) fn includes_usage(&self) -> bool {
        let options = self.stream_options.as_ref();
        options
            .and_then(|options| options.include_usage)
            .unwrap_or_default()
    }

    pub(super) fn has_session(&self) -> bool {
        self.session_id.as_ref().is_some_and(|id| !id.is_empty())
    }

    /// Takes the prompts out of the request.
    ///
    /// # Errors
    /// 400: too many or too long, or several in one session.
    pub(super) fn take_prompts(&mut self) -> Result<Prompts, ApiError> {
        let texts = match self.prompt.take() {
            None => vec![String::new()],
            Some(Prompt::One(prompt)) => vec![prompt],
            Some(Prompt::List(prompts)) => prompts,
        };
        let n = self.n.unwrap_or(1) as usize;
        if n == 0 || n > MAX_CHOICES {
            let message = format!("must be 1 to {MAX_CHOICES}, not {n}");
            return Err(ApiError::invalid("n", message));
        }
        let count = texts.len().saturating_mul(n);
        if texts.is_empty() || count > MAX_CHOICES {
            let max_texts = MAX_CHOICES / n;
            let message = format!("must have 1 to {max_texts} texts, not {}", texts.len());
            return Err(ApiError::invalid("prompt", message));
        }
        if self.has_session() && count > 1 {
            let field = if n > 1 { "n" } else { "prompt" };
            let message = "must be a single text in a session";
            return Err(ApiError::invalid(field, message));
        }
        let max_chars = self.max_chars();
        let total = u64::from(max_chars) * count as u64;
        if !self.streams() && total > MAX_WHOLE_CHARS {
            let message = format!(
                "must be at most {MAX_WHOLE_CHARS}, divided by the number of texts ({count}), \
                 without stream; not {max_chars}"
            );
            return Err(ApiError::invalid("max_tokens", message));
        }
        let prompts = Prompts::new(texts, n);
        let scored = prompts.total_chars();
        if self.scores_prompts() && scored > MAX_SCORED_CHARS {
            let message = format!(
                "must have at most {MAX_SCORED_CHARS} characters with echo and logprobs, in all \
                 texts together; not {scored}"
            );
            return Err(ApiError::invalid("prompt", message));
        }
        Ok(prompts)
    }

    fn max_chars(&self) -> u32 {
        self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)
    }

    /// Returns the generation of the text with this index.
    pub(super) fn generate_request(&self, prompt: String, index: usize) -> pb::GenerateRequest {
        let stop = match &self.stop {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop.clone()],
            Some(Stop::List(stops)) => stops.clone(),
        };
        pb::GenerateRequest {
            model: self.model.clone(),
            prime: prompt,
            max_chars: Some(self.max_chars()),
            session_id: self.session_id.clone(),
            sampling: Some(pb::Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                seed: self.seed.map(|seed| seed.wrapping_add(index as u64)),
                greedy: None,
                min_p: self.min_p,
            }),
            stop,
            logprobs: self.logprobs.map(|_| true),
            expected_position: self.expected_position,
            precision: self.precision.clone(),
            ..pb::GenerateRequest::default()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: &Value) -> Result<CompletionRequest, ApiError> {
        CompletionRequest::parse(value.to_string().as_bytes())
    }

    /// The generations that a request asks for.
    fn generations(value: &Value) -> Vec<pb::GenerateRequest> {
        let mut request = parse(value).unwrap();
        let mut prompts = request.take_prompts().unwrap();
        let indices = 0..prompts.count();
        indices
            .map(|index| request.generate_request(prompts.take(index), index))
            .collect()
    }

    /// The field that a request is rejected for.
    fn violation(value: &Value) -> String {
        let rejected = parse(value).and_then(|mut request| request.take_prompts());
        let error = rejected.unwrap_err().body().error;
        error
            .param
            .unwrap_or_else(|| panic!("no field in {:?}", error.message))
    }

    #[test]
    fn fields_that_are_not_set_or_null_have_the_defaults_of_openai() {
        for value in [
            json!({"model": "m", "prompt": "a"}),
            json!({"model": "m", "prompt": "a", "max_tokens": null, "n": null, "stop": null,
                   "logit_bias": {}, "best_of": 1, "suffix": null, "presence_penalty": 0}),
        ] {
            let generates = generations(&value);
            assert_eq!(generates.len(), 1);
            let generate = &generates[0];
            assert_eq!(
                (generate.max_chars, generate.prime.as_str()),
                (Some(16), "a")
            );
            assert_eq!(generate.sampling, Some(pb::Sampling::default()));
        }
    }

    #[test]
    fn each_text_of_a_request_has_its_own_seed() {
        let value = json!({"model": "m", "prompt": ["a", "b"], "n": 2, "seed": 7, "echo": true});
        let texts = generations(&value).into_iter().map(|generate| {
            let seed = generate.sampling.unwrap().seed.unwrap();
            (generate.prime, seed)
        });
        let expected = [("a", 7), ("a", 8), ("b", 9), ("b", 10)];
        let expected = expected.map(|(prompt, seed)| (prompt.to_owned(), seed));
        assert_eq!(texts.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_not_supported_is_rejected_by_its_name() {
        for (field, value) in [
            ("best_of", json!(2)),
            ("frequency_penalty", json!(0.5)),
            ("presence_penalty", json!(-1)),
            ("logit_bias", json!({"50256": -100})),
            ("suffix", json!("end")),
            ("n", json!(0)),
            ("n", json!(129)),
            ("prompt", json!([])),
            ("prompt", json!([1, 2])),
            ("prompt", json!(5)),
            ("stop", json!([5])),
            ("max_tokens", json!(100_001)),
            ("max_tokens", json!(-1)),
            ("max_tokens", json!("16")),
            ("logprobs", json!(6)),
            ("temperature", json!("hot")),
            ("seed", json!(-1)),
            ("tempreture", json!(1)),
            ("stream_options.usage", json!(null)),
        ] {
            let (outer, inner) = field.split_once('.').unwrap_or((field, ""));
            let value = if inner.is_empty() {
                value
            } else {
                json!({ inner: value })
            };
            let mut request = json!({"model": "m", "prompt": "a"});
            request[outer] = value;
            assert_eq!(violation(&request), field, "{request}");
        }
        let in_session = json!({"model": "m", "prompt": "a", "echo": true, "logprobs": 0,
                                "session_id": "s"});
        assert_eq!(violation(&in_session), "logprobs");
        let long = json!({"model": "m", "prompt": "a".repeat(50_001), "n": 2, "echo": true,
                          "logprobs": 0, "stream": true});
        assert_eq!(violation(&long), "prompt");
        let missing = json!({"prompt": "a"});
        assert!(
            parse(&missing)
                .unwrap_err()
                .body()
                .error
                .message
                .contains("model")
        );
    }

    #[test]
    fn a_session_has_one_text() {
        let session = json!({"model": "m", "prompt": ["a", "b"], "session_id": "s"});
        assert_eq!(violation(&session), "prompt");
        let session = json!({"model": "m", "prompt": "a", "n": 2, "session_id": "s"});
        assert_eq!(violation(&session), "n");
    }

    #[test]
    fn a_body_that_is_not_json_is_rejected() {
        for body in ["", "{", "[]", "null", "{\"model\": \"m\"} x", "\u{0}"] {
            assert!(CompletionRequest::parse(body.as_bytes()).is_err(), "{body}");
        }
    }
}
