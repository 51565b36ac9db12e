"""Where the server is, and how to connect to it: address, TLS and token."""

from __future__ import annotations

import os
import ssl
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from charlstm.version import __version__

#: Port of a server if the address has neither a scheme nor a port.
_DEFAULT_PORT = 50051

#: Port of a server if the address has a scheme, but no port.
_PORTS = {"http": 80, "https": 443}

_LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")

#: Options of every channel.
_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.primary_user_agent", f"charlstm-python/{__version__}"),
    # An exported session of the largest model takes 256 KiB; a list of thousands
    # of models is larger.
    ("grpc.max_receive_message_length", 64 << 20),
    # A broken network is detected while a training sends no events.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A slow reader pauses its own stream after some thousand small messages. By
    # default the window grows to megabytes, and with it the text that the server
    # generates before the reader needs it.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 16),
    # The client repeats calls itself. If grpcio repeats a streaming call whose
    # server stops, and cannot connect again, the call never ends, not even at its
    # deadline (seen with versions 1.74 to 1.85).
    ("grpc.enable_retries", 0),
    # A server that restarts is found within seconds; the default is up to two
    # minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


@dataclass(frozen=True)
class Address:
    """The address of a server."""

    #: ``HOST:PORT``.
    authority: str
    #: Whether the server uses TLS.
    tls: bool

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parses ``HOST``, ``HOST:PORT``, ``http://HOST:PORT`` or ``https://HOST:PORT``.

        Raises:
            ValueError: The text is none of these.
        """
        scheme, separator, rest = text.strip().rpartition("://")
        rest = rest.removesuffix("/")
        host, colon, port = rest.rpartition(":")
        has_port = colon != "" and not port.endswith("]")
        is_valid = bool(host if has_port else rest) and "/" not in rest
        if not is_valid or (has_port and not port.isdecimal()) or scheme not in ("", *_PORTS):
            raise ValueError(
                f"invalid address {text!r}; use HOST:PORT, http://HOST:PORT or https://HOST:PORT"
            )
        if not has_port:
            rest = f"{rest}:{_PORTS[scheme] if separator else _DEFAULT_PORT}"
        return cls(authority=rest, tls=scheme == "https")

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine."""
        return self.authority.rpartition(":")[0] in _LOCAL_HOSTS

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}"


@dataclass(frozen=True)
class Endpoint:
    """The servers that a client uses, and what it shows them."""

    addresses: tuple[Address, ...]
    token: str | None
    credentials: grpc.ChannelCredentials | None

    @classmethod
    def create(
        cls,
        address: str | Sequence[str] | None = None,
        *,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        tls_ca: str | os.PathLike[str] | bytes | None = None,
        tls_cert: str | os.PathLike[str] | bytes | None = None,
        tls_key: str | os.PathLike[str] | bytes | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> Endpoint:
        """Creates an endpoint from the arguments of a client.

        An argument that is None has the value of its environment variable:
        CHARLSTM_ADDR (several addresses are separated by commas),
        CHARLSTM_TOKEN_FILE, CHARLSTM_TLS_CA, CHARLSTM_TLS_CERT, CHARLSTM_TLS_KEY.

        Raises:
            ValueError: An address is invalid, or arguments contradict each other.
            OSError: A file cannot be read.
        """
        if address is None:
            address = environment.get("CHARLSTM_ADDR") or f"127.0.0.1:{_DEFAULT_PORT}"
        texts = address.split(",") if isinstance(address, str) else list(address)
        addresses = tuple(Address.parse(text) for text in texts)
        if not addresses:
            raise ValueError("address: at least one address is required")
        if len({address.tls for address in addresses}) > 1:
            raise ValueError("address: either all addresses use https:// or none does")
        if token is not None and token_file is not None:
            raise ValueError("token and token_file exclude each other")
        if token is None:
            file = token_file or environment.get("CHARLSTM_TOKEN_FILE")
            token = Path(file).read_text(encoding="utf-8-sig") if file else None
        if token is not None:
            token = _checked_token(token)
        ca = tls_ca or environment.get("CHARLSTM_TLS_CA")
        certificate = tls_cert or environment.get("CHARLSTM_TLS_CERT")
        key = tls_key or environment.get("CHARLSTM_TLS_KEY")
        if (certificate is None) != (key is None):
            raise ValueError("tls_cert and tls_key must be given together")
        credentials = None
        if addresses[0].tls:
            credentials = grpc.ssl_channel_credentials(
                root_certificates=_pem(ca) or _system_roots(),
                private_key=_pem(key),
                certificate_chain=_pem(certificate),
            )
        elif tls_ca is not None or tls_cert is not None:
            raise ValueError("tls_ca, tls_cert and tls_key require an https:// address")
        exposed = [it for it in addresses if token and not it.tls and not it.is_local]
        if exposed:
            warnings.warn(
                f"the token is sent unencrypted to {exposed[0]}; use https:// if the server "
                "supports TLS",
                stacklevel=3,
            )
        return cls(addresses, token, credentials)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def open(self, index: int) -> grpc.Channel:
        """Opens a channel to the address with this number. Does not connect yet."""
        target = self.addresses[index].authority
        if self.credentials is not None:
            return grpc.secure_channel(target, self.credentials, _OPTIONS)
        return grpc.insecure_channel(target, _OPTIONS)

    def open_async(self, index: int) -> grpc.aio.Channel:
        """As :meth:`open`, for asyncio."""
        target = self.addresses[index].authority
        if self.credentials is not None:
            return grpc.aio.secure_channel(target, self.credentials, _OPTIONS)
        return grpc.aio.insecure_channel(target, _OPTIONS)


def _checked_token(token: str) -> str:
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token must be printable ASCII without spaces")
    return token


def _pem(source: str | os.PathLike[str] | bytes | None) -> bytes | None:
    """Returns the content of a PEM file; bytes are the content itself."""
    if source is None or isinstance(source, bytes):
        return source
    return Path(source).read_bytes()


def _system_roots() -> bytes | None:
    """Returns the certificate authorities of the system; None means those of grpcio."""
    file = ssl.get_default_verify_paths().cafile
    return Path(file).read_bytes() if file else None
