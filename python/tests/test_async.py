"""The asyncio client. The logic of calls is that of the blocking client."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import pytest
from server_process import Proxy, ServerProcess
from verse import MODEL, OPTIONS, PRIME, verse

import charlstm
from charlstm.training_flow import TrainingOptions

CHARS = 20_000
SEED = 7

P = ParamSpec("P")


def run(test: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    """Runs a test in an event loop of its own."""

    @wraps(test)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return wrapped


@pytest.mark.basics
@run
async def test_trains_and_generates(server: ServerProcess) -> None:
    async with charlstm.AsyncClient(server.address) as client:
        training = client.train(verse(6000), model="async", progress=False, **OPTIONS)
        epochs = [it.epoch async for it in training if isinstance(it, charlstm.EpochProgress)]
        assert epochs == [1, 2]
        assert (await training.result()).version == 1
        assert (await client.trainings.get(training.id)).state is charlstm.State.SUCCEEDED
        assert training.id in [it.training_id for it in await client.trainings()]
        assert (await client.trainings.delete(training.id)).training_id == training.id
        pieces = [it async for it in client.generate(PRIME, model="async", seed=1, max_chars=30)]
        assert len("".join(pieces)) == 30
        result = await client.generate(PRIME, model="async", seed=1, max_chars=30)
        assert result.text == "".join(pieces)
        assert (await client.score("arma virumque", model="async")).chars == 12
        assert (await client.status()).models >= 1
        assert "async" in [it.name for it in await client.models()]
        buffer = io.BytesIO()
        assert await client.models.export("async", buffer) == "async@1"
        buffer.seek(0)
        assert (await client.models.import_("async", buffer)).version == 2
        assert await client.models.versions("async") == (1, 2)
        assert (await client.models.get("async@1")).hidden_size == 32
        assert await client.models.delete("async") == (1, 2)


@run
async def test_a_session_keeps_its_state(server: ServerProcess) -> None:
    async with charlstm.AsyncClient(server.address) as client:
        whole = await client.generate(PRIME, model=MODEL, seed=SEED, max_chars=200)
        session = client.session("async-split", model=MODEL)
        first = await session.generate(PRIME, seed=SEED, max_chars=100)
        fork = await session.fork("async-fork")
        data = await session.export()
        second = await session.generate(max_chars=100)
        assert first.text + second.text == whole.text
        assert session.position == (await session.info()).position
        assert (await fork.generate(max_chars=100)).text == second.text
        imported = await client.sessions.import_(data, "async-imported")
        assert (await imported.generate(max_chars=100)).text == second.text
        assert len(await client.sessions()) >= 3
        await session.delete()
        with pytest.raises(charlstm.NotFound):
            await client.sessions.get("async-split")


@run
async def test_many_generations_run_at_the_same_time(server: ServerProcess) -> None:
    async with charlstm.AsyncClient(server.address) as client:
        alone = await client.generate(PRIME, model=MODEL, seed=SEED)
        results = await asyncio.gather(
            *(client.generate(PRIME, model=MODEL, seed=SEED).result() for _ in range(50))
        )
    assert {it.text for it in results} == {alone.text}


@run
async def test_cancelling_a_task_cancels_its_call(server: ServerProcess) -> None:
    async with charlstm.AsyncClient(server.address) as client:
        whole = await client.generate(PRIME, model=MODEL, seed=SEED, max_chars=CHARS)
        session = client.session("async-cancelled", model=MODEL)
        generation = session.generate(PRIME, seed=SEED, max_chars=1_000_000)
        is_running = asyncio.Event()

        async def read() -> None:
            async for _ in generation:
                is_running.set()

        task = asyncio.create_task(read())
        await is_running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The session is at most at the last character that was sent, and continues.
        rest = await session.generate(max_chars=50)
        read_chars = rest.started.position - len(PRIME)
        assert read_chars >= len(generation.text)
        assert rest.text == whole.text[read_chars : read_chars + 50]
        while (await client.status()).generations_running:
            await asyncio.sleep(0.01)


@run
async def test_leaving_the_iteration_and_closing_cancels_the_call(server: ServerProcess) -> None:
    async with charlstm.AsyncClient(server.address) as client:
        async with client.generate(PRIME, model=MODEL, max_chars=1_000_000) as generation:
            async for _ in generation:
                break
        while (await client.status()).generations_running:
            await asyncio.sleep(0.01)


@run
async def test_a_slow_reader_receives_the_whole_text(server: ServerProcess) -> None:
    async with charlstm.AsyncClient(server.address) as client:
        whole = await client.generate(PRIME, model=MODEL, seed=SEED, max_chars=60_000)
        text = ""
        async for piece in client.generate(PRIME, model=MODEL, seed=SEED, max_chars=60_000):
            text += piece
            if len(text) == 1:
                await asyncio.sleep(1)
        assert text == whole.text


def test_the_text_survives_a_killed_server(start: Callable[..., ServerProcess]) -> None:
    server = start()

    def restart() -> None:
        server.kill()
        server.start()

    async def test() -> None:
        async with charlstm.AsyncClient(server.address) as client:
            whole = await client.generate(PRIME, model=MODEL, seed=SEED, max_chars=CHARS)
            session = client.session("async-killed", model=MODEL)
            thread = threading.Thread(target=restart)
            text = ""
            async for piece in session.generate(PRIME, seed=SEED, max_chars=CHARS):
                text += piece
                if len(text) > CHARS // 10 and thread.ident is None:
                    thread.start()
            await asyncio.to_thread(thread.join)
            assert text == whole.text
            assert session.position == (await session.info()).position == len(PRIME) + CHARS

    asyncio.run(asyncio.wait_for(test(), 60))


@run
async def test_a_training_is_followed_across_a_broken_connection(server: ServerProcess) -> None:
    proxy = Proxy(server, (4_000,))
    async with charlstm.AsyncClient(proxy.address) as client:
        options: TrainingOptions = {**OPTIONS, "epochs": 30}
        training = client.train(verse(6000), model="async-broken", **options)
        epochs = [it.epoch async for it in training if isinstance(it, charlstm.EpochProgress)]
    assert epochs == list(range(1, 31))
    assert proxy.connections >= 2
    proxy.close()


@run
async def test_errors_are_those_of_the_blocking_client(
    server: ServerProcess, tmp_path: Path
) -> None:
    async with charlstm.AsyncClient(server.address) as client:
        with pytest.raises(charlstm.NotFound) as raised:
            await client.generate(PRIME, model="unknown")
        assert raised.value.reason == "MODEL_NOT_FOUND"
        with pytest.raises(charlstm.DeadlineExceeded):
            await client.generate(PRIME, model=MODEL, max_chars=1_000_000, timeout=0.3)
        with pytest.raises(charlstm.InvalidArgument):
            await client.train(verse(6000), model="x", epochs=0).result()
        path = tmp_path / "latin.txt"
        path.write_bytes(b"caf\xe9 " * 1000)
        with pytest.raises(ValueError, match="not UTF-8"):
            await client.train(path, model="x").result()
