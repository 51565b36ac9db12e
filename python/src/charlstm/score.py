"""How well a model predicts a text."""

from __future__ import annotations

import os
from dataclasses import dataclass

from charlstm.corpus import Corpus, chunks
from charlstm.errors import ServerError
from charlstm.flow import Flow, Rpc, Upload, query, read, stream_ended, wait_after
from charlstm.message import from_message
from charlstm.retry import Backoff, Retry
from charlstm.unknown import Unknown, to_message
from charlstm.v1 import generation_pb2 as pb

#: A text with up to this number of characters is sent in one message. Four bytes
#: per character fit into the 4 MiB that a server accepts.
_MAX_MESSAGE_CHARS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well a model predicts a text."""

    #: Number of predicted characters: all but the first.
    chars: int
    #: Mean loss in bits per character.
    bits_per_char: float
    #: Mean loss in nats per character.
    loss: float
    #: exp(loss).
    perplexity: float
    #: Natural logarithm of the probability of each predicted character, if requested.
    logprobs: tuple[float, ...]
    #: Number of characters that the model does not know.
    unknown_chars: int


def score(text: Corpus, model: str, logprobs: bool, unknown: Unknown, retry: Retry) -> Flow[Score]:
    """Scores a text: in one message if it is short, otherwise in a stream."""
    if isinstance(text, str) and len(text) <= _MAX_MESSAGE_CHARS:
        rpc = Rpc("GenerationService", "Score")
        request = pb.ScoreRequest(
            model=model, text=text, logprobs=logprobs or None, unknown=to_message(unknown)
        )
        response = yield from query(rpc, request, pb.ScoreResponse, retry, unlimited=True)
        return from_message(Score, response)
    header = pb.ScoreStreamHeader(
        model=model, logprobs=logprobs or None, unknown=to_message(unknown)
    )
    backoff = Backoff(retry)
    while True:
        try:
            return (yield from _score_stream(text, header))
        except ServerError as error:
            delay = backoff.pause(error, has_started=False)
            # A file that is open can be read only once.
            if delay is None or not isinstance(text, (str, os.PathLike)):
                raise
            pause = wait_after(error, delay)
        yield pause


def _score_stream(text: Corpus, header: pb.ScoreStreamHeader) -> Flow[Score]:
    yield Upload(
        Rpc("GenerationService", "ScoreStream"),
        lambda: pb.ScoreStreamRequest(header=header),
        chunks(text),
        lambda chunk: pb.ScoreStreamRequest(text_chunk=chunk),
        streamed=True,
    )
    logprobs: list[float] = []
    while (response := (yield from read(pb.ScoreStreamResponse))) is not None:
        logprobs += response.logprobs
        if response.done:
            return from_message(Score, response, logprobs=tuple(logprobs))
    raise stream_ended("score")
