"""When a call is repeated, and with what: against a server that follows a script."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2
from scripted_server import TEXT, ScriptedServer, failure, lost

import charlstm
from charlstm import FinishReason, Retry
from charlstm.retry import Backoff
from charlstm.v1 import generation_pb2 as pb
from charlstm.v1.session_pb2 import Session

LENGTH = pb.FINISH_REASON_LENGTH
SHUTDOWN = pb.FINISH_REASON_SHUTDOWN
CHARS = 20

STORAGE = failure(grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE", retry_after=0.05)
OVERLOADED = failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after=0.05)
BUSY = failure(grpc.StatusCode.ABORTED, "SESSION_BUSY")


def run(
    server: ScriptedServer, *, session: str = "tale", retry: Retry | None = None
) -> charlstm.GenerationResult:
    with charlstm.Client(server.address, retry=retry) as client:
        if session:
            generation = client.session(session, model="book").generate("né", max_chars=CHARS)
        else:
            generation = client.generate("né", model="book", max_chars=CHARS)
        return generation.result()


def test_a_repeated_call_names_version_precision_seed_and_position() -> None:
    with ScriptedServer((5, lost()), (CHARS, LENGTH)) as server:
        server.sessions = [Session(session_id="tale", position=40)]
        result = run(server)
    assert result.text == TEXT[:CHARS]
    first, second = server.requests
    assert (first.model, first.expected_position) == ("book", 40)
    assert not first.sampling.HasField("seed")
    assert (second.model, second.precision, second.sampling.seed) == ("book@3", "int8", 99)
    assert (second.expected_position, second.prime) == (40, "né")


def test_a_first_call_has_a_seed_and_position_0_before_it_starts() -> None:
    with ScriptedServer((-1, lost()), (CHARS, LENGTH)) as server:
        assert run(server).text == TEXT[:CHARS]
    first, second = server.requests
    assert first == second
    assert first.sampling.HasField("seed")
    assert first.HasField("expected_position")
    assert first.expected_position == 0


def test_log_probabilities_are_delivered_once() -> None:
    with ScriptedServer((5, lost()), (3, lost()), (CHARS, LENGTH)) as server:
        result = run(server)
    assert result.text == TEXT[:CHARS]
    assert len(result.logprobs) == CHARS
    assert result.finished.chars == CHARS


def test_another_text_in_a_repeated_call_is_an_error() -> None:
    for script in (
        [(5, lost()), (CHARS, LENGTH, "a test that has changed, unfortunately")],
        [(9, lost()), (4, LENGTH)],
    ):
        with ScriptedServer(*script) as server, pytest.raises(charlstm.TextDiverged):
            run(server)


def test_a_repeated_call_that_is_cut_off_is_repeated_again() -> None:
    with ScriptedServer((9, lost()), (4, SHUTDOWN), (CHARS, LENGTH)) as server:
        assert run(server).text == TEXT[:CHARS]
    assert [it.expected_position for it in server.requests] == [0, 0, 0]


def test_after_a_shutdown_the_session_continues_where_it_is() -> None:
    with ScriptedServer((8, SHUTDOWN), (12, LENGTH, TEXT[8:])) as server:
        result = run(server)
    assert result.text == TEXT[:CHARS]
    assert result.finished.chars == CHARS
    assert result.finished.seconds == 2.0
    rest = server.requests[1]
    assert (rest.prime, rest.max_chars, rest.expected_position) == ("", 12, 10)
    assert not rest.sampling.HasField("seed")


def test_skipped_characters_of_the_prompt_do_not_count() -> None:
    with ScriptedServer((8, SHUTDOWN), (12, LENGTH, TEXT[8:])) as server:
        server.unknown_chars = 1
        with charlstm.Client(server.address) as client:
            session = client.session("tale", model="book")
            result = session.generate("né", max_chars=CHARS, unknown="skip").result()
    assert result.text == TEXT[:CHARS]
    assert (server.requests[1].prime, server.requests[1].expected_position) == ("", 9)


@pytest.mark.parametrize("session", ["tale", ""])
@pytest.mark.parametrize("retry", [Retry(), Retry.never()])
def test_a_shutdown_after_the_last_character_is_the_end(session: str, retry: Retry) -> None:
    with ScriptedServer((CHARS, SHUTDOWN)) as server:
        result = run(server, session=session, retry=retry)
    assert result.text == TEXT[:CHARS]
    assert result.finished.reason is FinishReason.LENGTH
    assert len(server.requests) == 1


def test_a_shutdown_before_the_state_is_returned_is_not_the_end() -> None:
    with ScriptedServer((CHARS, SHUTDOWN), (CHARS, LENGTH)) as server:
        with charlstm.Client(server.address) as client:
            generation = client.generate("né", model="book", max_chars=CHARS, return_session=True)
            result = generation.result()
    assert result.text == TEXT[:CHARS]
    assert len(server.requests) == 2


@pytest.mark.parametrize("session", ["tale", ""])
def test_a_shutdown_before_a_repeat_has_caught_up_is_not_the_end(session: str) -> None:
    with ScriptedServer((CHARS, lost()), (4, SHUTDOWN), (CHARS, LENGTH)) as server:
        result = run(server, session=session)
    assert result.text == TEXT[:CHARS]
    assert result.finished.chars == CHARS
    assert len(server.requests) == 3


def test_without_a_session_a_call_is_repeated_after_a_shutdown() -> None:
    with ScriptedServer((8, SHUTDOWN), (CHARS, LENGTH)) as server:
        assert run(server, session="").text == TEXT[:CHARS]
    first, second = server.requests
    assert first.sampling.seed == second.sampling.seed
    assert second.model == "book@3"


def test_a_shutdown_without_another_server_is_an_error() -> None:
    with ScriptedServer((8, SHUTDOWN)) as server:
        with pytest.raises(charlstm.GenerationInterrupted, match="shut down") as raised:
            run(server, retry=Retry.never())
    assert raised.value.finished.position == 10


def test_a_server_that_cannot_store_or_is_full_is_waited_for_as_long_as_it_says(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with ScriptedServer((-1, STORAGE), (-1, OVERLOADED), (CHARS, LENGTH)) as server:
        assert run(server).text == TEXT[:CHARS]
    assert "STORAGE_UNAVAILABLE" in caplog.text
    assert "trying again in 0.1 s" in caplog.text
    with ScriptedServer(*[(-1, STORAGE)] * 9) as server:
        with pytest.raises(charlstm.StorageUnavailable) as raised:
            run(server, retry=Retry(overload_seconds=0.22))
        # 4 delays of 0.05 seconds.
        assert len(server.requests) == 5
    assert raised.value.retry_after == pytest.approx(0.05)


def test_a_text_is_not_generated_again_and_again_for_a_storage_that_keeps_failing() -> None:
    with ScriptedServer(*[(CHARS, STORAGE)] * 6) as server:
        with pytest.raises(charlstm.StorageUnavailable):
            run(server)
        assert len(server.requests) == 3


def test_a_reader_that_paused_too_long_gets_the_rest() -> None:
    stalled = failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "STREAM_STALLED")
    with ScriptedServer((8, stalled), (CHARS, LENGTH)) as server:
        assert run(server).text == TEXT[:CHARS]


def test_a_repeated_call_waits_for_its_predecessor_and_a_first_call_does_not() -> None:
    with ScriptedServer((5, lost()), (-1, BUSY), (CHARS, LENGTH)) as server:
        assert run(server).text == TEXT[:CHARS]
    with ScriptedServer((-1, BUSY)) as server, pytest.raises(charlstm.SessionBusy):
        run(server)
    deleted = failure(grpc.StatusCode.ABORTED, "SESSION_DELETED")
    with ScriptedServer((5, lost()), (-1, deleted)) as server, pytest.raises(charlstm.Aborted):
        run(server)


def test_an_evicted_session_is_not_created_again() -> None:
    evicted = failure(grpc.StatusCode.NOT_FOUND, "SESSION_EVICTED_IDLE")
    with ScriptedServer() as server:
        server.get_session_failures = [evicted]
        with pytest.raises(charlstm.SessionEvicted) as raised:
            run(server)
    assert server.requests == []
    assert isinstance(raised.value, charlstm.NotFound)


def test_the_search_for_the_position_is_repeated_after_a_lost_connection() -> None:
    with ScriptedServer((CHARS, LENGTH)) as server:
        server.get_session_failures = [lost(), STORAGE]
        assert run(server).text == TEXT[:CHARS]


def test_an_interrupted_call_of_the_same_object_is_waited_for() -> None:
    with ScriptedServer((5, lost()), (CHARS, LENGTH)) as server:
        with charlstm.Client(server.address, retry=Retry(connection_seconds=0)) as client:
            session = client.session("tale", model="book")
            with pytest.raises(charlstm.ConnectionLost):
                session.generate("né", max_chars=CHARS).result()
            session._retry = Retry()
            server.sessions = [
                Session(session_id="tale", position=0, busy=True),
                Session(session_id="tale", position=7),
            ]
            session.generate(max_chars=CHARS).result()
    assert server.requests[1].expected_position == 7


def test_the_time_of_all_retries_is_bounded() -> None:
    backoff = Backoff(Retry(connection_seconds=60))
    delays = []
    while (delay := backoff.next_delay()) is not None:
        delays.append(delay)
    assert 45 < sum(delays) < 75
    assert max(delays) < 5
    backoff.reset()
    assert backoff.next_delay() is not None
    assert Backoff(Retry.never()).next_delay() is None


def test_the_timeout_also_ends_a_wait() -> None:
    with ScriptedServer(*[(-1, lost())] * 50) as server:
        with charlstm.Client(server.address) as client:
            with pytest.raises(charlstm.DeadlineExceeded):
                client.generate("x", model="book", timeout=0.3).result()


def test_the_details_of_an_error_are_attributes() -> None:
    field = error_details_pb2.BadRequest.FieldViolation(field="sampling.top_p", description="bad")
    invalid = failure(
        grpc.StatusCode.INVALID_ARGUMENT,
        "",
        details=(error_details_pb2.BadRequest(field_violations=[field]),),
    )
    quota = error_details_pb2.QuotaFailure.Violation(subject="anna", description="2 streams")
    over = failure(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "QUOTA",
        retry_after=7,
        details=(error_details_pb2.QuotaFailure(violations=[quota]),),
    )
    moved = failure(
        grpc.StatusCode.FAILED_PRECONDITION,
        "POSITION_MISMATCH",
        metadata={"position": "12", "last_call_position": "3"},
    )
    with ScriptedServer((-1, invalid), (-1, over), (-1, moved)) as server:
        with pytest.raises(charlstm.InvalidArgument) as bad:
            run(server)
        assert isinstance(bad.value, ValueError)
        assert bad.value.fields == (charlstm.FieldViolation("sampling.top_p", "bad"),)
        with pytest.raises(charlstm.QuotaExceeded) as exceeded:
            run(server, retry=Retry.never())
        assert exceeded.value.quotas == (charlstm.QuotaViolation("anna", "2 streams"),)
        assert exceeded.value.retry_after == 7
        with pytest.raises(charlstm.PositionMismatch) as mismatch:
            run(server)
        assert (mismatch.value.position, mismatch.value.last_call_position) == (12, 3)
        assert mismatch.value.reason == "POSITION_MISMATCH"
