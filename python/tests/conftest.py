"""Fixtures: a server with a model, and clients of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from server_process import PROGRAM, ServerProcess
from verse import MODEL, OPTIONS, verse

import charlstm

#: Whether no test may be skipped, because all tools should be installed.
REQUIRE_ALL = "CHARLSTM_REQUIRE_ALL" in os.environ


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if REQUIRE_ALL and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"CHARLSTM_REQUIRE_ALL is set, and the test is skipped: {report.longrepr}"
    return report


def pytest_configure() -> None:
    if not os.access(PROGRAM, os.X_OK):
        pytest.exit("set CHARLSTM_SERVER to the program charlstm-server", returncode=4)
    # Not the settings of the person who runs the tests.
    for name in [name for name in os.environ if name.startswith("CHARLSTM_")]:
        if name != "CHARLSTM_SERVER":
            del os.environ[name]


def train(client: charlstm.Client, model: str = MODEL) -> charlstm.TrainingFinished:
    return client.train(verse(6000), model=model, progress=False, **OPTIONS).result()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with a model, for tests that do not stop it."""
    started = ServerProcess(tmp_path_factory.mktemp("server"))
    with charlstm.Client(started.address) as client:
        train(client)
    yield started
    started.close()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[charlstm.Client]:
    with charlstm.Client(server.address) as client:
        yield client


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers with a model, which the test may stop."""
    started: list[ServerProcess] = []

    def start(*flags: str) -> ServerProcess:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        server = ServerProcess(folder, *flags)
        started.append(server)
        with charlstm.Client(server.address) as client:
            train(client)
        return server

    yield start
    for server in started:
        server.close()
