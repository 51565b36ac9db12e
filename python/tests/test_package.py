"""The package itself: what it contains, and that it knows the whole contract."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor

import charlstm
from charlstm.generation_flow import GenerateOptions
from charlstm.v1 import generation_pb2, model_pb2, server_pb2, session_pb2, training_pb2

PYTHON = Path(__file__).resolve().parents[1]
ROOT = PYTHON.parent


def test_the_version_is_that_of_the_server() -> None:
    workspace = (ROOT / "Cargo.toml").read_text().partition("[workspace.package]")[2]
    version = re.search(r'^version = "(.*)"$', workspace, re.MULTILINE)
    assert version is not None
    assert charlstm.__version__ == version[1]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (charlstm.GenerationStarted, generation_pb2.GenerationStarted),
        (charlstm.GenerationFinished, generation_pb2.GenerationFinished),
        (charlstm.Score, generation_pb2.ScoreResponse),
        (charlstm.SessionInfo, session_pb2.Session),
        (charlstm.Model, model_pb2.Model),
        (charlstm.ModelTraining, model_pb2.TrainingSpecSummary),
        (charlstm.ServerStatus, server_pb2.GetServerStatusResponse),
        (charlstm.StepCheck, server_pb2.StepCheck),
        (charlstm.TrainingSpec, training_pb2.TrainingSpec),
        (charlstm.TrainingInfo, training_pb2.Training),
        (charlstm.TrainingAccepted, training_pb2.TrainingAccepted),
        (charlstm.StepProgress, training_pb2.StepProgress),
        (charlstm.EpochProgress, training_pb2.EpochProgress),
        (charlstm.CheckpointSaved, training_pb2.CheckpointSaved),
        (charlstm.CheckpointFailed, training_pb2.CheckpointFailed),
        (charlstm.TrainingResumed, training_pb2.TrainingResumed),
        (charlstm.TrainingRolledBack, training_pb2.TrainingRolledBack),
        (charlstm.TrainingFinished, training_pb2.TrainingFinished),
    ],
)
def test_a_class_has_the_fields_of_its_message(kind: type, message: type) -> None:
    descriptor = message.DESCRIPTOR  # type: ignore[attr-defined]
    assert isinstance(descriptor, Descriptor)
    names = {field.name for field in dataclasses.fields(kind)}
    if issubclass(kind, charlstm.TrainingEvent):
        names -= {"training_id", "sequence"}
    assert names == {field.name for field in descriptor.fields}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (charlstm.UnknownCharacters, generation_pb2.UnknownCharacters),
        (charlstm.FinishReason, generation_pb2.FinishReason),
        (charlstm.State, training_pb2.State),
    ],
)
def test_an_enum_has_the_values_of_the_contract(kind: type, values: object) -> None:
    names = values.keys()  # type: ignore[attr-defined]
    prefix = names[0].removesuffix("UNSPECIFIED")
    names = [name.removeprefix(prefix) for name in names]
    if kind is charlstm.UnknownCharacters:
        names.remove("UNSPECIFIED")
    assert [it.name for it in kind] == names  # type: ignore[attr-defined]


def test_every_field_of_a_generation_is_an_option() -> None:
    fields = {field.name for field in generation_pb2.GenerateRequest.DESCRIPTOR.fields}
    fields |= {field.name for field in generation_pb2.Sampling.DESCRIPTOR.fields}
    # `generate_text` sends the same message.
    text_fields = generation_pb2.GenerateTextRequest.DESCRIPTOR.fields
    numbers = {it.name: it.number for it in generation_pb2.GenerateRequest.DESCRIPTOR.fields}
    assert {it.name: it.number for it in text_fields} == numbers
    elsewhere = {
        "owner",
        "model",
        "prime",
        "session_id",
        "sampling",
        "session_snapshot",
        "return_session",
    }
    assert set(GenerateOptions.__annotations__) == fields - elsewhere


@pytest.mark.parametrize("name", ["LICENSE-MIT", "LICENSE-APACHE"])
def test_the_licenses_are_those_of_the_repository(name: str) -> None:
    # Copies, because an archive of the sources would contain dangling links.
    assert (PYTHON / name).read_text() == (ROOT / name).read_text()


def test_everything_public_has_a_docstring() -> None:
    for name in charlstm.__all__:
        value = getattr(charlstm, name)
        assert name == "__version__" or value.__doc__, name


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="needs hatchling")
def test_the_wheel_is_complete_and_usable(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=PYTHON, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("charlstm-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    sources = (PYTHON / "src").rglob("*.py*")
    expected = {str(it.relative_to(PYTHON / "src")) for it in sources if it.suffix != ".pyc"}
    assert expected <= names
    assert "charlstm/py.typed" in names
    licenses = {it.rpartition("/")[2] for it in names if "licenses/" in it}
    assert licenses == {"LICENSE-MIT", "LICENSE-APACHE"}
    # Without a warning, also with a version of protobuf that is newer than the
    # generated code.
    program = "import charlstm; print(charlstm.__file__)"
    command = [sys.executable, "-W", "error", "-c", program]
    environment = {"PYTHONPATH": str(tmp_path / "installed")}
    printed = subprocess.run(
        command, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert printed.stdout.startswith(str(tmp_path / "installed"))
