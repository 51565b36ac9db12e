"""Attacks on connections and on the protocol."""

import contextlib
import pathlib
import subprocess
import threading

import grpc

import client as rpc
from client import Client
from frames import (
    CANCEL, GOAWAY, HEADERS, PREFACE, RESET, Connection, connect, frame, headers, message,
)
from victim import assert_unharmed, metric, require, serving, wait_for

LIST = "/charlstm.v1.ModelService/ListModels"


def silent_connections(base, full):
    """Connections that say nothing, or half a preface."""
    count = 2000 if full else 300
    with serving(base.fresh_copy()) as server:
        attack = silent_clients(server.address, count, [b"", PREFACE[:12], PREFACE])
        figures = assert_unharmed(server, attack, full)
        expired = metric(server, "charlstm_connections_expired_total")
        require(expired >= count / 2, f"{expired:.0f} of {count} connections expired")
    return f"{count} silent connections: {figures}"


def silent_tls_handshakes(base, full):
    """Connections that say nothing, or half a handshake, to a server with TLS."""
    count = 2000 if full else 300
    folder = base.fresh_copy()
    cert, key = certificate(folder)
    with serving(folder, "--tls-cert", str(cert), "--tls-key", str(key)) as server:
        # The beginning of a ClientHello that announces 512 bytes.
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
        attack = silent_clients(server.address, count, [b"", hello[:3], hello])
        figures = assert_unharmed(server, attack, full, ca=cert.read_bytes())
        expired = metric(server, 'charlstm_connections_expired_total{phase="tls"}')
        require(expired >= count / 2, f"{expired:.0f} of {count} handshakes expired")
    return f"{count} silent handshakes: {figures}"


def silent_clients(address, count, beginnings):
    """Returns the attack of connections that send one of some beginnings, and
    nothing more. Its end closes half of them; the server must close the others."""

    def attack():
        sockets = []
        for number in range(count):
            one = connect(address)
            one.sendall(beginnings[number % len(beginnings)])
            sockets.append(one)
        return lambda: [one.close() for one in sockets[::2]]

    return attack


def certificate(folder):
    """Writes a certificate for `localhost` that is its own authority, and its key."""
    cert, key = pathlib.Path(folder) / "server.pem", pathlib.Path(folder) / "server.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-keyout", str(key), "-out", str(cert), "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True)
    return cert, key


def too_many_connections(base, full):
    """More connections than the maximum."""
    with serving(base.fresh_copy(), "--max-connections", "50") as server:
        held = [Connection(server.address) for _ in range(45)]
        client = Client(server.address)
        client.list_models()
        more = [connect(server.address) for _ in range(100)]
        wait_for(lambda: metric(server, "charlstm_connections_rejected_total") >= 90, 30,
                 "connections are rejected")
        client.list_models()
        log = server.log().count("too many connections")
        require(log <= 3, f"{log} lines in the log")
        for one in [*held, *more]:
            one.close()
        Client(server.address).list_models()
    return "connections beyond the maximum were closed, others served"


def few_open_files(base, full):
    """More connections than the system lets the server open."""
    del full
    folder = base.fresh_copy()
    prefix = ["prlimit", "--nofile=400:400"]
    with serving(folder, prefix=prefix) as server:
        require("is lowered" in server.log(), "the lower maximum is logged")
        held = [connect(server.address) for _ in range(300)]
        wait_for(lambda: metric(server, "charlstm_connections_rejected_total") > 100, 30,
                 "connections are rejected")
        require("(os error 24)" not in server.log(), "the server has run out of open files")
        for one in held:
            one.close()
        rpc.retry(lambda: Client(server.address).list_models())
    return "connections stay below the limit of open files"


def invented_methods(base, full):
    """Calls of methods that do not exist, with long names."""
    count = 20000 if full else 2000
    with serving(base.fresh_copy()) as server:

        def attack():
            connection = Connection(server.address)
            reader = threading.Thread(
                target=lambda: [None for _ in connection.frames(5)], daemon=True)
            reader.start()
            for number in range(count):
                path = f"/charlstm.v1.GenerationService/{'x' * 8000}{number}"
                try:
                    connection.call(path, message(b""), end=True)
                except OSError:
                    connection = Connection(server.address)
            return connection.close

        # Also requires that no connection remains.
        figures = assert_unharmed(server, attack, full)
    return f"{count} invented methods: {figures}"


def rapid_resets(base, full):
    """Calls that are reset as soon as they are begun."""
    count = 20000 if full else 4000
    with serving(base.fresh_copy()) as server:
        ends = []
        streams = range(1, 2 * count, 2)
        # Made before the attack: the well-behaved client is in this process, too.
        burst = b"".join(
            headers(stream, LIST) + frame(RESET, 0, stream, CANCEL.to_bytes(4, "big"))
            for stream in streams)

        def attack():
            connection = Connection(server.address)
            with contextlib.suppress(OSError):
                connection.socket.sendall(burst)
            ends.extend(kind for kind, _, _ in connection.frames(3))
            return connection.close

        figures = assert_unharmed(server, attack, full)
    goaway = "closed with GOAWAY" if GOAWAY in ends else "absorbed"
    return f"{count} resets {goaway}: {figures}"


def protocol_errors(base, full):
    """Requests that break the protocol are answered, with short messages."""
    del full
    with serving(base.fresh_copy()) as server:

        def response_headers(path, data, **further):
            connection = Connection(server.address)
            connection.call(path, data, end=True, **further)
            for kind, stream, payload in connection.frames(10):
                if kind == HEADERS and stream == 1:
                    connection.close()
                    return payload
            raise AssertionError("no response")

        cases = {
            "a wrong content type": (LIST, message(b""), {"content_type": "text/html"}),
            "malformed protobuf": (LIST, message(b"\x0b\xff"), {}),
            "two messages": (LIST, message(b"") * 2, {}),
        }
        for name, (path, data, further) in cases.items():
            require(len(response_headers(path, data, **further)) < 2000, name)
        client = Client(server.address)
        try:
            client.generation.Generate(
                rpc._generation.GenerateRequest(model="x" * 100_000, prime="a"), timeout=30).next()
            raise AssertionError("accepted")
        except grpc.RpcError as error:
            require(error.code() == grpc.StatusCode.INVALID_ARGUMENT, f"{error.code()}")
            require(len(error.details()) < 2000, f"{len(error.details())} characters of details")
    return "rejected with short messages (each status is tested in tests/protocol.rs)"
