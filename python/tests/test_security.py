"""Tokens and TLS, and how a client finds its server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from server_process import ServerProcess, free_port

import charlstm
from charlstm.endpoint import Address

TOKEN = "a-secret-token"


class Certificates:
    """A certificate authority, and certificates for a server and a client."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        self.other_ca = folder / "other-ca.pem"
        trustme.CA().cert_pem.write_to_path(self.other_ca)
        server = authority.issue_cert("127.0.0.1", "localhost")
        self.server_cert, self.server_key = folder / "server.pem", folder / "server.key"
        server.cert_chain_pems[0].write_to_path(self.server_cert)
        server.private_key_pem.write_to_path(self.server_key)
        client = authority.issue_cert("a-client")
        self.client_cert, self.client_key = folder / "client.pem", folder / "client.key"
        client.cert_chain_pems[0].write_to_path(self.client_cert)
        client.private_key_pem.write_to_path(self.client_key)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secure(
    certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server that requires TLS with a client certificate, and a token."""
    folder = tmp_path_factory.mktemp("secure")
    tokens = folder / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    tokens.chmod(0o600)
    server = ServerProcess(
        folder,
        *("--tls-cert", str(certificates.server_cert), "--tls-key", str(certificates.server_key)),
        *("--tls-client-ca", str(certificates.ca), "--auth-token-file", str(tokens)),
    )
    yield server
    server.close()


def test_a_client_with_certificate_and_token_is_served(
    secure: ServerProcess, certificates: Certificates
) -> None:
    with charlstm.Client(
        f"https://{secure.address}",
        token=TOKEN,
        tls_ca=certificates.ca,
        tls_cert=certificates.client_cert,
        tls_key=certificates.client_key,
    ) as client:
        assert client.models.list() == []
    with charlstm.Client(
        f"https://localhost:{secure.port}",
        token=TOKEN,
        tls_ca=certificates.ca.read_bytes(),
        tls_cert=certificates.client_cert.read_bytes(),
        tls_key=certificates.client_key.read_bytes(),
    ) as client:
        assert client.status().sessions == 0


@pytest.mark.parametrize("token", [None, "a-guess"])
def test_a_missing_or_wrong_token_is_an_error(
    secure: ServerProcess, certificates: Certificates, token: str | None
) -> None:
    with charlstm.Client(
        f"https://{secure.address}",
        token=token,
        tls_ca=certificates.ca,
        tls_cert=certificates.client_cert,
        tls_key=certificates.client_key,
    ) as client:
        with pytest.raises(charlstm.Unauthenticated, match="access token") as raised:
            client.generate("x", model="m").result()
    assert TOKEN not in str(raised.value)


def test_a_client_without_certificate_or_of_another_authority_fails(
    secure: ServerProcess, certificates: Certificates
) -> None:
    address = f"https://{secure.address}"
    for client in (
        charlstm.Client(address, token=TOKEN, tls_ca=certificates.ca),
        charlstm.Client(
            address,
            token=TOKEN,
            tls_ca=certificates.other_ca,
            tls_cert=certificates.client_cert,
            tls_key=certificates.client_key,
        ),
        charlstm.Client(secure.address, token=TOKEN),
    ):
        with client, pytest.raises(charlstm.CannotConnect, match="no charlstm server answers at"):
            client.models.list()


def test_the_environment_supplies_what_arguments_do_not(
    secure: ServerProcess,
    certificates: Certificates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    for name, value in (
        ("CHARLSTM_ADDR", f"https://{secure.address}"),
        ("CHARLSTM_TOKEN_FILE", token),
        ("CHARLSTM_TLS_CA", certificates.ca),
        ("CHARLSTM_TLS_CERT", certificates.client_cert),
        ("CHARLSTM_TLS_KEY", certificates.client_key),
    ):
        monkeypatch.setenv(name, str(value))
    with charlstm.Client() as client:
        assert client.models.list() == []


def test_a_server_that_never_answered_is_reported_immediately() -> None:
    addresses = [f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"]
    with charlstm.Client(addresses) as client:
        with pytest.raises(charlstm.CannotConnect) as raised:
            client.generate("x", model="m").result()
    assert all(address in str(raised.value) for address in addresses)


def test_a_server_that_is_starting_can_be_waited_for(start: Callable[..., ServerProcess]) -> None:
    server = start()
    server.stop()
    with charlstm.Client(server.address) as client:
        with pytest.raises(charlstm.DeadlineExceeded):
            client.wait_until_ready(timeout=0.5)
        thread = threading.Thread(target=server.start)
        thread.start()
        client.wait_until_ready()
        assert client.status().models == 1
        thread.join()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost", "http://localhost:50051"),
        ("localhost:7", "http://localhost:7"),
        ("http://[::1]", "http://[::1]:80"),
        ("[::1]:7", "http://[::1]:7"),
        ("https://example.org/", "https://example.org:443"),
        (" https://example.org:7 ", "https://example.org:7"),
    ],
)
def test_an_address_may_be_short(text: str, expected: str) -> None:
    assert str(Address.parse(text)) == expected


@pytest.mark.parametrize(
    "text", ["", "ftp://host", "http://", "host/path", "host:", ":7", "host:x"]
)
def test_an_invalid_address_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="use HOST:PORT"):
        charlstm.Client(text)


def test_contradicting_arguments_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        charlstm.Client(token="a", token_file=tmp_path)
    with pytest.raises(ValueError, match="given together"):
        charlstm.Client("https://localhost", tls_cert=b"x")
    with pytest.raises(ValueError, match="require an https:// address"):
        charlstm.Client("localhost", tls_ca=b"x")
    with pytest.raises(ValueError, match="either all addresses"):
        charlstm.Client(["https://localhost", "localhost"])
    with pytest.raises(ValueError, match="printable ASCII"):
        charlstm.Client("localhost", token="two words")


def test_a_token_without_encryption_to_another_machine_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="sent unencrypted") as warned:
        charlstm.Client("example.org", token="t").close()
    assert warned[0].filename == __file__, "the warning names the line of the caller"
    with pytest.warns(UserWarning, match="sent unencrypted") as warned:
        charlstm.AsyncClient("example.org", token="t")
    assert warned[0].filename == __file__
