"""The logic of the calls of the training service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict

from charlstm.errors import ConnectionLost
from charlstm.flow import (
    Emit,
    Flow,
    Open,
    Rpc,
    Upload,
    change,
    query,
    read,
    stream_ended,
    wait_after,
)
from charlstm.message import from_message
from charlstm.retry import Backoff, Retry
from charlstm.training_events import (
    TrainingFinished,
    TrainingInfo,
    TrainingInfos,
    training_event,
)
from charlstm.v1 import training_pb2 as pb


class TrainingOptions(TypedDict, total=False):
    """How to train. An option that is None or missing has the default of its preset."""

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


def _rpc(method: str) -> Rpc:
    return Rpc("TrainingService", method)


def training_spec(model: str, options: TrainingOptions) -> pb.TrainingSpec:
    """Creates the spec of a training.

    Raises:
        TypeError: An option does not exist.
    """
    unknown = options.keys() - TrainingOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"train() has no option {sorted(unknown)[0]!r}")
    return pb.TrainingSpec(model=model, **options)


class TrainingFlows:
    """The logic of the calls of the training service."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry

    def train(self, spec: pb.TrainingSpec, chunks: Iterator[bytes]) -> Flow[None]:
        """Uploads a text, and emits the events of its training until it has ended.

        After the connection was lost it continues with the next event. An upload is
        not repeated: the training may have started.
        """
        yield Upload(
            _rpc("Train"),
            lambda: pb.TrainRequest(spec=spec),
            chunks,
            lambda chunk: pb.TrainRequest(corpus_chunk=chunk),
            streamed=True,
        )
        progress = _Progress("", 0)
        try:
            yield from self._follow(pb.TrainResponse, progress)
        except ConnectionLost:
            if not progress.training_id:
                raise
            yield from self._watch(progress)

    def watch(self, training_id: str, from_sequence: int) -> Flow[None]:
        """Emits the events of a training until it has ended."""
        yield from self._watch(_Progress(training_id, from_sequence))

    def _watch(self, progress: _Progress) -> Flow[None]:
        backoff = Backoff(self._retry)
        while True:
            sequence = progress.next_sequence
            request = pb.WatchTrainingRequest(
                training_id=progress.training_id, from_sequence=sequence
            )
            try:
                yield Open(_rpc("WatchTraining"), request)
                yield from self._follow(pb.WatchTrainingResponse, progress)
            except ConnectionLost as error:
                if progress.next_sequence > sequence:
                    backoff.reset()
                delay = backoff.pause(error, has_started=False)
                if delay is None:
                    raise
                pause = wait_after(error, delay)
            else:
                return
            yield pause

    def _follow(
        self,
        response_type: type[pb.TrainResponse] | type[pb.WatchTrainingResponse],
        progress: _Progress,
    ) -> Flow[None]:
        """Emits the events of the stream until the training has ended."""
        while (response := (yield from read(response_type))) is not None:
            progress.training_id = response.training_id
            progress.next_sequence = response.sequence + 1
            event = training_event(response)
            if event is None:
                continue
            yield Emit(event)
            if isinstance(event, TrainingFinished):
                return
        raise stream_ended("training")

    def get(self, training_id: str) -> Flow[TrainingInfo]:
        """Describes a training."""
        request = pb.GetTrainingRequest(training_id=training_id)
        rpc = _rpc("GetTraining")
        response = yield from query(rpc, request, pb.GetTrainingResponse, self._retry)
        return from_message(TrainingInfo, response.training)

    def list(self, owner: str | None) -> Flow[TrainingInfos]:
        """Lists trainings."""
        request = pb.ListTrainingsRequest(owner=owner)
        rpc = _rpc("ListTrainings")
        response = yield from query(rpc, request, pb.ListTrainingsResponse, self._retry)
        return [from_message(TrainingInfo, it) for it in response.trainings]

    def cancel(self, training_id: str) -> Flow[TrainingInfo]:
        """Requests the cancellation of a training. Repeating it is safe."""
        request = pb.CancelTrainingRequest(training_id=training_id)
        rpc = _rpc("CancelTraining")
        response = yield from query(rpc, request, pb.CancelTrainingResponse, self._retry)
        return from_message(TrainingInfo, response.training)

    def delete(self, training_id: str) -> Flow[TrainingInfo]:
        """Deletes a training that has ended."""
        request = pb.DeleteTrainingRequest(training_id=training_id)
        rpc = _rpc("DeleteTraining")
        response = yield from change(rpc, request, pb.DeleteTrainingResponse, self._retry)
        return from_message(TrainingInfo, response.training)

    def resume(self, training_id: str) -> Flow[TrainingInfo]:
        """Resumes a training."""
        request = pb.ResumeTrainingRequest(training_id=training_id)
        rpc = _rpc("ResumeTraining")
        response = yield from change(rpc, request, pb.ResumeTrainingResponse, self._retry)
        return from_message(TrainingInfo, response.training)


class _Progress:
    """How far a training was followed."""

    def __init__(self, training_id: str, next_sequence: int) -> None:
        self.training_id = training_id
        self.next_sequence = next_sequence
