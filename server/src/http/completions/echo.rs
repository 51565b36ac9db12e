//! What is sent before a generated text: its prompt, with `echo`.

use std::sync::Arc;

use super::prompts::Prompts;
use super::request::CompletionRequest;
use super::response::Logprobs;
use super::{ApiError, ApiState};
use crate::rpc::call_context::CallContext;

/// What is sent before a text. Copies share their content.
#[derive(Clone, Debug, Default)]
pub(super) struct Echo {
    /// The prompt; empty without `echo`.
    pub(super) text: Arc<str>,
    /// Natural logarithm of the probability of each character of the prompt but
    /// the first, if they are requested.
    logprobs: Arc<[f32]>,
}

impl Echo {
    /// Returns the characters of the prompt with their log-probabilities. The
    /// first has none: nothing predicts it.
    pub(super) fn logprobs(&self) -> Logprobs {
        let first = std::iter::once(None);
        let predicted = self.logprobs.iter().copied().map(Some);
        Logprobs::new(&self.text, first.chain(predicted), 0)
    }

    /// Returns what is sent before the texts of each prompt. If the prompts are
    /// scored, `request` then names the version that has scored them.
    ///
    /// # Errors
    /// Those of `Score`.
    pub(super) async fn of_prompts(
        state: &ApiState,
        context: &CallContext,
        request: &mut CompletionRequest,
        prompts: &Prompts,
    ) -> Result<Vec<Self>, ApiError> {
        if !request.echoes() {
            return Ok(vec![Self::default(); prompts.texts().len()]);
        }
        let mut echoes = Vec::with_capacity(prompts.texts().len());
        for prompt in prompts.texts() {
            let mut echo = Self {
                text: prompt.as_str().into(),
                logprobs: Arc::default(),
            };
            // A single character has nothing to predict.
            if request.scores_prompts() && prompt.chars().nth(1).is_some() {
                let generation = &state.generation;
                let score = generation.score_prompt(&request.model, prompt, context);
                let scored = score.await?;
                request.model = scored.model;
                echo.logprobs = scored.logprobs.into();
            }
            echoes.push(echo);
        }
        Ok(echoes)
    }
}
