"""The blocking client."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from charlstm import corpus as corpora
from charlstm.corpus import Corpus
from charlstm.driver import Driver
from charlstm.endpoint import Endpoint
from charlstm.generation import Generation, GenerationResult
from charlstm.generation_flow import GenerateOptions, SessionCursor, generate_request
from charlstm.models import Models
from charlstm.progress import ProgressBar
from charlstm.retry import Retry
from charlstm.score import Score, score
from charlstm.session import Session, Sessions
from charlstm.status import ServerStatus, server_status, wait_until_ready
from charlstm.training import Training, Trainings
from charlstm.training_flow import TrainingFlows, TrainingOptions, training_spec

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from charlstm.unknown import Unknown

#: Seconds for a call that neither generates, nor scores, nor trains.
DEFAULT_TIMEOUT = 60.0


class Client:
    """A client of a charlstm server.

    ::

        with charlstm.Client("127.0.0.1:50051") as client:
            for event in client.train(pathlib.Path("book.txt"), model="book"):
                print(event)
            for text in client.generate("It was ", model="book", top_k=3):
                print(text, end="", flush=True)

    It connects at the first call, and can be used from several threads. All methods
    raise :class:`charlstm.CharlstmError`.

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
        """Creates a client.

        Args:
            address: ``HOST``, ``HOST:PORT``, ``http://HOST:PORT`` or
                ``https://HOST:PORT``; default: CHARLSTM_ADDR, otherwise
                ``127.0.0.1:50051``. Several addresses are replicas of one service:
                if one is lost, the client continues with the next.
            token: Access token.
            token_file: File with the access token; default: CHARLSTM_TOKEN_FILE.
            tls_ca: Certificate authority (PEM) that has signed the server's
                certificate, as a path or as bytes; default: CHARLSTM_TLS_CA,
                otherwise those of the system.
            tls_cert: Certificate to show to a server that requires one; default:
                CHARLSTM_TLS_CERT.
            tls_key: Its key; default: CHARLSTM_TLS_KEY.
            timeout: Seconds for each call that neither generates, nor scores, nor
                trains; None: no limit.
            retry: How long to wait for a server that cannot be reached or is at capacity.

        Raises:
            ValueError: An argument is not valid.
            OSError: A file cannot be read.
        """
        endpoint = Endpoint.create(
            address,
            token=token,
            token_file=token_file,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
        )
        self._retry = retry or Retry()
        self._driver = Driver(endpoint, timeout)
        self.models = Models(self._driver, self._retry)
        self.trainings = Trainings(self._driver, self._retry)
        self.sessions = Sessions(self._driver, self._retry)

    def generate(
        self,
        prime: str = "",
        *,
        model: str = "",
        session_snapshot: bytes = b"",
        return_session: bool = False,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """Generates text that continues a prompt. Keeps no state on the server.

        ::

            for text in client.generate("It was ", model="book", max_chars=500):
                print(text, end="", flush=True)

            print(client.generate("It was ", model="book").result().text)

        Args:
            prime: The prompt.
            model: ``NAME`` (its latest version) or ``NAME@VERSION``. May be empty if
                the server has exactly one model.
            session_snapshot: State to start from: the ``finished.session_snapshot``
                of an earlier generation, or an exported session.
            return_session: Return the state after the generation, as
                ``finished.session_snapshot``.
            timeout: Seconds for the whole generation, including repetitions.
            **options: ``max_chars`` (default 200), ``temperature`` (1), ``top_k`` (0:
                all), ``top_p`` (1), ``min_p`` (0), ``seed`` (random), ``greedy``,
                ``stop`` (strings that end the text), ``logprobs``, ``precision``
                (``float32`` or ``int8``), ``expected_position``, ``unknown`` (what happens
                to characters of the prompt that the model does not know: ``error``,
                ``skip`` or ``replace``).

        Returns:
            An iterator over pieces of text. The call begins when the first piece is
            requested.
        """
        request = generate_request(
            prime,
            model=model,
            session_snapshot=session_snapshot,
            return_session=return_session,
            **options,
        )
        return Generation(self._driver, request, self._retry, SessionCursor(), timeout)

    def session(self, session_id: str, *, model: str = "", owner: str | None = None) -> Session:
        """Returns a session, which its first generation creates.

        Args:
            session_id: Id of the session: 1 to 128 of ``[a-z A-Z 0-9 . _ : -]``.
            model: The model of a new session, as in :meth:`generate`.
            owner: Principal that it belongs to; default: the caller. Another one
                requires the role ``admin``.
        """
        return Session(self._driver, self._retry, session_id, model, owner)

    def generate_text(
        self,
        prime: str = "",
        *,
        model: str = "",
        session_snapshot: bytes = b"",
        return_session: bool = False,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerationResult:
        """Generates text and returns all of it, in one message of the server.

        As ``generate(…).result()``, for at most 100,000 characters and with less
        overhead.

        Args:
            prime: The prompt.
            model: As in :meth:`generate`.
            session_snapshot: As in :meth:`generate`.
            return_session: As in :meth:`generate`.
            timeout: Seconds for the call, including repetitions.
            **options: Those of :meth:`generate`.
        """
        request = generate_request(
            prime,
            model=model,
            session_snapshot=session_snapshot,
            return_session=return_session,
            **options,
        )
        generation = Generation(
            self._driver, request, self._retry, SessionCursor(), timeout, streamed=False
        )
        return generation.result()

    def score(
        self,
        text: Corpus,
        *,
        model: str = "",
        logprobs: bool = False,
        unknown: Unknown = None,
        timeout: float | None = None,
    ) -> Score:
        """Measures how well a model predicts a text.

        Args:
            text: The text, the path of a file (a ``pathlib.Path``), or a file that is
                open; of any length, at least two characters.
            model: As in :meth:`generate`.
            logprobs: Return the log-probability of each predicted character.
            unknown: What happens to characters that the model does not know:
                ``error`` (the default), ``skip`` or ``replace``.
            timeout: Seconds for the call, including repetitions.
        """
        flow = score(text, model, logprobs, unknown, self._retry)
        return self._driver.run(flow, timeout)

    def train(
        self,
        corpus: Corpus,
        *,
        model: str,
        progress: bool | None = None,
        **options: Unpack[TrainingOptions],
    ) -> Training:
        """Trains a model on a text, which is streamed.

        ::

            training = client.train(pathlib.Path("book.txt"), model="book", epochs=4)
            for event in training:
                if isinstance(event, charlstm.EpochProgress):
                    print(event.epoch, event.train_loss, event.sample)
            training.history.plot()

        Args:
            corpus: The text itself, the path of a file (a ``pathlib.Path``), or a file
                that is open.
            model: Name of the model; the training publishes a new version of it.
            progress: Whether to show a progress bar (needs tqdm). Default: if tqdm is
                installed, on a terminal and in a notebook.
            **options: The fields of ``TrainingSpec`` (docs/api.md), such as
                ``epochs``, ``hidden_size``, ``recipe`` or ``seed``.

        Returns:
            An iterator over the events. The upload begins when the first event is
            requested; ``result()`` follows the training to its end.
        """
        flows = TrainingFlows(self._retry)
        events = flows.train(training_spec(model, options), corpora.chunks(corpus))
        return Training(self._driver, flows, events, "", ProgressBar.create(progress))

    def status(self) -> ServerStatus:
        """Returns version, device, load and limits of the server."""
        return self._driver.run(server_status(self._retry))

    def wait_until_ready(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Waits for a server that is starting.

        Args:
            timeout: Seconds to wait.

        Raises:
            DeadlineExceeded: No server has answered.
        """
        self._driver.run(wait_until_ready(), timeout)

    def close(self) -> None:
        """Closes the connection; calls that are running end."""
        self._driver.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
