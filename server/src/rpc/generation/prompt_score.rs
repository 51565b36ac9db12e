//! The log-probabilities of a prompt, for responses that repeat it.

use charlstm_engine::{ScoreCall, UnknownCharacters};
use tonic::Status;

use super::{CallContext, GenerationRpc, before, status};

/// A prompt that was scored.
#[derive(Clone, Debug)]
pub(crate) struct PromptScore {
    /// The model version that has scored it, as NAME@VERSION.
    pub(crate) model: String,
    /// Natural logarithm of the probability of each character but the first, in
    /// float32.
    pub(crate) logprobs: Vec<f32>,
}

impl GenerationRpc {
    /// Scores a prompt as the beginning of a text.
    ///
    /// # Errors
    /// Those of `Score`, with the field `prime`.
    pub(crate) async fn score_prompt(
        &self,
        model: &str,
        prompt: &str,
        context: &CallContext,
    ) -> Result<PromptScore, Status> {
        context.record.requested(model, "", prompt);
        let call = ScoreCall {
            caller: context.caller.name().into(),
            model: model.to_owned(),
            unknown: UnknownCharacters::Reject,
            logprobs: true,
            deadline: context.deadline,
        };
        let score = async {
            let mut scorer = self.engine.score(call).await?;
            let part = scorer.push(prompt.to_owned()).await?;
            Ok(PromptScore {
                model: scorer.model().to_string(),
                logprobs: part.logprobs,
            })
        };
        let scored = before(context.deadline, score).await;
        scored.map_err(|error| status::generate_error(&error, "prime"))
    }
}
