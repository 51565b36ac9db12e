"""Listing, exporting, importing and deleting models."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from verse import MODEL, PRIME

import charlstm

CHECKPOINTS = Path(__file__).resolve().parents[2] / "tests" / "golden" / "checkpoints"


@pytest.mark.basics
def test_models_are_listed_and_described(client: charlstm.Client) -> None:
    model = client.models.get(MODEL)
    assert model.reference == f"{MODEL}@1"
    assert (model.hidden_size, model.num_layers) == (32, 2)
    assert "æ" in model.vocabulary
    assert model.training is not None
    assert model.training.recipe == "fast"
    assert model.train_loss is not None
    assert MODEL in [it.name for it in client.models()]
    assert 1 in client.models.versions(MODEL)


def test_an_exported_model_generates_the_same_after_its_import(
    client: charlstm.Client, tmp_path: Path
) -> None:
    path = tmp_path / "verse.safetensors"
    assert client.models.export(MODEL, path) == f"{MODEL}@1"
    assert [it.name for it in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_size == client.models.get(MODEL).bytes
    assert path.stat().st_mode & 0o400
    buffer = io.BytesIO()
    client.models.export(f"{MODEL}@1", buffer)
    assert buffer.getvalue() == path.read_bytes()
    imported = client.models.import_("copy", path)
    assert imported.training_id == ""
    again = client.models.import_("copy", io.BytesIO(path.read_bytes()))
    assert again.version == imported.version + 1

    def text(model: str) -> str:
        return client.generate(PRIME, model=model, seed=3).result().text

    assert text("copy") == text(MODEL)
    assert client.models.delete("copy@1") == (1,)
    assert client.models.delete("copy") == (2,)
    with pytest.raises(charlstm.NotFound) as raised:
        client.models.get("copy")
    assert raised.value.reason == "MODEL_NOT_FOUND"


def test_a_failed_export_leaves_the_old_file(client: charlstm.Client, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"precious")
    with pytest.raises(charlstm.NotFound):
        client.models.export("unknown", path)
    assert path.read_bytes() == b"precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_checkpoint_of_the_notebook_is_imported(client: charlstm.Client) -> None:
    model = client.models.import_(
        "notebook", CHECKPOINTS / "tokens.pth", format=charlstm.ModelFormat.PTH
    )
    assert model.hidden_size == 8
    assert len(client.generate(model.vocabulary[0], model="notebook").result().text) == 200


def test_a_file_that_is_no_model_is_rejected(client: charlstm.Client) -> None:
    with pytest.raises(charlstm.InvalidArgument) as raised:
        client.models.import_("bad", io.BytesIO(b"no model" * 100_000))
    assert raised.value.fields


def test_a_model_that_sessions_use_is_deleted_by_force_only(client: charlstm.Client) -> None:
    buffer = io.BytesIO()
    client.models.export(MODEL, buffer)
    buffer.seek(0)
    client.models.import_("used", buffer)
    session = client.session("user", model="used")
    session.generate(PRIME, max_chars=5).result()
    with pytest.raises(charlstm.FailedPrecondition, match="force"):
        client.models.delete("used")
    assert client.models.delete("used", force=True) == (1,)
    with pytest.raises(charlstm.ServerError):
        session.generate(max_chars=5).result()
