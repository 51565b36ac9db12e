"""Training models, and what a program learns of it."""

from __future__ import annotations

import hashlib
import io
import math
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from verse import OPTIONS, verse

import charlstm
from charlstm.corpus import Corpus, chunks
from charlstm.training_flow import TrainingOptions
from charlstm.v1.training_pb2 import TrainingSpec


@pytest.mark.basics
def test_a_training_iterates_over_its_events(client: charlstm.Client) -> None:
    text = verse(6000)
    training = client.train(text, model="events", progress=False, **OPTIONS)
    assert training.id == ""
    events = list(training)
    accepted, finished = events[0], events[-1]
    assert isinstance(accepted, charlstm.TrainingAccepted)
    assert accepted.corpus_chars == len(text)
    assert accepted.vocabulary_size == len(set(text))
    assert accepted.resolved_spec.hidden_size == 32
    assert accepted.resolved_spec.init_from is None
    assert training.accepted is accepted
    epochs = [it for it in events if isinstance(it, charlstm.EpochProgress)]
    assert [it.epoch for it in epochs] == [1, 2]
    assert all(it.sample and it.validation_loss is not None for it in epochs)
    assert isinstance(finished, charlstm.TrainingFinished)
    assert finished.state is charlstm.State.SUCCEEDED
    assert finished.reference == "events@1"
    assert training.finished is finished is training.result()
    assert [it.sequence for it in events] == list(range(len(events)))
    assert training.history.epochs == epochs
    assert training.history.best_epoch == epochs[-1]
    info = client.trainings.get(training.id)
    assert (info.state, info.version) == (charlstm.State.SUCCEEDED, 1)
    assert info.spec == accepted.resolved_spec
    assert info.corpus_sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert training.id in [it.training_id for it in client.trainings()]
    # The history can be watched later.
    assert [it for it in client.trainings.watch(training.id) if it.sequence >= len(events) - 1] == [
        finished
    ]


def test_a_text_a_path_and_a_file_are_the_same_corpus(
    client: charlstm.Client, tmp_path: Path
) -> None:
    text = verse(6000)
    path = tmp_path / "verse.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    sources: list[Corpus] = [text, path, io.StringIO(text), io.BytesIO(text.encode())]
    losses = set()
    for source in sources:
        training = client.train(source, model="sources", progress=False, **OPTIONS)
        losses.add(training.result().train_loss)
        assert training.accepted is not None
        assert training.accepted.corpus_chars == len(text)
    assert len(losses) == 1


