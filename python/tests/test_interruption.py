"""Calls that are interrupted: the text is the same, and no session advances twice."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import train
from server_process import Proxy, ServerProcess, can_mount
from verse import MODEL, OPTIONS, PRIME, verse

import charlstm
from charlstm.training_flow import TrainingOptions

CHARS = 20_000
SEED = 7

Start = Callable[..., ServerProcess]


def restart(server: ServerProcess, end: Callable[[], object]) -> threading.Thread:
    """Ends a server and starts it again, at the same time as the test continues."""

    def run() -> None:
        end()
        server.start()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def read_and_interrupt(
    generation: charlstm.Generation, interrupt: Callable[[], threading.Thread]
) -> str:
    """Reads a generation; interrupts it once, after some characters."""
    text, thread = "", None
    for piece in generation:
        text += piece
        if thread is None and len(text) > CHARS // 10:
            thread = interrupt()
    assert thread is not None
    thread.join()
    return text


def check_text_survives(
    server: ServerProcess, in_session: bool, interrupt: Callable[[], threading.Thread]
) -> None:
    """Checks that an interrupted generation gives the text of one that is not."""
    with charlstm.Client(server.address) as client:
        whole = client.generate(PRIME, model=MODEL, seed=SEED, max_chars=CHARS).result().text
        session = client.session("interrupted", model=MODEL)
        generation = (
            session.generate(PRIME, seed=SEED, max_chars=CHARS)
            if in_session
            else client.generate(PRIME, model=MODEL, seed=SEED, max_chars=CHARS)
        )
        assert read_and_interrupt(generation, interrupt) == whole
        assert generation.finished is not None
        assert generation.finished.chars == CHARS
        if in_session:
            assert session.position == session.info().position == len(PRIME) + CHARS


@pytest.mark.parametrize("in_session", [True, False])
def test_the_text_survives_a_killed_server(start: Start, in_session: bool) -> None:
    server = start()
    check_text_survives(server, in_session, lambda: restart(server, server.kill))


@pytest.mark.parametrize("in_session", [True, False])
def test_the_text_survives_a_clean_restart(start: Start, in_session: bool) -> None:
    server = start()

    def interrupt() -> threading.Thread:
        server.signal(signal.SIGTERM)
        return restart(server, server.wait)

    check_text_survives(server, in_session, interrupt)


def test_a_session_never_advances_twice_wherever_the_connection_breaks(
    server: ServerProcess,
) -> None:
    chars = 400
    with charlstm.Client(server.address) as direct:
        whole = direct.generate(PRIME, model=MODEL, seed=SEED, max_chars=chars).result().text
        for cut in (0, 100, 400, 700, 1_000, 2_000, 4_000, 8_000):
            proxy = Proxy(server)
            name = f"cut-{cut}"
            with charlstm.Client(proxy.address) as client:
                # A client waits only for a server that it has reached before.
                client.status()
                proxy.cuts.extend([cut, cut + 300])
                session = client.session(name, model=MODEL)
                text = session.generate(PRIME, seed=SEED, max_chars=chars).result().text
                assert text == whole, cut
                assert session.position == len(PRIME) + chars
                more = session.generate(max_chars=10).result()
                assert more.started.position == len(PRIME) + chars
            info = direct.sessions.get(name)
            assert info.position == len(PRIME) + chars + 10
            proxy.close()


def test_a_text_in_one_message_survives_a_broken_connection(server: ServerProcess) -> None:
    chars = 4_000
    proxy = Proxy(server)
    with charlstm.Client(proxy.address) as client:
        whole = client.generate_text(PRIME, model=MODEL, seed=SEED, max_chars=chars).text
        for cut in (0, 50, 1_000, 3_000):
            session = client.session(f"message-{cut}", model=MODEL)
            proxy.cuts.append(cut)
            assert session.generate_text(PRIME, seed=SEED, max_chars=chars).text == whole
            assert session.position == session.info().position == len(PRIME) + chars
    proxy.close()


def test_the_position_is_asked_for_after_a_generation_was_left(client: charlstm.Client) -> None:
    whole = client.generate(PRIME, model=MODEL, seed=SEED, max_chars=CHARS).result().text
    session = client.session("left", model=MODEL)
    for count, _ in enumerate(session.generate(PRIME, seed=SEED, max_chars=CHARS)):
        if count == 50:
            break
    assert session.position is None
    rest = session.generate(max_chars=100).result()
    read = rest.started.position - len(PRIME)
    assert read > 50
    assert rest.text == whole[read : read + 100]


def test_a_generation_continues_on_another_server(start: Start) -> None:
    servers = [start(), start()]
    with charlstm.Client([it.address for it in servers]) as client:
        whole = client.generate(PRIME, model=MODEL, seed=SEED, max_chars=CHARS).result().text
        generation = client.generate(PRIME, model=MODEL, seed=SEED, max_chars=CHARS)

        def interrupt() -> threading.Thread:
            thread = threading.Thread(target=servers[0].kill)
            thread.start()
            return thread

        # Both have trained the same model.
        assert read_and_interrupt(generation, interrupt) == whole


def test_a_training_is_followed_across_a_broken_connection(
    server: ServerProcess, client: charlstm.Client
) -> None:
    proxy = Proxy(server, (4_000, 3_000))
    options: TrainingOptions = {**OPTIONS, "epochs": 30}
    with charlstm.Client(proxy.address) as broken:
        training = broken.train(verse(6000), model="broken", **options)
        events = list(training)
    assert proxy.connections >= 3
    proxy.close()
    epochs = [it.epoch for it in events if isinstance(it, charlstm.EpochProgress)]
    assert epochs == list(range(1, 31))
    sequences = [it.sequence for it in events]
    assert sequences == sorted(set(sequences))
    assert training.result().state is charlstm.State.SUCCEEDED
    assert client.models.get("broken").version == 1


def test_without_retries_a_lost_connection_is_an_error(server: ServerProcess) -> None:
    proxy = Proxy(server, (2_000,))
    with charlstm.Client(proxy.address, retry=charlstm.Retry.never()) as client:
        generation = client.generate(PRIME, model=MODEL, max_chars=CHARS)
        with pytest.raises(charlstm.ConnectionLost) as raised:
            generation.result()
    assert isinstance(raised.value, ConnectionError)
    assert not isinstance(raised.value, charlstm.CannotConnect)
    proxy.close()


@pytest.mark.skipif(not can_mount(), reason="this system does not let a test mount a disk")
def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    # Too small for the session log (32 MiB and a reserve of 16 MiB), and large enough
    # for a model.
    server = ServerProcess(tmp_path, disk_bytes=40 << 20)
    try:
        with charlstm.Client(server.address) as client:
            train(client)
            whole = client.generate(PRIME, model=MODEL, seed=SEED, max_chars=100).result().text
            with charlstm.Client(server.address, retry=charlstm.Retry.never()) as impatient:
                session = impatient.session("full", model=MODEL)
                with pytest.raises(charlstm.StorageUnavailable) as raised:
                    session.generate(PRIME, seed=SEED, max_chars=100).result()
            assert raised.value.retry_after is not None
            threading.Timer(0.5, lambda: server.resize_disk(512 << 20)).start()
            session = client.session("full", model=MODEL)
            assert session.generate(PRIME, seed=SEED, max_chars=100).result().text == whole
            assert session.position == len(PRIME) + 100
    finally:
        server.close()


def test_a_server_at_capacity_is_waited_for(start: Start) -> None:
    server = start("--max-batch", "1", "--max-queue", "1")
    with charlstm.Client(server.address) as client:
        stop = threading.Event()

        def read() -> None:
            for _ in client.generate(PRIME, model=MODEL, max_chars=1_000_000):
                if stop.is_set():
                    return

        # One generates, the other one waits.
        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        while not client.status().generations_queued:
            time.sleep(0.01)
        with charlstm.Client(server.address, retry=charlstm.Retry.never()) as impatient:
            with pytest.raises(charlstm.ResourceExhausted) as raised:
                impatient.generate(PRIME, model=MODEL).result()
            assert raised.value.retry_after is not None
        threading.Timer(0.5, stop.set).start()
        assert len(client.generate(PRIME, model=MODEL, max_chars=10).result().text) == 10
        for reader in readers:
            reader.join()
