"""The asyncio client."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from charlstm import corpus as corpora
from charlstm.async_driver import AsyncDriver
from charlstm.client import DEFAULT_TIMEOUT
from charlstm.corpus import Corpus
from charlstm.endpoint import Endpoint
from charlstm.generation import AsyncGeneration, GenerationResult
from charlstm.generation_flow import GenerateOptions, SessionCursor, generate_request
from charlstm.models import AsyncModels
from charlstm.progress import ProgressBar
from charlstm.retry import Retry
from charlstm.score import Score, score
from charlstm.session import AsyncSession, AsyncSessions
from charlstm.status import ServerStatus, server_status, wait_until_ready
from charlstm.training import AsyncTraining, AsyncTrainings
from charlstm.training_flow import TrainingFlows, TrainingOptions, training_spec

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from charlstm.unknown import Unknown


class AsyncClient:
    """As :class:`charlstm.Client`, for asyncio.

    ::

        async with charlstm.AsyncClient("127.0.0.1:50051") as client:
            async for text in client.generate("It was ", model="book"):
                print(text, end="", flush=True)
            result = await client.generate("It was ", model="book")

    It belongs to the event loop in which its first call is made.

    Attributes:
        models: The models of the server.
        trainings: The trainings of the server.
        sessions: The sessions of the server.
    """

    def __init__(
        self,
        address: str | Sequence[str] | None = None,
        *,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        tls_ca: str | os.PathLike[str] | bytes | None = None,
        tls_cert: str | os.PathLike[str] | bytes | None = None,
        tls_key: str | os.PathLike[str] | bytes | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        retry: Retry | None = None,
    ) -> None:
        """Creates a client; the arguments are those of :class:`charlstm.Client`."""
        endpoint = Endpoint.create(
            address,
            token=token,
            token_file=token_file,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
        )
        self._retry = retry or Retry()
        self._driver = AsyncDriver(endpoint, timeout)
        self.models = AsyncModels(self._driver, self._retry)
        self.trainings = AsyncTrainings(self._driver, self._retry)
        self.sessions = AsyncSessions(self._driver, self._retry)

    def generate(
        self,
        prime: str = "",
        *,
        model: str = "",
        session_snapshot: bytes = b"",
        return_session: bool = False,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGeneration:
        """As :meth:`charlstm.Client.generate`.

        Returns:
            An asynchronous iterator over pieces of text; awaiting it returns the
            complete :class:`charlstm.GenerationResult`.
        """
        request = generate_request(
            prime,
            model=model,
            session_snapshot=session_snapshot,
            return_session=return_session,
            **options,
        )
        return AsyncGeneration(self._driver, request, self._retry, SessionCursor(), timeout)

    def session(
        self, session_id: str, *, model: str = "", owner: str | None = None
    ) -> AsyncSession:
        """As :meth:`charlstm.Client.session`."""
        return AsyncSession(self._driver, self._retry, session_id, model, owner)

    async def generate_text(
        self,
        prime: str = "",
        *,
        model: str = "",
        session_snapshot: bytes = b"",
        return_session: bool = False,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerationResult:
        """As :meth:`charlstm.Client.generate_text`."""
        request = generate_request(
            prime,
            model=model,
            session_snapshot=session_snapshot,
            return_session=return_session,
            **options,
        )
        generation = AsyncGeneration(
            self._driver, request, self._retry, SessionCursor(), timeout, streamed=False
        )
        return await generation.result()

    async def score(
        self,
        text: Corpus,
        *,
        model: str = "",
        logprobs: bool = False,
        unknown: Unknown = None,
        timeout: float | None = None,
    ) -> Score:
        """As :meth:`charlstm.Client.score`."""
        flow = score(text, model, logprobs, unknown, self._retry)
        return await self._driver.run(flow, timeout)

    def train(
        self,
        corpus: Corpus,
        *,
        model: str,
        progress: bool | None = None,
        **options: Unpack[TrainingOptions],
    ) -> AsyncTraining:
        """As :meth:`charlstm.Client.train`; an asynchronous iterator over the events."""
        flows = TrainingFlows(self._retry)
        events = flows.train(training_spec(model, options), corpora.chunks(corpus))
        return AsyncTraining(self._driver, flows, events, "", ProgressBar.create(progress))

    async def status(self) -> ServerStatus:
        """As :meth:`charlstm.Client.status`."""
        return await self._driver.run(server_status(self._retry))

    async def wait_until_ready(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        """As :meth:`charlstm.Client.wait_until_ready`."""
        await self._driver.run(wait_until_ready(), timeout)

    async def close(self) -> None:
        """Closes the connection; calls that are running end."""
        await self._driver.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
