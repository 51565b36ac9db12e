"""Generating text, with and without a session."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from server_process import Proxy, ServerProcess
from verse import MODEL, PRIME, verse

import charlstm
from charlstm import FinishReason
from charlstm.generation_flow import GenerateOptions

pytestmark = pytest.mark.basics


def test_a_generation_iterates_over_pieces_of_its_text(client: charlstm.Client) -> None:
    generation = client.generate(PRIME, model=MODEL, max_chars=40, seed=3)
    assert generation.started is None
    pieces = list(generation)
    assert sum(len(piece) for piece in pieces) == 40
    assert "".join(pieces) == generation.text
    assert generation.started is not None
    assert (generation.started.model, generation.started.version) == (MODEL, 1)
    assert generation.started.seed == 3
    assert generation.finished is not None
    assert generation.finished.reason is FinishReason.LENGTH
    assert generation.finished.chars == 40


def test_the_same_seed_gives_the_same_text(client: charlstm.Client) -> None:
    def text(seed: int) -> str:
        return client.generate(PRIME, model=MODEL, seed=seed).result().text

    assert len(text(1)) == 200
    assert text(1) == text(1) != text(2)


def test_a_seed_that_the_client_has_chosen_is_reported(client: charlstm.Client) -> None:
    first = client.generate(PRIME, model=MODEL).result()
    again = client.generate(PRIME, model=MODEL, seed=first.started.seed).result()
    assert again.text == first.text


def test_sampling_options_reach_the_server(client: charlstm.Client) -> None:
    greedy = client.generate(PRIME, model=MODEL, greedy=True, max_chars=30).result().text
    variants: list[GenerateOptions] = [
        {"temperature": 0.0},
        {"top_k": 1},
        {"min_p": 1.0},
        {"top_p": 1e-9},
    ]
    for options in variants:
        options["max_chars"] = 30
        result = client.generate(PRIME, model=MODEL, **options).result()
        assert result.text == greedy, options


def test_a_stop_string_ends_the_text_and_is_not_part_of_it(client: charlstm.Client) -> None:
    for stop in (" ", [" ", "\n"]):
        result = client.generate(PRIME, model=MODEL, seed=1, stop=stop, max_chars=500).result()
        assert result.finished.reason is FinishReason.STOP
        assert " " not in result.text


def test_there_is_one_log_probability_for_each_character(client: charlstm.Client) -> None:
    result = client.generate(PRIME, model=MODEL, logprobs=True, max_chars=25).result()
    assert len(result.logprobs) == len(result.text) == 25
    assert all(value <= 0 for value in result.logprobs)
    assert client.generate(PRIME, model=MODEL).result().logprobs == ()


def test_a_closed_generation_is_cancelled(client: charlstm.Client) -> None:
    with client.generate(PRIME, model=MODEL, max_chars=1_000_000) as generation:
        assert next(generation)
    assert list(generation) == []
    with pytest.raises(RuntimeError, match="closed before its end"):
        generation.result()
    wait_until_idle(client)


def test_a_generation_that_is_dropped_is_cancelled(client: charlstm.Client) -> None:
    for _ in client.generate(PRIME, model=MODEL, max_chars=1_000_000):
        break
    wait_until_idle(client)


def wait_until_idle(client: charlstm.Client) -> None:
    """Fails if the generation continues, which the server would end only as stalled."""
    deadline = time.monotonic() + 15
    while client.status().generations_running:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_calls_in_a_session_give_the_text_of_one(client: charlstm.Client) -> None:
    whole = client.generate(PRIME, model=MODEL, seed=7, max_chars=200).result()
    session = client.session("split", model=MODEL)
    assert session.position is None
    first = session.generate(PRIME, seed=7, max_chars=100).result()
    assert session.position == len(PRIME) + 100
    second = session.generate(max_chars=100).result()
    assert session.position == len(PRIME) + 200
    assert first.text + second.text == whole.text
    # Another object for the same session asks the server for the position.
    other = client.session("split")
    assert other.generate(max_chars=5).result().started.position == len(PRIME) + 200


def test_a_position_that_moved_is_reported_and_the_next_call_continues(
    client: charlstm.Client,
) -> None:
    one = client.session("shared", model=MODEL)
    one.generate(PRIME, max_chars=10).result()
    other = client.session("shared")
    other.generate(max_chars=5).result()
    other.generate(max_chars=5).result()
    with pytest.raises(charlstm.PositionMismatch) as raised:
        one.generate(max_chars=10).result()
    assert raised.value.position == len(PRIME) + 20
    assert raised.value.last_call_position == len(PRIME) + 15
    assert one.position is None
    assert one.generate(max_chars=1).result().started.position == len(PRIME) + 20


def test_an_earlier_position_can_be_repeated(client: charlstm.Client) -> None:
    session = client.session("repeated", model=MODEL)
    first = session.generate(PRIME, max_chars=30).result()
    again = session.generate(
        PRIME,
        max_chars=30,
        seed=first.started.seed,
        expected_position=first.started.position,
    ).result()
    assert again.text == first.text
    assert session.position == len(PRIME) + 30


def test_a_session_without_a_prompt_must_exist(client: charlstm.Client) -> None:
    with pytest.raises(charlstm.NotFound, match="give it a prompt"):
        client.session("unknown", model=MODEL).generate().result()


def test_sessions_are_forked_listed_exported_imported_and_deleted(client: charlstm.Client) -> None:
    session = client.session("origin", model=MODEL)
    session.generate(PRIME, max_chars=20).result()
    fork = session.fork("fork")
    assert fork.position == session.position
    data = session.export()
    continued = session.generate(max_chars=50).result().text
    assert fork.generate(max_chars=50).result().text == continued
    imported = client.sessions.import_(data, "imported")
    assert imported.generate(max_chars=50).result().text == continued
    ids = {it.session_id for it in client.sessions()}
    assert ids >= {"origin", "fork", "imported"}
    assert session.info().position == session.position == len(PRIME) + 70
    session.delete()
    with pytest.raises(charlstm.NotFound):
        session.info()
    assert session.generate(PRIME, max_chars=5).result().started.position == 0


def test_a_client_can_hold_the_session_itself(client: charlstm.Client) -> None:
    whole = client.generate(PRIME, model=MODEL, seed=9, max_chars=60).result().text
    first = client.generate(PRIME, model=MODEL, seed=9, max_chars=30, return_session=True).result()
    snapshot = first.finished.session_snapshot
    assert snapshot
    rest = client.generate(session_snapshot=snapshot, max_chars=30).result()
    assert first.text + rest.text == whole

    message = client.generate_text(PRIME, model=MODEL, seed=9, max_chars=30, return_session=True)
    rest = client.generate_text(session_snapshot=message.finished.session_snapshot, max_chars=30)
    assert message.text + rest.text == whole


def test_a_deleted_session_ends_its_generation_with_an_error(client: charlstm.Client) -> None:
    session = client.session("deleted", model=MODEL)
    generation = session.generate(PRIME, max_chars=1_000_000)
    next(generation)
    client.sessions.delete("deleted")
    with pytest.raises(charlstm.GenerationInterrupted, match="deleted") as raised:
        generation.result()
    assert raised.value.finished.reason is FinishReason.CANCELLED


def test_a_score_has_the_loss_in_nats_and_in_bits(client: charlstm.Client) -> None:
    score = client.score("arma virumque cano", model=MODEL)
    assert score.chars == 17
    assert score.loss == pytest.approx(score.bits_per_char * 0.6931471805599453)


def test_a_score_has_the_log_probability_of_each_character(client: charlstm.Client) -> None:
    text = "arma virumque cano"
    score = client.score(text, model=MODEL, logprobs=True)
    assert len(score.logprobs) == score.chars == len(text) - 1
    assert -sum(score.logprobs) / score.chars == pytest.approx(score.loss, rel=1e-4)


def test_a_text_of_any_length_is_scored(client: charlstm.Client, tmp_path: Path) -> None:
    text = verse(30_000)
    score = client.score(text, model=MODEL, logprobs=True)
    path = tmp_path / "verse.txt"
    path.write_text(text, encoding="utf-8")
    assert client.score(path, model=MODEL, logprobs=True) == score
    assert client.score(io.StringIO(text), model=MODEL, logprobs=True) == score


def test_a_score_is_repeated_after_a_broken_connection(
    server: ServerProcess, client: charlstm.Client, tmp_path: Path
) -> None:
    path = tmp_path / "verse.txt"
    path.write_text(verse(30_000), encoding="utf-8")
    whole = client.score(path, model=MODEL, logprobs=True)
    proxy = Proxy(server)
    with charlstm.Client(proxy.address) as broken:
        broken.status()
        proxy.cuts.append(5_000)
        assert broken.score(path, model=MODEL, logprobs=True) == whole
    assert proxy.connections == 2
    proxy.close()


def test_unknown_characters_are_an_error_or_skipped_or_replaced(client: charlstm.Client) -> None:
    prime = "arma €€ virum"
    with pytest.raises(charlstm.InvalidArgument, match="€") as raised:
        client.generate(prime, model=MODEL).result()
    assert raised.value.fields[0].field == "prime"
    session = client.session("skipped", model=MODEL)
    result = session.generate(prime, unknown="skip", max_chars=10).result()
    assert result.started.unknown_chars == 2
    assert session.position == len(prime) - 2 + 10
    replaced = client.generate(
        prime, model=MODEL, unknown=charlstm.UnknownCharacters.REPLACE, max_chars=10
    ).result()
    assert replaced.finished.position == len(prime) + 10
    assert client.score(prime, model=MODEL, unknown="skip").unknown_chars == 2
    with pytest.raises(ValueError, match="ignore"):
        client.generate(prime, unknown="ignore")  # type: ignore[arg-type]


def test_a_text_in_one_message_is_that_of_the_stream(client: charlstm.Client) -> None:
    streamed = client.generate(PRIME, model=MODEL, seed=3, logprobs=True).result()
    text = client.generate_text(PRIME, model=MODEL, seed=3, logprobs=True)
    assert (text.text, text.logprobs) == (streamed.text, streamed.logprobs)
    assert text.started == streamed.started
    session = client.session("one-message", model=MODEL)
    first = session.generate_text(PRIME, seed=3, max_chars=100)
    assert session.position == len(PRIME) + 100
    assert first.text + session.generate_text(max_chars=100).text == text.text


def test_a_slow_reader_receives_the_whole_text(client: charlstm.Client) -> None:
    whole = client.generate(PRIME, model=MODEL, seed=4, max_chars=60_000).result().text
    session = client.session("slow", model=MODEL)
    generation = session.generate(PRIME, seed=4, max_chars=60_000)
    text = ""
    for piece in generation:
        text += piece
        if len(text) in (1, 2_000):
            time.sleep(1)
    assert text == whole
    assert session.position == len(PRIME) + 60_000


def test_the_timeout_ends_a_generation(client: charlstm.Client) -> None:
    generation = client.generate(PRIME, model=MODEL, max_chars=1_000_000, timeout=0.3)
    with pytest.raises(charlstm.DeadlineExceeded) as raised:
        for _ in generation:
            pass
    assert isinstance(raised.value, TimeoutError)


def test_one_client_serves_several_threads(server: ServerProcess, client: charlstm.Client) -> None:
    def text(number: int) -> str:
        session = client.session(f"thread-{number}", model=MODEL)
        return session.generate(PRIME, seed=number % 2, max_chars=300).result().text

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(text, range(16)))
    assert len(set(texts)) == 2
