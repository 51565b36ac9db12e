"""What belongs to whom, if the server has principals."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from server_process import ServerProcess
from verse import MODEL, OPTIONS, PRIME, verse

import charlstm

ROLES = {"anna": ["generate", "train"], "bert": ["generate"], "root": ["admin"]}


@pytest.fixture(scope="module")
def principals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("principals")
    file = folder / "principals.toml"
    lines: list[str] = []
    for name, roles in ROLES.items():
        digest = hashlib.sha256(token(name).encode()).hexdigest()
        lines += ["[[principal]]", f'name = "{name}"', f'token_sha256 = "{digest}"']
        lines += [f"roles = {roles!r}".replace("'", '"'), "max_sessions = 3"]
    file.write_text("\n".join(lines))
    file.chmod(0o600)
    server = ServerProcess(folder, "--principals", str(file))
    with connect(server, "anna") as anna:
        anna.train(verse(6000), model=MODEL, progress=False, **OPTIONS).result()
    yield server
    server.close()


def token(name: str) -> str:
    return f"{name}-" + "x" * 40


def connect(server: ServerProcess, name: str) -> charlstm.Client:
    return charlstm.Client(server.address, token=token(name))


def test_two_principals_may_use_the_same_session_id(principals: ServerProcess) -> None:
    with (
        connect(principals, "anna") as anna,
        connect(principals, "bert") as bert,
        connect(principals, "root") as root,
    ):
        anna.session("tale", model=MODEL).generate(PRIME, max_chars=10).result()
        bert.session("tale", model=MODEL).generate(PRIME, max_chars=20).result()
        assert [(it.owner, it.position) for it in anna.sessions()] == [("anna", 15)]
        assert {it.owner for it in root.sessions.list()} == {"anna", "bert"}
        assert [it.position for it in root.sessions(owner="bert")] == [25]
        # An admin continues a session of somebody else.
        session = root.session("tale", owner="anna")
        assert session.generate(max_chars=10).result().started.position == 15
        assert session.info().owner == "anna"
        assert session.fork("copy").generate(max_chars=1).result().started.position == 25
        assert root.sessions.get("copy", owner="anna").position == 26
        root.sessions.delete("copy", owner="anna")
        with pytest.raises(charlstm.PermissionDenied):
            bert.sessions(owner="anna")


def test_trainings_and_models_have_an_owner(principals: ServerProcess) -> None:
    with connect(principals, "anna") as anna, connect(principals, "bert") as bert:
        assert bert.models.get(MODEL).owner == "anna"
        assert [it.owner for it in anna.trainings()] == ["anna"]
        with pytest.raises(charlstm.PermissionDenied, match="train"):
            bert.trainings.list()
        with pytest.raises(charlstm.PermissionDenied):
            bert.models.delete(MODEL)


def test_a_quota_is_an_error_that_names_it(principals: ServerProcess) -> None:
    with charlstm.Client(
        principals.address, token=token("bert"), retry=charlstm.Retry.never()
    ) as bert:
        while len(bert.sessions()) < 3:
            session = bert.session(f"many-{len(bert.sessions())}", model=MODEL)
            session.generate(PRIME, max_chars=1).result()
        with pytest.raises(charlstm.QuotaExceeded) as raised:
            bert.session("one-more", model=MODEL).generate(PRIME, max_chars=1).result()
    assert "limit of 3 sessions" in raised.value.message
    assert raised.value.retry_after is not None
