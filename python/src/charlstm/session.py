"""Sessions: state that the server keeps between calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from charlstm.flow import Flow, Rpc, change, query
from charlstm.generation import AsyncGeneration, Generation, GenerationResult
from charlstm.generation_flow import GET_SESSION, GenerateOptions, SessionCursor, generate_request
from charlstm.message import from_message
from charlstm.retry import Retry
from charlstm.v1 import session_pb2 as pb
from charlstm.v1.generation_pb2 import GenerateRequest

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from charlstm.async_driver import AsyncDriver
    from charlstm.driver import Driver

_PAGE_SIZE = 1000


@dataclass(frozen=True, kw_only=True)
class SessionInfo:
    """What the server knows about a session."""

    #: Id of the session.
    session_id: str
    #: Name of the model that the session is pinned to.
    model: str
    #: Version of the model that the session is pinned to.
    version: int
    #: Number of characters that the session has seen.
    position: int
    #: Position at which the last generation began.
    last_call_position: int
    #: True while a call is generating in the session.
    busy: bool
    #: Milliseconds since the session was last used.
    idle_ms: int
    #: Size of the stored session, in bytes.
    bytes: int
    #: Number format of the session's decode steps: ``float32`` or ``int8``.
    precision: str
    #: Principal that the session belongs to; ``admin`` without principals.
    owner: str


#: Several sessions. (Classes with a method `list` cannot name the type.)
SessionInfos = list[SessionInfo]


def _rpc(method: str) -> Rpc:
    return Rpc("SessionService", method)


class SessionFlows:
    """The logic of the calls of the session service."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry

    def get(self, session_id: str, owner: str | None) -> Flow[SessionInfo]:
        """Describes a session."""
        request = pb.GetSessionRequest(session_id=session_id, owner=owner)
        response = yield from query(GET_SESSION, request, pb.GetSessionResponse, self._retry)
        return from_message(SessionInfo, response.session)

    def list(self, owner: str | None) -> Flow[SessionInfos]:
        """Lists all sessions, page by page."""
        sessions: SessionInfos = []
        token = ""
        while True:
            request = pb.ListSessionsRequest(page_size=_PAGE_SIZE, page_token=token, owner=owner)
            response = yield from query(
                _rpc("ListSessions"), request, pb.ListSessionsResponse, self._retry
            )
            sessions += [from_message(SessionInfo, it) for it in response.sessions]
            token = response.next_page_token
            if not token:
                return sessions

    def fork(self, session_id: str, new_session_id: str, owner: str | None) -> Flow[SessionInfo]:
        """Copies a session."""
        request = pb.ForkSessionRequest(
            session_id=session_id, new_session_id=new_session_id, owner=owner
        )
        rpc = _rpc("ForkSession")
        response = yield from change(rpc, request, pb.ForkSessionResponse, self._retry)
        return from_message(SessionInfo, response.session)

    def delete(self, session_id: str, owner: str | None) -> Flow[None]:
        """Deletes a session."""
        request = pb.DeleteSessionRequest(session_id=session_id, owner=owner)
        yield from change(_rpc("DeleteSession"), request, pb.DeleteSessionResponse, self._retry)

    def export(self, session_id: str, owner: str | None) -> Flow[bytes]:
        """Exports a session."""
        request = pb.ExportSessionRequest(session_id=session_id, owner=owner)
        rpc = _rpc("ExportSession")
        response = yield from query(rpc, request, pb.ExportSessionResponse, self._retry)
        return response.data

    def import_(self, data: bytes, session_id: str, owner: str | None) -> Flow[SessionInfo]:
        """Creates a session from exported bytes."""
        request = pb.ImportSessionRequest(data=data, session_id=session_id, owner=owner)
        rpc = _rpc("ImportSession")
        response = yield from change(rpc, request, pb.ImportSessionResponse, self._retry)
        return from_message(SessionInfo, response.session)


class _SessionState:
    """What a session object knows, whether it is used blocking or with asyncio."""

    def __init__(self, retry: Retry, session_id: str, model: str, owner: str | None) -> None:
        if not session_id:
            raise ValueError("session_id must not be empty")
        self._retry = retry
        self._flows = SessionFlows(retry)
        self._cursor = SessionCursor()
        self._model = model
        self._owner = owner
        self._id = session_id

    @property
    def id(self) -> str:
        """Id of the session."""
        return self._id

    @property
    def position(self) -> int | None:
        """Position after the last generation of this object; None if not known."""
        return self._cursor.position

    def _request(self, prime: str, options: GenerateOptions) -> GenerateRequest:
        return generate_request(
            prime, model=self._model, session_id=self._id, owner=self._owner, **options
        )


