"""What the server reports about trainings."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from charlstm.message import from_message
from charlstm.v1 import training_pb2 as pb


class State(enum.Enum):
    """State of a training."""

    #: A state of a newer version of the contract.
    UNSPECIFIED = "unspecified"
    #: Running.
    RUNNING = "running"
    #: Ended, and published a model version.
    SUCCEEDED = "succeeded"
    #: Ended because it was cancelled. Can be resumed.
    CANCELLED = "cancelled"
    #: Ended with an error.
    FAILED = "failed"
    #: The server stopped before the training ended. Can be resumed.
    INTERRUPTED = "interrupted"
    #: Waiting for other trainings to end.
    QUEUED = "queued"


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """What a training trains, and how. docs/api.md describes the fields."""

    model: str
    hidden_size: int | None
    num_layers: int | None
    batch_size: int | None
    sequence_length: int | None
    epochs: int | None
    dropout: float | None
    learning_rate: float | None
    clip_norm: float | None
    validation_fraction: float | None
    seed: int | None
    skip_chars: int | None
    recipe: str | None
    init_from: str | None
    cancel_on_disconnect: bool | None
    sample_prime: str | None
    sample_chars: int | None
    extend_vocabulary: bool | None
    precision: str | None
    weight_decay: float | None
    locked_dropout: bool | None
    recurrent_dropout: float | None
    input_dropout: float | None
    average_decay: float | None


@dataclass(frozen=True, kw_only=True)
class TrainingEvent:
    """An event of a training; there is a subclass for each kind."""

    #: Id of the training.
    training_id: str
    #: Sequence number of the event within the training, from 0.
    sequence: int


@dataclass(frozen=True, kw_only=True)
class TrainingAccepted(TrainingEvent):
    """The training is valid, and starts or waits in the queue."""

    #: Number of characters in the corpus, after `skip_chars`.
    corpus_chars: int
    #: Number of distinct characters in the corpus.
    vocabulary_size: int
    #: Optimizer steps per epoch.
    steps_per_epoch: int
    #: Number of trainable parameters of the model.
    parameters: int
    #: Device that trains: ``cpu`` or ``cuda:N``.
    device: str
    #: The spec with every default filled in.
    resolved_spec: TrainingSpec


@dataclass(frozen=True, kw_only=True)
class StepProgress(TrainingEvent):
    """Progress within an epoch. Not every optimizer step is reported."""

    #: Current epoch, from 1.
    epoch: int
    #: Optimizer steps taken since the start of the training.
    step: int
    #: Optimizer steps of the whole training.
    total_steps: int
    #: Training loss of this step, in nats per character.
    loss: float
    #: Norm of the gradient before clipping.
    gradient_norm: float
    #: Training speed since the last step event.
    chars_per_second: float
    #: Estimated seconds until the training ends.
    eta_seconds: float
    #: Learning rate of this step.
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class EpochProgress(TrainingEvent):
    """An epoch was completed."""

    #: The epoch, from 1.
    epoch: int
    #: Mean training loss of the epoch, in nats per character.
    train_loss: float
    #: Loss on the held-out text, in nats per character; None if there is none.
    validation_loss: float | None
    #: The validation loss (if None, the training loss), in bits per character.
    bits_per_char: float
    #: Duration of the epoch.
    seconds: float
    #: Training speed over the epoch.
    chars_per_second: float
    #: Sample of generated text, including its prompt.
    sample: str
    #: Optimizer steps taken since the start of the training.
    step: int
    #: True if `validation_loss` is the lowest so far.
    best: bool


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(TrainingEvent):
    """A checkpoint was saved. A resumed training continues from it."""

    #: Optimizer steps taken when it was saved.
    step: int


@dataclass(frozen=True, kw_only=True)
class CheckpointFailed(TrainingEvent):
    """A checkpoint or the finished model could not be saved; the server tries again."""

    #: Optimizer steps taken at the state that could not be saved.
    step: int
    #: The reason, for people.
    message: str


@dataclass(frozen=True, kw_only=True)
class TrainingResumed(TrainingEvent):
    """The training had ended and was resumed."""

    #: Number of the run that begins: 2 at the first resume.
    run: int
    #: Optimizer steps taken at the checkpoint from which it resumes.
    step: int
    #: Name of the replica that resumes it; empty if there are no replicas.
    replica: str
    #: Device that trains: ``cpu`` or ``cuda:N``.
    device: str
    #: CPU threads that train.
    threads: int
    #: Type of the inputs of all matrix products: ``float32`` or ``bf16``.
    precision: str
    #: Instruction set that trains, such as ``avx512``, or ``cuda``.
    instructions: str
    #: Set if the training was computed with other instructions before.
    message: str


@dataclass(frozen=True, kw_only=True)
class TrainingRolledBack(TrainingEvent):
    """The training diverged, and continues from a checkpoint with a lower learning rate."""

    #: Step at which it diverged.
    step: int
    #: Loss at that step; may be NaN or infinite.
    loss: float
    #: Step of the checkpoint that it was rolled back to.
    checkpoint_step: int
    #: New peak learning rate of the optimizer.
    learning_rate: float
    #: Number of times that this training has been rolled back, from 1.
    attempt: int
    #: Description of the failure, for people.
    message: str


@dataclass(frozen=True, kw_only=True)
class TrainingFinished(TrainingEvent):
    """The training ended. Always the last event."""

    #: Final state.
    state: State
    #: Name of the model.
    model: str
    #: Version that was published, from 1; 0 if none was.
    version: int
    #: Mean training loss of the last completed epoch, in nats per character.
    train_loss: float
    #: Validation loss of the published model, in nats per character.
    validation_loss: float | None
    #: If the training did not succeed: the reason, for people.
    message: str
    #: Epoch whose weights were published; None if none were.
    best_epoch: int | None

    @property
    def reference(self) -> str:
        """The published model version, as ``NAME@VERSION``."""
        return f"{self.model}@{self.version}"


@dataclass(frozen=True, kw_only=True)
class TrainingInfo:
    """What the server knows about a training."""

    #: Id of the training.
    training_id: str
    #: Its state.
    state: State
    #: The spec with every default filled in.
    spec: TrainingSpec
    #: When it was accepted, in milliseconds since 1970-01-01 UTC.
    created_unix_ms: int
    #: Number of completed epochs.
    epochs_completed: int
    #: Optimizer steps taken.
    step: int
    #: Optimizer steps of the whole training.
    total_steps: int
    #: Mean training loss of the last completed epoch, in nats per character.
    train_loss: float | None
    #: Validation loss of the last completed epoch, in nats per character.
    validation_loss: float | None
    #: Version that was published, from 1; 0 if none was.
    version: int
    #: If the training did not succeed: the reason, for people.
    message: str
    #: Principal that started it; ``admin`` without principals.
    owner: str
    #: SHA-256 of the corpus, in hexadecimal.
    corpus_sha256: str


#: Several trainings. (Classes with a method `list` cannot name the type.)
TrainingInfos = list[TrainingInfo]

#: The class of each kind of event, by the name of its field.
_KINDS: dict[str, type[TrainingEvent]] = {
    "accepted": TrainingAccepted,
    "step": StepProgress,
    "epoch": EpochProgress,
    "checkpoint": CheckpointSaved,
    "finished": TrainingFinished,
    "rolled_back": TrainingRolledBack,
    "checkpoint_failed": CheckpointFailed,
    "resumed": TrainingResumed,
}


def training_event(response: pb.TrainResponse | pb.WatchTrainingResponse) -> TrainingEvent | None:
    """Converts a response; None for a kind of event of a newer contract."""
    kind = response.WhichOneof("event")
    if kind is None:
        return None
    return from_message(
        _KINDS[kind],
        getattr(response, kind),
        training_id=response.training_id,
        sequence=response.sequence,
    )
