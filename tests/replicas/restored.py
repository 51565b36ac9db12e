"""Backup and restore, with the commands of docs/replicas.md."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

from base import train
from client import Client
from cluster import postgres_programs
from ledger import PROMPT
from object_store import ObjectStore
from server import ROOT, Server


def commands():
    """The two blocks of commands in the documentation: backup, restore."""
    text = (ROOT / "docs/replicas.md").read_text()
    section = text.split("\n## Backup and restore\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 2, "docs/replicas.md has other commands than this test expects"
    return blocks


def backup(_base, folder, postgres, _rng, _size):
    """Follows the documentation, after the database and the bucket were lost."""
    store = ObjectStore(folder)
    database = postgres.new_database()
    url = f"postgres://charlstm@127.0.0.1:{postgres.port}/{database}"
    place = folder / "backup"
    place.mkdir()
    (place / "database.url").write_text(url + "\n")
    flags = ["--database", url, "--object-store", store.url("production")]
    server = Server(folder / "a", flags, environment=store.environment())
    try:
        a = Client(server.address)
        training, _ = train(a, "small")
        data = a.export_model("small")
        _, done = a.generate(session="s", model="small@1", chars=30, prime=PROMPT, seed=3)
        last_call = {"session": "s", "chars": 30, "expected": done.position}
        text, done = a.generate(**last_call)
        back_up, restore = commands()
        program = _run(back_up, place, store)
        # Lost afterwards.
        assert a.import_model(data, "small") == 2
        a.generate(session="s", chars=5, expected=done.position)
        server.stop()
        postgres.query(f"DROP DATABASE {database}")
        postgres.query(f"CREATE DATABASE {database}")
        store.empty()
        _run(restore, place, store)
        server = Server(folder / "b", flags, environment=store.environment())
        b = Client(server.address)
        assert b.position("s") == done.position, b.position("s")
        assert b.generate(**last_call)[0] == text, "the last call was repeated with another text"
        assert b.list_models() == {"small": 1}, b.list_models()
        assert b.export_model("small@1") == data
        assert b.training_state(training) == "STATE_SUCCEEDED"
        assert b.import_model(data, "small") == 2
        b.close(), a.close()
    except BaseException:
        print(f"--- {server.log_path}\n{server.log()[-3000:]}")
        raise
    finally:
        if server.process.poll() is None:
            server.signal(signal.SIGKILL)
            server.wait()
        store.stop()
    return f"restored with pg_restore and {program}"


def _run(script, place, store):
    """Runs commands of the documentation in a folder. Returns what ran as `aws`."""
    programs = place / "bin"
    programs.mkdir(exist_ok=True)
    aws = shutil.which("aws")
    if aws is None:
        stand_in = pathlib.Path(__file__).with_name("s3_sync.py")
        (programs / "aws").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "$@"\n')
        (programs / "aws").chmod(0o755)
    path = os.pathsep.join([str(programs), str(postgres_programs()), os.environ["PATH"]])
    environment = {**os.environ, **store.environment(), "PATH": path}
    run = subprocess.run(["sh", "-euc", script], cwd=place, env=environment, timeout=300,
                         capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return "aws s3 sync" if aws else "a stand-in for aws s3 sync"


SCENARIOS = {
    # name: (function, size in the short suite, in the full suite)
    "backup": (backup, 1, 1),
}
