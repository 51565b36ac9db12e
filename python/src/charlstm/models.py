"""The models of the server."""

from __future__ import annotations

import enum
import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, TYPE_CHECKING

import grpc

from charlstm.errors import DataLoss
from charlstm.flow import Flow, Open, Rpc, Upload, Write, change, query, read, stream_ended
from charlstm.message import from_message
from charlstm.retry import Retry
from charlstm.v1 import model_pb2 as pb

if TYPE_CHECKING:
    from charlstm.async_driver import AsyncDriver
    from charlstm.driver import Driver

#: Bytes per message of an import.
_CHUNK = 256 * 1024

#: Where a model file is written to or read from.
ModelFile = str | os.PathLike[str] | IO[bytes]


class ModelFormat(enum.Enum):
    """Format of a model file."""

    #: Detected from the file.
    DETECT = pb.MODEL_FORMAT_UNSPECIFIED
    #: Safetensors, as written by :meth:`Models.export`.
    SAFETENSORS = pb.MODEL_FORMAT_SAFETENSORS
    #: A PyTorch checkpoint of the notebook. Code in it is never executed.
    PTH = pb.MODEL_FORMAT_PTH


@dataclass(frozen=True, kw_only=True)
class ModelTraining:
    """Summary of the training that produced a model."""

    #: Preset (recipe).
    recipe: str
    #: Number of epochs trained.
    epochs: int
    #: Number of optimizer steps taken.
    steps: int
    #: Number of characters in the corpus.
    corpus_chars: int
    #: SHA-256 of the corpus, encoded as UTF-8, in hexadecimal.
    corpus_sha256: str
    #: Type of the inputs of all matrix products of the training: ``float32`` or ``bf16``;
    #: empty if it is not known.
    precision: str


@dataclass(frozen=True, kw_only=True)
class Model:
    """One version of a model."""

    #: Name of the model.
    name: str
    #: Version, from 1.
    version: int
    #: The characters that the model knows, sorted, as one string.
    vocabulary: str
    #: Width of each LSTM layer.
    hidden_size: int
    #: Number of LSTM layers.
    num_layers: int
    #: Number of trainable parameters.
    parameters: int
    #: Size of the model file in bytes.
    bytes: int
    #: Creation time, in milliseconds since 1970-01-01 UTC.
    created_unix_ms: int
    #: Training that produced it; empty if it was imported.
    training_id: str
    #: Mean training loss of the last epoch, in nats per character.
    train_loss: float | None
    #: Validation loss, in nats per character.
    validation_loss: float | None
    #: Summary of the training that produced it; None if it was imported.
    training: ModelTraining | None
    #: Principal that first published a model of this name; ``admin`` without
    #: principals.
    owner: str
    #: Number format in which this version generates on this server: ``float32`` or
    #: ``int8``. Empty if that is decided when the version is first loaded.
    precision: str
    #: Cost of int8 in bits per character; None if it is not known yet, or if the model
    #: cannot be computed in int8.
    int8_loss_bits_per_char: float | None
    #: Why the version is never computed in int8; empty if it can be.
    int8_objection: str

    @property
    def reference(self) -> str:
        """The model version, as ``NAME@VERSION``."""
        return f"{self.name}@{self.version}"


#: Several models. (Classes with a method `list` cannot name the type.)
ModelList = list[Model]


def _rpc(method: str) -> Rpc:
    return Rpc("ModelService", method)


