"""The losses of a training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from charlstm.training_events import (
    EpochProgress,
    StepProgress,
    TrainingEvent,
    TrainingRolledBack,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class History:
    """The steps and epochs that a training has reported so far.

    Attributes:
        steps: Steps, in order. Not every step is reported.
        epochs: Completed epochs, in order.
    """

    def __init__(self) -> None:
        self.steps: list[StepProgress] = []
        self.epochs: list[EpochProgress] = []

    def record(self, event: TrainingEvent) -> None:
        """Adds an event.

        Steps that are taken again, after the training was rolled back or resumed
        from a checkpoint, replace the previous ones.
        """
        match event:
            case StepProgress():
                self._drop_after(event.step - 1)
                self.steps.append(event)
            case EpochProgress():
                self.epochs = [it for it in self.epochs if it.epoch < event.epoch]
                self.epochs.append(event)
            case TrainingRolledBack():
                self._drop_after(event.checkpoint_step)
                self.epochs = [it for it in self.epochs if it.step <= event.checkpoint_step]
            case _:
                pass

    def _drop_after(self, step: int) -> None:
        while self.steps and self.steps[-1].step > step:
            self.steps.pop()

    @property
    def best_epoch(self) -> EpochProgress | None:
        """The epoch with the lowest validation loss; without one, the last epoch."""
        best = [epoch for epoch in self.epochs if epoch.best]
        return best[-1] if best else (self.epochs[-1] if self.epochs else None)

    def plot(self, axes: Axes | None = None) -> Axes:
        """Plots the losses over the steps, in nats and in bits.

        The mean training loss of an epoch is in its middle, the loss on the held-out
        text at its end. The epoch with the lowest validation loss is marked.

        Args:
            axes: Where to plot; by default a new figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError(
                "history.plot() needs matplotlib; run: pip install 'charlstm[plot]'"
            ) from error
        if axes is None:
            _, axes = pyplot.subplots()
        if self.steps:
            steps = [it.step for it in self.steps]
            axes.plot(steps, [it.loss for it in self.steps], alpha=0.35, label="step")
        if self.epochs:
            ends = [it.step for it in self.epochs]
            starts = [0, *ends[:-1]]
            middles = [(start + end) / 2 for start, end in zip(starts, ends, strict=True)]
            losses = [it.train_loss for it in self.epochs]
            axes.plot(middles, losses, marker=".", label="training")
        validated = [it for it in self.epochs if it.validation_loss is not None]
        if validated:
            losses = [it.validation_loss or 0.0 for it in validated]
            axes.plot([it.step for it in validated], losses, marker="o", label="validation")
            best = self.best_epoch
            if best is not None and best.validation_loss is not None:
                axes.axvline(best.step, linestyle=":", label=f"best: epoch {best.epoch}")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss (nats per character)")
        bits = axes.secondary_yaxis("right", functions=(_nats_to_bits, _bits_to_nats))
        bits.set_ylabel("bits per character")
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        return axes


def _nats_to_bits(nats: Any) -> Any:
    return nats / math.log(2)


def _bits_to_nats(bits: Any) -> Any:
    return bits * math.log(2)
