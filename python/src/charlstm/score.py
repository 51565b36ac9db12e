"""How well a model predicts a text."""

from __future__ import annotations

from dataclasses import dataclass

from charlstm.flow import Flow, Rpc, query
from charlstm.message import from_message
from charlstm.retry import Retry
from charlstm.v1 import generation_pb2 as pb


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


def score(text: str, model: str, retry: Retry) -> Flow[Score]:
    """Scores a text."""
    rpc = Rpc("GenerationService", "Score")
    request = pb.ScoreRequest(model=model, text=text)
    response = yield from query(rpc, request, pb.ScoreResponse, retry, unlimited=True)
    return from_message(Score, response)
