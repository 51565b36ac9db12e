"""A PostgreSQL server in a temporary folder."""

import os
import pathlib
import pwd
import shutil
import subprocess
import time

from object_store import free_port

PATIENCE = 60


def programs():
    """The folder of the programs of the highest version, or None."""
    found = sorted(
        (int(path.name), path / "bin") for path in pathlib.Path("/usr/lib/postgresql").glob("*")
        if path.name.isdigit() and (path / "bin/initdb").exists())
    return found[-1][1] if found else None


class Postgres:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True)
        self.bin = programs()
        self.port = free_port()
        self.user = {}
        if os.geteuid() == 0:
            # It refuses to run as root.
            entry = next(e for e in (lookup("postgres"), lookup("nobody")) if e)
            self.user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            for path in (self.folder, *self.folder.parents):
                if path == pathlib.Path("/tmp"):
                    break
                os.chmod(path, 0o755)
            shutil.chown(self.folder, entry.pw_uid, entry.pw_gid)
        self.run("initdb", "-U", "charlstm", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync",
                 "-D", self.folder / "data")
        self.start()

    def run(self, program, *arguments, check=True):
        return subprocess.run([self.bin / program, *arguments], cwd="/", check=check,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self.user)

    def start(self):
        log = open(self.folder / "log", "ab")
        self.process = subprocess.Popen(
            [self.bin / "postgres", "-D", self.folder / "data", "-p", str(self.port),
             "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}",
             "-c", "fsync=off", "-c", "max_connections=200"],
            cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self.user)
        until = time.monotonic() + PATIENCE
        while self.run("pg_isready", "-h", "127.0.0.1", "-p", str(self.port), check=False).returncode:
            assert time.monotonic() < until, (self.folder / "log").read_text()
            time.sleep(0.05)

    def create(self, name):
        """Creates a database and returns its URL."""
        self.run("psql", "-q", "-h", "127.0.0.1", "-p", str(self.port), "-U", "charlstm",
                 "-d", "postgres", "-c", f"CREATE DATABASE {name}")
        return f"postgres://charlstm@127.0.0.1:{self.port}/{name}"

    def stop(self):
        self.process.terminate()
        self.process.wait()


def lookup(name):
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None
