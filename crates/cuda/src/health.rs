//! What is known about a GPU while it is in use: whether it has failed, and
//! what is reported about it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use charlstm_model::decode_step::DecodeError;

use crate::error::CudaError;

/// What happened to a GPU that is used for decode steps.
#[derive(Clone, Copy, Debug)]
pub enum CudaEvent<'a> {
    /// The GPU has failed and is not used any more. Reported once.
    Failed(&'a CudaError),
    /// A model does not fit the GPU and runs on the CPU.
    ModelOnProcessor(&'a CudaError),
    /// What the scores of a model need does not fit the GPU, and they run on
    /// the CPU.
    ScoresOnProcessor(&'a CudaError),
}

/// A callback for what happens to a GPU. It is called on any thread and must not
/// block.
pub type OnEvent = Box<dyn Fn(CudaEvent<'_>) + Send + Sync>;

/// Whether a GPU can still be used, and whom its events are reported to.
pub(crate) struct Health {
    has_failed: AtomicBool,
    on_event: OnEvent,
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health")
            .field("is_usable", &self.is_usable())
            .finish_non_exhaustive()
    }
}

impl Health {
    pub(crate) fn new(on_event: OnEvent) -> Self {
        Self {
            has_failed: AtomicBool::new(false),
            on_event,
        }
    }

    pub(crate) fn is_usable(&self) -> bool {
        !self.has_failed.load(Ordering::Acquire)
    }

    /// Uploads something to the GPU. `None` if the GPU cannot be used for it; `avoid`
    /// records why.
    pub(crate) fn upload<T>(
        &self,
        upload: impl FnOnce() -> Result<T, CudaError>,
        avoid: impl FnOnce(&Self, CudaError),
    ) -> Option<Arc<T>> {
        if !self.is_usable() {
            return None;
        }
        match upload() {
            Ok(uploaded) => Some(Arc::new(uploaded)),
            Err(error) => {
                avoid(self, error);
                None
            }
        }
    }

    /// Records a failure and returns it as the error of the operation.
    pub(crate) fn report(&self, error: CudaError) -> DecodeError {
        if !self.has_failed.swap(true, Ordering::AcqRel) {
            (self.on_event)(CudaEvent::Failed(&error));
        }
        DecodeError(Box::new(error))
    }

    /// Records why a model or a batch runs on the CPU.
    pub(crate) fn avoid(&self, error: CudaError) {
        if is_too_large(&error) {
            (self.on_event)(CudaEvent::ModelOnProcessor(&error));
        } else {
            // Nothing has been generated that would have to end with it.
            drop(self.report(error));
        }
    }

    /// Records why the scores of a model run on the CPU.
    pub(crate) fn avoid_scores(&self, error: CudaError) {
        if is_too_large(&error) {
            (self.on_event)(CudaEvent::ScoresOnProcessor(&error));
        } else {
            drop(self.report(error));
        }
    }
}

/// Whether a model does not fit a sound GPU.
fn is_too_large(error: &CudaError) -> bool {
    matches!(
        error,
        CudaError::OutOfMemory { .. } | CudaError::NetworkTooLarge { .. }
    )
}
