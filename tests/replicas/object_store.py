"""An S3-compatible store in temporary memory, behind a proxy that can reject
requests or drop the headers of preconditions."""

import http.client
import http.server
import pathlib
import subprocess
import sys
import threading
import time
import urllib.request

from free_port import free_port

BUCKET = "charlstm"
PATIENCE = 60

# Headers that belong to one connection.
HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive"}

# Headers that a store ignores if it ignores preconditions.
PRECONDITIONS = {"if-none-match", "if-match"}


def moto():
    """The path of the program of the store."""
    return pathlib.Path(sys.executable).parent / "moto_server"


class Proxy(http.server.ThreadingHTTPServer):
    """Forwards requests to the store."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        """Ignores errors: a client that is killed may leave its connection in any
        state."""


class ObjectStore:
    """A moto server and the proxy in front of it."""

    def __init__(self, folder):
        self.port = free_port()
        log = open(pathlib.Path(folder) / "object-store.log", "wb")
        self.process = subprocess.Popen(
            [str(moto()), "-H", "127.0.0.1", "-p", str(self.port)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.rejects = False
        self.ignores_preconditions = False
        self.rejected = 0
        self.proxy = Proxy(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self.proxy.serve_forever, daemon=True).start()
        self._create_bucket()

    def _create_bucket(self):
        until = time.monotonic() + PATIENCE
        while True:
            try:
                request = urllib.request.Request(
                    f"http://127.0.0.1:{self.port}/{BUCKET}", method="PUT")
                urllib.request.urlopen(request, timeout=5).close()
                return
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def _handler(self):
        store = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self):
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length)
                if store.rejects:
                    store.rejected += 1
                    self.answer(503, [], b"rejected by the test")
                    return
                dropped = HOP_BY_HOP | (PRECONDITIONS if store.ignores_preconditions else set())
                headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
                upstream = http.client.HTTPConnection("127.0.0.1", store.port, timeout=30)
                try:
                    upstream.request(self.command, self.path, body=body, headers=headers)
                    answer = upstream.getresponse()
                    content = answer.read()
                    self.answer(answer.status, answer.getheaders(), content)
                finally:
                    upstream.close()

            def answer(self, status, headers, content):
                self.send_response_only(status)
                lengths = [v for k, v in headers if k.lower() == "content-length"]
                for name, value in headers:
                    if name.lower() not in HOP_BY_HOP | {"content-length"}:
                        self.send_header(name, value)
                is_head = self.command == "HEAD"
                length = lengths[0] if is_head and lengths else str(len(content))
                self.send_header("content-length", length)
                self.end_headers()
                if not is_head:
                    self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

            def log_message(self, *_):
                pass

        return Handler

    def url(self, prefix):
        return f"s3://{BUCKET}/{prefix}"

    def environment(self):
        """The variables with which a server reaches the store."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy.server_port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def empty(self):
        """Deletes all objects."""
        # A function of the server for tests.
        reset = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset, timeout=PATIENCE).close()
        self._create_bucket()

    def stop(self):
        self.proxy.shutdown()
        self.process.terminate()
        self.process.wait()