class Session(_SessionState):
    """A session: the model's state, which the server keeps between calls.

    It is created by its first generation. The object keeps track of the position,
    so that a generation that is repeated after an interruption never advances the
    session twice, and so that it fails with :class:`charlstm.PositionMismatch` if
    something else has used the session in between. (Exception: one single call of
    something else, at exactly this position, is taken for the call of this object
    that is to be repeated, and is replaced.)

    Use one object for a session, from one thread at a time: the server generates
    for one call at a time.
    """

    def __init__(
        self,
        driver: Driver,
        retry: Retry,
        session_id: str,
        model: str,
        owner: str | None = None,
    ) -> None:
        super().__init__(retry, session_id, model, owner)
        self._driver = driver

    def generate(
        self,
        prime: str = "",
        *,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """Generates text that continues the session.

        Args:
            prime: Text that the model reads first. Required for the first generation
                of a session.
            timeout: Seconds for the whole generation, including repetitions.
            **options: Those of :meth:`charlstm.Client.generate`. A `seed` restarts
                the random numbers of an existing session.

        Returns:
            An iterator over pieces of text.
        """
        request = self._request(prime, options)
        return Generation(self._driver, request, self._retry, self._cursor, timeout)

    def generate_text(
        self,
        prime: str = "",
        *,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerationResult:
        """As :meth:`generate`, but returns all of the text: at most 100,000 characters."""
        request = self._request(prime, options)
        return Generation(
            self._driver, request, self._retry, self._cursor, timeout, streamed=False
        ).result()

    def info(self) -> SessionInfo:
        """Describes the session.

        Raises:
            NotFound: It does not exist yet, or no longer.
        """
        return self._driver.run(self._flows.get(self._id, self._owner))

    def fork(self, new_session_id: str) -> Session:
        """Copies the session. The copy continues independently."""
        info = self._driver.run(self._flows.fork(self._id, new_session_id, self._owner))
        fork = Session(self._driver, self._retry, info.session_id, self._model, self._owner)
        fork._cursor.end(info.position)
        return fork

    def export(self) -> bytes:
        """Returns the session as sealed bytes, for ``client.sessions.import_``."""
        return self._driver.run(self._flows.export(self._id, self._owner))

    def delete(self) -> None:
        """Deletes the session. The next generation creates a new one."""
        self._driver.run(self._flows.delete(self._id, self._owner))
        self._cursor = SessionCursor()


class Sessions:
    """The sessions of the server."""

    def __init__(self, driver: Driver, retry: Retry) -> None:
        self._driver = driver
        self._flows = SessionFlows(retry)
        self._retry = retry

    def __call__(self, *, owner: str | None = None) -> SessionInfos:
        """The same as :meth:`list`."""
        return self.list(owner=owner)

    def list(self, *, owner: str | None = None) -> SessionInfos:
        """Lists sessions, most recently used first.

        Args:
            owner: Only those of this principal; default: those of the caller, for the
                role ``admin`` those of all.
        """
        return self._driver.run(self._flows.list(owner))

    def get(self, session_id: str, *, owner: str | None = None) -> SessionInfo:
        """Describes a session."""
        return self._driver.run(self._flows.get(session_id, owner))

    def delete(self, session_id: str, *, owner: str | None = None) -> None:
        """Deletes a session, or makes the id of an evicted session usable again."""
        self._driver.run(self._flows.delete(session_id, owner))

    def import_(self, data: bytes, session_id: str = "", *, owner: str | None = None) -> Session:
        """Creates a session from exported bytes.

        Args:
            data: What :meth:`Session.export` has returned.
            session_id: Id of the new session; by default the one it was exported with.
            owner: Principal that it belongs to; default: the caller.
        """
        info = self._driver.run(self._flows.import_(data, session_id, owner))
        session = Session(self._driver, self._retry, info.session_id, "", owner)
        session._cursor.end(info.position)
        return session


class AsyncSession(_SessionState):
    """As :class:`Session`, for asyncio."""

    def __init__(
        self,
        driver: AsyncDriver,
        retry: Retry,
        session_id: str,
        model: str,
        owner: str | None = None,
    ) -> None:
        super().__init__(retry, session_id, model, owner)
        self._driver = driver

    def generate(
        self,
        prime: str = "",
        *,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGeneration:
        """As :meth:`Session.generate`; an asynchronous iterator over pieces of text."""
        request = self._request(prime, options)
        return AsyncGeneration(self._driver, request, self._retry, self._cursor, timeout)

    async def generate_text(
        self,
        prime: str = "",
        *,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerationResult:
        """As :meth:`Session.generate_text`."""
        request = self._request(prime, options)
        return await AsyncGeneration(
            self._driver, request, self._retry, self._cursor, timeout, streamed=False
        ).result()

    async def info(self) -> SessionInfo:
        """As :meth:`Session.info`."""
        return await self._driver.run(self._flows.get(self._id, self._owner))

    async def fork(self, new_session_id: str) -> AsyncSession:
        """As :meth:`Session.fork`."""
        info = await self._driver.run(self._flows.fork(self._id, new_session_id, self._owner))
        fork = AsyncSession(self._driver, self._retry, info.session_id, self._model, self._owner)
        fork._cursor.end(info.position)
        return fork

    async def export(self) -> bytes:
        """As :meth:`Session.export`."""
        return await self._driver.run(self._flows.export(self._id, self._owner))

    async def delete(self) -> None:
        """As :meth:`Session.delete`."""
        await self._driver.run(self._flows.delete(self._id, self._owner))
        self._cursor = SessionCursor()


class AsyncSessions:
    """As :class:`Sessions`, for asyncio."""

    def __init__(self, driver: AsyncDriver, retry: Retry) -> None:
        self._driver = driver
        self._flows = SessionFlows(retry)
        self._retry = retry

    async def __call__(self, *, owner: str | None = None) -> SessionInfos:
        """The same as :meth:`list`."""
        return await self.list(owner=owner)

    async def list(self, *, owner: str | None = None) -> SessionInfos:
        """As :meth:`Sessions.list`."""
        return await self._driver.run(self._flows.list(owner))

    async def get(self, session_id: str, *, owner: str | None = None) -> SessionInfo:
        """As :meth:`Sessions.get`."""
        return await self._driver.run(self._flows.get(session_id, owner))

    async def delete(self, session_id: str, *, owner: str | None = None) -> None:
        """As :meth:`Sessions.delete`."""
        await self._driver.run(self._flows.delete(session_id, owner))

    async def import_(
        self, data: bytes, session_id: str = "", *, owner: str | None = None
    ) -> AsyncSession:
        """As :meth:`Sessions.import_`."""
        info = await self._driver.run(self._flows.import_(data, session_id, owner))
        session = AsyncSession(self._driver, self._retry, info.session_id, "", owner)
        session._cursor.end(info.position)
        return session
