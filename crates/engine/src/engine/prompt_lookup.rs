//! Looks the prompt of a call up in the prompt cache.

use std::sync::Arc;

use charlstm_model::decode_step::Arithmetic;
use charlstm_store::session::Owner;

use super::model_ref::EncodedText;
use super::opening::CallStart;
use super::{Engine, compute};
use crate::error::GenerateError;
use crate::prompt_cache::{CachedPrompt, PromptScope};

/// Prompts of at most this many characters are hashed on the calling task,
/// which takes some microseconds.
const INLINE_CHARS: usize = 4096;

impl Engine {
    /// Looks up a prompt, if it is fed from the zero state and not too short.
    pub(super) async fn look_up_prompt(
        &self,
        owner: &Owner,
        start: &CallStart,
        prompt: &mut EncodedText,
    ) -> Result<Option<CachedPrompt>, GenerateError> {
        let state = start.state.as_ref();
        if state.is_some_and(|state| state.network.is_some() || !state.unfed.is_empty()) {
            return Ok(None);
        }
        let cache = Arc::clone(&self.shared.prompt_cache);
        let (digest, owner) = (start.identity.digest, owner.clone());
        let arithmetic = Arithmetic {
            precision: start.identity.precision,
            revision: start.identity.revision,
        };
        let tokens = std::mem::take(&mut prompt.tokens);
        let is_short = tokens.len() <= INLINE_CHARS;
        let look_up = move || {
            let scope = PromptScope {
                digest: &digest,
                arithmetic,
                owner: &owner,
            };
            let cached = cache.look_up(&scope, &tokens);
            (tokens, cached)
        };
        let (tokens, cached) = compute(is_short, look_up).await?;
        prompt.tokens = tokens;
        Ok(cached)
    }
}
