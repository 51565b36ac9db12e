"""Servers that stop while they are called: calls end, and do not hang."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from leaving_server import LeavingServer

import charlstm

#: Far more than a call needs that fails immediately.
PATIENCE = 20


def generate(address: str) -> None:
    with charlstm.Client(address, retry=charlstm.Retry.never()) as client:
        client.models.list()
        client.generate("It was ", max_chars=10, timeout=PATIENCE / 4).result()


def generate_async(address: str) -> None:
    async def run() -> None:
        async with charlstm.AsyncClient(address, retry=charlstm.Retry.never()) as client:
            await client.models.list()
            await client.generate("It was ", max_chars=10, timeout=PATIENCE / 4).result()

    asyncio.run(run())


@pytest.mark.basics
@pytest.mark.parametrize("call", [generate, generate_async])
def test_a_generation_ends_whose_server_rejects_it_and_is_gone(
    call: Callable[[str], None],
) -> None:
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            call(LeavingServer().address)
            outcome.append(None)
        except charlstm.CharlstmError as error:
            outcome.append(error)

    # A daemon: a call that hangs must not keep the tests from ending.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert outcome, "the call hangs"
    assert isinstance(outcome[0], charlstm.ConnectionLost)
