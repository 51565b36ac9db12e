"""PostgreSQL, nginx and several replicas of the server, all in temporary folders."""

import os
import pathlib
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time

from free_port import free_port
from server import Server, program

# Seconds; far longer than a server takes to start or stop.
PATIENCE = 60

NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; worker_processes 1;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream replicas {{ {servers} }}
  server {{
    listen 127.0.0.1:{port} http2;
    keepalive_requests 1000000;
    location / {{ grpc_pass grpc://replicas; grpc_read_timeout 300s; grpc_connect_timeout 2s; }}
  }}
}}
"""


def postgres_programs():
    """Returns the folder of PostgreSQL's programs, or None."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"),
                   key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


class Postgres:
    """A throw-away database server, which does not run as root.

    `setpriv` changes the user, not `subprocess`: that would have to fork, and the child
    of a fork can crash in the handlers of gRPC while other threads make calls.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder) / "postgres"
        self.folder.mkdir()
        self.port = free_port()
        self.as_user = []
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            os.chmod(folder, 0o711)
            self.as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}",
                            "--clear-groups"]
        self._run("initdb", "-U", "charlstm", "-A", "trust", "-E", "UTF8", "--locale=C",
                  "-D", self.folder / "data")
        settings = (f"port = {self.port}\nlisten_addresses = '127.0.0.1'\n"
                    f"unix_socket_directories = '{self.folder}'\nmax_connections = 100\n"
                    "shared_preload_libraries = 'pg_stat_statements'\n")
        with open(self.folder / "data/postgresql.conf", "a") as file:
            file.write(settings)
        self.start()

    def _run(self, program, *arguments):
        command = [*self.as_user, str(postgres_programs() / program), *map(str, arguments)]
        subprocess.run(command, check=True, cwd="/", stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL)

    def start(self):
        """Starts the server, and returns once it accepts connections."""
        command = [*self.as_user, str(postgres_programs() / "postgres"),
                   "-D", str(self.folder / "data")]
        log = self.folder.parent / "postgres.log"
        with open(log, "ab") as file:
            self.process = subprocess.Popen(command, cwd="/", stdin=subprocess.DEVNULL,
                                            stdout=file, stderr=file)
        ready = [str(postgres_programs() / "pg_isready"), "-q", "-h", "127.0.0.1",
                 "-p", str(self.port)]
        wait_until = time.monotonic() + PATIENCE
        while subprocess.run(ready, check=False).returncode != 0:
            if self.process.poll() is not None or time.monotonic() > wait_until:
                last = "\n".join(log.read_text().splitlines()[-10:])
                raise RuntimeError(
                    f"PostgreSQL did not start (exit code {self.process.poll()}):\n{last}")
            time.sleep(0.05)

    def stop(self, mode=signal.SIGQUIT):
        """Stops the server: by SIGQUIT at once, by SIGINT in good order."""
        self.process.send_signal(mode)
        self.process.wait(PATIENCE)

    def restart(self):
        """Ends all connections in the middle of what they do, and starts again."""
        self.stop()
        self.start()

    def query(self, text, database="postgres"):
        """Runs a statement and returns its output, one row a line."""
        command = [str(postgres_programs() / "psql"), "-h", "127.0.0.1", "-p", str(self.port),
                   "-U", "charlstm", "-d", database, "-qAtc", text]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def load(self, file, database):
        """Runs the statements of a file."""
        command = [str(postgres_programs() / "psql"), "-h", "127.0.0.1", "-p", str(self.port),
                   "-U", "charlstm", "-d", database, "-qXv", "ON_ERROR_STOP=1", "-f", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def new_database(self):
        """Creates an empty database and returns its name."""
        name = "d" + secrets.token_hex(6)
        self.query(f"CREATE DATABASE {name}")
        return name


class Link:
    """Forwards connections to a port. It can be cut: then no data passes, and the
    connections stay open."""

    def __init__(self, target, host="127.0.0.1"):
        self.target = target
        self.host = host
        self.is_cut = threading.Event()
        self.listener = socket.create_server((host, 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source, sink):
        try:
            while data := source.recv(65536):
                while self.is_cut.is_set():
                    time.sleep(0.02)
                sink.sendall(data)
        except OSError:
            pass
        for one in (source, sink):
            try:
                # Closing alone would leave it open while the other thread reads from it.
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()

    def cut(self, seconds):
        self.is_cut.set()
        time.sleep(seconds)
        self.is_cut.clear()

    def close(self):
        self.listener.close()


class Cluster:
    """Replicas behind a load balancer: on one database and object store, or each
    with its own copy of the same models."""

    def __init__(self, base, folder, postgres, count=3, flags=None, namespaces=None,
                 prefixes=None, path=None):
        """By the numbers of some replicas, `namespaces`: their network namespaces,
        `prefixes`: the commands that start them. `path`: the program, until it is
        changed."""
        self.folder = pathlib.Path(folder)
        self.postgres = postgres
        self.database = postgres.new_database() if postgres else None
        self.flags = flags or {}
        self.ports = [free_port() for _ in range(count)]
        self.namespaces = namespaces or {}
        self.prefixes = prefixes or {}
        self.path = path or program()
        hosts = [self.namespaces[number].database_host if number in self.namespaces
                 else "127.0.0.1" for number in range(count)]
        self.links = [Link(postgres.port, host) for host in hosts] if postgres else []
        self.replicas = []
        if postgres:
            self._migrate(base)
        else:
            for number in range(count):
                base.copy(self.folder / f"r{number}")
                shutil.rmtree(self.folder / f"r{number}/data/sessions", ignore_errors=True)
        for number in range(count):
            self.replicas.append(self.launch(number))
        self.balancer = self._balance()

    def storage(self, port, host="127.0.0.1"):
        """The flags of the database, reached through a port, and the object store."""
        url = f"postgres://charlstm@{host}:{port}/{self.database}"
        return ["--database", url, "--object-store", f"file://{self.folder}/objects"]

    def _migrate(self, base):
        """Copies the models of the base into what the replicas share."""
        single = base.copy(self.folder / "single")
        shutil.rmtree(single / "data/sessions", ignore_errors=True)
        subprocess.run([str(self.path), "migrate", "--data-dir", str(single / "data"),
                        *self.storage(self.postgres.port)],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def launch(self, number):
        """Starts a replica on its port."""
        namespace = self.namespaces.get(number)
        host = namespace.address if namespace else "127.0.0.1"
        flags = ["--listen", f"{host}:{self.ports[number]}", *self.flags.get(number, ()),
                 *self.flags.get("all", ()), *(["--insecure"] if namespace else [])]
        if self.database:
            link = self.links[number]
            flags += [*self.storage(link.port, link.host), "--replica-name", f"r{number}"]
        prefix = namespace.prefix if namespace else self.prefixes.get(number, ())
        return Server(self.folder / f"r{number}", flags, prefix, path=self.path)

    def _balance(self):
        port = free_port()
        servers = " ".join(f"server 127.0.0.1:{one} max_fails=0;" for one in self.ports)
        config = self.folder / "nginx.conf"
        config.write_text(("user root;" if os.geteuid() == 0 else "")
                          + NGINX.format(folder=self.folder, port=port, servers=servers))
        self.address = f"127.0.0.1:{port}"
        nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin")
        process = subprocess.Popen([nginx, "-c", str(config)], stdin=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return process
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("nginx does not listen")

    def restart(self, number):
        """Kills a replica as a crash does, and starts it again."""
        self.replicas[number].kill()
        self.replicas[number] = self.launch(number)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.balancer.terminate()
        self.balancer.wait()
        for replica in self.replicas:
            if replica.process.poll() is None:
                replica.kill()
        for link in self.links:
            link.close()