def test_a_large_corpus_is_streamed_in_chunks(client: charlstm.Client, tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    # Larger than one gRPC message.
    text = verse(3_000) * 2_000
    path.write_text(text, encoding="utf-8")
    assert path.stat().st_size > 5 << 20
    training = client.train(path, model="large", progress=False, **OPTIONS)
    with training:
        accepted = next(training)
        assert isinstance(accepted, charlstm.TrainingAccepted)
        assert accepted.corpus_chars == len(text)
        training.cancel()
        with pytest.raises(charlstm.TrainingNotSucceeded) as raised:
            training.result()
    assert raised.value.finished.state is charlstm.State.CANCELLED
    resumed = client.trainings.resume(raised.value.training_id)
    assert resumed.state in (charlstm.State.QUEUED, charlstm.State.RUNNING)
    client.trainings.cancel(resumed.training_id)
    events = list(client.trainings.watch(resumed.training_id))
    assert any(isinstance(it, charlstm.TrainingResumed) for it in events)
    assert client.trainings.delete(resumed.training_id).training_id == resumed.training_id
    with pytest.raises(charlstm.NotFound):
        client.trainings.get(resumed.training_id)


def test_the_name_of_a_file_is_not_taken_for_a_text(
    client: charlstm.Client, tmp_path: Path
) -> None:
    path = tmp_path / "book.txt"
    path.write_text("a text")
    with pytest.raises(ValueError, match=r"use pathlib\.Path"):
        client.train(str(path), model="book")
    with pytest.raises(FileNotFoundError):
        client.train(tmp_path / "missing.txt", model="book")


def test_a_file_that_is_not_utf_8_is_named(client: charlstm.Client, tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9 " * 1000)
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8"):
        client.train(path, model="latin").result()


def test_a_corpus_that_fails_partway_starts_no_training(client: charlstm.Client) -> None:
    class Failing(io.StringIO):
        def read(self, size: int | None = -1) -> str:
            if self.tell() > 0:
                raise OSError("the disk is gone")
            return super().read(4000)

    before = len(client.trainings())
    with pytest.raises(OSError, match="the disk is gone"):
        client.train(Failing(verse(6000)), model="failing", **OPTIONS).result()
    assert len(client.trainings()) == before


def test_invalid_options_are_rejected(client: charlstm.Client) -> None:
    with pytest.raises(TypeError, match="no option 'hidden'"):
        client.train("text", model="x", hidden=3)  # type: ignore[call-arg]
    with pytest.raises(charlstm.InvalidArgument) as raised:
        client.train(verse(6000), model="x", epochs=0).result()
    assert raised.value.fields[0].field == "epochs"


def test_every_field_of_the_spec_is_an_option_and_an_attribute() -> None:
    names = {field.name for field in TrainingSpec.DESCRIPTOR.fields}
    assert set(TrainingOptions.__annotations__) == names - {"model"}
    assert {field.name for field in fields(charlstm.TrainingSpec)} == names


def test_a_progress_bar_shows_the_losses(
    client: charlstm.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tqdm")
    client.train(verse(6000), model="bar", progress=True, **OPTIONS).result()
    shown = capsys.readouterr().err
    assert "training: 100%" in shown
    assert "validation=" in shown


def test_a_missing_optional_package_is_named(
    client: charlstm.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tqdm.auto", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"charlstm\[progress\]"):
        client.train("text", model="x", progress=True)
    with pytest.raises(ImportError, match=r"charlstm\[plot\]"):
        charlstm.History().plot()
    # By default there is no bar then.
    assert client.train(verse(6000), model="x", **OPTIONS).result().version > 0


def test_the_history_is_plotted(client: charlstm.Client, tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    training = client.train(verse(6000), model="plot", progress=False, **OPTIONS)
    training.result()
    axes = training.history.plot()
    labels = [line.get_label() for line in axes.get_lines()]
    assert labels == ["step", "training", "validation", "best: epoch 2"]
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(tmp_path / "loss.png")
    assert charlstm.History().plot(axes) is axes


def step(number: int) -> charlstm.StepProgress:
    values = {"loss": 1.0, "gradient_norm": 1.0, "chars_per_second": 1.0, "eta_seconds": 0.0}
    return charlstm.StepProgress(
        training_id="t",
        sequence=number,
        epoch=1,
        step=number,
        total_steps=9,
        learning_rate=0.1,
        **values,
    )


def test_steps_that_are_taken_again_replace_the_previous_ones() -> None:
    history = charlstm.History()
    for number in (1, 3, 5):
        history.record(step(number))
    history.record(
        charlstm.TrainingRolledBack(
            training_id="t",
            sequence=6,
            step=5,
            loss=math.nan,
            checkpoint_step=3,
            learning_rate=0.1,
            attempt=1,
            message="diverged",
        )
    )
    assert [it.step for it in history.steps] == [1, 3]
    for number in (4, 5, 2):
        history.record(step(number))
    assert [it.step for it in history.steps] == [1, 2]


def test_chunks_are_utf_8_and_characters_are_complete() -> None:
    text = "æ🦀x" * 50_000
    parts = list(chunks(text))
    assert len(parts) > 1
    assert b"".join(parts).decode() == text
    assert all(part.decode() for part in parts)
    assert list(chunks("")) == []