class ModelFlows:
    """The logic of the calls of the model service."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry

    def list(self) -> Flow[ModelList]:
        """Lists the latest version of every model."""
        request = pb.ListModelsRequest()
        rpc = _rpc("ListModels")
        response = yield from query(rpc, request, pb.ListModelsResponse, self._retry)
        return [from_message(Model, it) for it in response.models]

    def get(self, model: str) -> Flow[Model]:
        """Describes one version of a model."""
        response = yield from self._get(model)
        return from_message(Model, response.model)

    def versions(self, model: str) -> Flow[tuple[int, ...]]:
        """Returns all versions of a model."""
        response = yield from self._get(model)
        return tuple(response.versions)

    def _get(self, model: str) -> Flow[pb.GetModelResponse]:
        request = pb.GetModelRequest(model=model)
        return (yield from query(_rpc("GetModel"), request, pb.GetModelResponse, self._retry))

    def delete(self, model: str, force: bool) -> Flow[tuple[int, ...]]:
        """Deletes one version or all versions of a model."""
        request = pb.DeleteModelRequest(model=model, force=force)
        rpc = _rpc("DeleteModel")
        response = yield from change(rpc, request, pb.DeleteModelResponse, self._retry)
        return tuple(response.versions)

    def export(self, model: str, file: IO[bytes]) -> Flow[str]:
        """Writes one version to a file; returns its NAME@VERSION."""
        yield Open(_rpc("ExportModel"), pb.ExportModelRequest(model=model))
        header = pb.ExportModelHeader()
        received = 0
        digest = hashlib.sha256()
        while (response := (yield from read(pb.ExportModelResponse))) is not None:
            if response.HasField("header"):
                header = response.header
            else:
                received += len(response.chunk)
                digest.update(response.chunk)
                yield Write(file.write, response.chunk)
        if received != header.bytes or not header.name:
            raise stream_ended("model file")
        if header.sha256 and header.sha256 != digest.hexdigest():
            raise DataLoss(
                grpc.StatusCode.DATA_LOSS,
                f"the file of {model} was damaged in transit: its SHA-256 is not {header.sha256}",
            )
        return f"{header.name}@{header.version}"

    def import_(
        self, name: str, file: IO[bytes], format: ModelFormat, vocabulary: str
    ) -> Flow[Model]:
        """Stores a file as a new version. Not repeated: it may have been stored."""
        header = pb.ImportModelHeader(name=name, vocabulary=vocabulary)
        header.format = format.value

        def first() -> pb.ImportModelRequest:
            if file.seekable():
                # The server checks that it has received the same file.
                start = file.tell()
                digest = hashlib.sha256()
                for chunk in _chunks(file):
                    digest.update(chunk)
                header.sha256 = digest.hexdigest()
                file.seek(start)
            return pb.ImportModelRequest(header=header)

        response = yield Upload(
            _rpc("ImportModel"),
            first,
            _chunks(file),
            lambda chunk: pb.ImportModelRequest(chunk=chunk),
            streamed=False,
        )
        assert isinstance(response, pb.ImportModelResponse)
        return from_message(Model, response.model)


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


class _Target:
    """The file that an export is written to.

    A file that is given by its path appears under its name complete or not at all.
    """

    def __init__(self, target: ModelFile) -> None:
        if isinstance(target, (str, os.PathLike)):
            self._path: Path | None = Path(target)
            self.file: IO[bytes] = NamedTemporaryFile(  # noqa: SIM115
                dir=self._path.resolve().parent, prefix=f".{self._path.name}.", delete=False
            )
        else:
            self._path = None
            self.file = target

    def commit(self) -> None:
        if self._path is not None:
            self.file.close()
            # Temporary files are private; the exported file is an ordinary one.
            mask = os.umask(0)
            os.umask(mask)
            temporary = Path(self.file.name)
            temporary.chmod(0o666 & ~mask)
            temporary.replace(self._path)

    def discard(self) -> None:
        if self._path is not None:
            self.file.close()
            with suppress(FileNotFoundError):
                Path(self.file.name).unlink()


class Models:
    """The models of the server. A model has a name and versions, from 1."""

    def __init__(self, driver: Driver, retry: Retry) -> None:
        self._driver = driver
        self._flows = ModelFlows(retry)

    def __call__(self) -> ModelList:
        """The same as :meth:`list`."""
        return self.list()

    def list(self) -> ModelList:
        """Lists the latest version of every model, sorted by name."""
        return self._driver.run(self._flows.list())

    def get(self, model: str) -> Model:
        """Describes a model, as ``NAME`` (its latest version) or ``NAME@VERSION``."""
        return self._driver.run(self._flows.get(model))

    def versions(self, name: str) -> tuple[int, ...]:
        """Returns all versions of a model, ascending."""
        return self._driver.run(self._flows.versions(name))

    def delete(self, model: str, *, force: bool = False) -> tuple[int, ...]:
        """Deletes ``NAME`` (all versions) or ``NAME@VERSION``; returns the versions.

        Args:
            model: The model.
            force: Delete it even if sessions use it. They cannot be continued.
        """
        return self._driver.run(self._flows.delete(model, force))

    def export(self, model: str, target: ModelFile) -> str:
        """Writes a model to a safetensors file.

        Args:
            model: ``NAME`` (its latest version) or ``NAME@VERSION``.
            target: Path of the file, or a binary file that is open. A path is
                replaced atomically.

        Returns:
            The exported version, as ``NAME@VERSION``.
        """
        opened = _Target(target)
        try:
            reference = self._driver.run(self._flows.export(model, opened.file))
            opened.commit()
        except BaseException:
            opened.discard()
            raise
        return reference

    def import_(
        self,
        name: str,
        source: ModelFile,
        *,
        format: ModelFormat = ModelFormat.DETECT,
        vocabulary: str = "",
    ) -> Model:
        """Stores a model file as a new version.

        Args:
            name: Name to store the model under.
            source: Path of the file, or a binary file that is open.
            format: Format of the file.
            vocabulary: The characters in the order of their token ids, for a file
                that does not contain them.
        """
        with _opened(source) as file:
            return self._driver.run(self._flows.import_(name, file, format, vocabulary))


class AsyncModels:
    """As :class:`Models`, for asyncio."""

    def __init__(self, driver: AsyncDriver, retry: Retry) -> None:
        self._driver = driver
        self._flows = ModelFlows(retry)

    async def __call__(self) -> ModelList:
        """The same as :meth:`list`."""
        return await self.list()

    async def list(self) -> ModelList:
        """As :meth:`Models.list`."""
        return await self._driver.run(self._flows.list())

    async def get(self, model: str) -> Model:
        """As :meth:`Models.get`."""
        return await self._driver.run(self._flows.get(model))

    async def versions(self, name: str) -> tuple[int, ...]:
        """As :meth:`Models.versions`."""
        return await self._driver.run(self._flows.versions(name))

    async def delete(self, model: str, *, force: bool = False) -> tuple[int, ...]:
        """As :meth:`Models.delete`."""
        return await self._driver.run(self._flows.delete(model, force))

    async def export(self, model: str, target: ModelFile) -> str:
        """As :meth:`Models.export`."""
        opened = _Target(target)
        try:
            reference = await self._driver.run(self._flows.export(model, opened.file))
            opened.commit()
        except BaseException:
            opened.discard()
            raise
        return reference

    async def import_(
        self,
        name: str,
        source: ModelFile,
        *,
        format: ModelFormat = ModelFormat.DETECT,
        vocabulary: str = "",
    ) -> Model:
        """As :meth:`Models.import_`."""
        with _opened(source) as file:
            return await self._driver.run(self._flows.import_(name, file, format, vocabulary))


def _opened(source: ModelFile) -> AbstractContextManager[IO[bytes]]:
    if isinstance(source, (str, os.PathLike)):
        return Path(source).open("rb")
    return nullcontext(source)
