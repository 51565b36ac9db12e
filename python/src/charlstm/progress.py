"""A progress bar for trainings, with tqdm if it is installed."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from charlstm.training_events import (
    CheckpointFailed,
    EpochProgress,
    StepProgress,
    TrainingEvent,
    TrainingFinished,
    TrainingResumed,
    TrainingRolledBack,
)


class ProgressBar:
    """Shows the events of a training."""

    def __init__(self, tqdm: Any) -> None:
        self._tqdm = tqdm
        self._bar: Any = None
        self._losses: dict[str, str] = {}

    @classmethod
    def create(cls, wanted: bool | None) -> ProgressBar | None:
        """Returns a bar if it is wanted.

        None means: if tqdm is installed, and a person may be watching (standard error
        is a terminal, or the program is a notebook).

        Raises:
            ImportError: It is wanted, and tqdm is not installed.
        """
        if wanted is False or (wanted is None and not _is_watched()):
            return None
        try:
            with warnings.catch_warnings():
                # In a notebook without ipywidgets, the bar consists of text.
                warnings.simplefilter("ignore")
                from tqdm.auto import tqdm
        except ImportError as error:
            if wanted is None:
                return None
            raise ImportError(
                "a progress bar needs tqdm; run: pip install 'charlstm[progress]'"
            ) from error
        return cls(tqdm)

    def show(self, event: TrainingEvent) -> None:
        """Shows an event."""
        match event:
            case StepProgress():
                self._move(event.step, event.total_steps)
                self._losses["loss"] = f"{event.loss:.3f}"
            case EpochProgress():
                self._losses["epoch"] = str(event.epoch)
                if event.validation_loss is not None:
                    self._losses["validation"] = f"{event.validation_loss:.3f}"
            case TrainingRolledBack():
                self._note(f"rolled back to step {event.checkpoint_step}: {event.message}")
                self._move(event.checkpoint_step, None)
            case TrainingResumed():
                self._move(event.step, None)
            case CheckpointFailed():
                self._note(f"checkpoint not saved: {event.message}")
            case TrainingFinished():
                self.close()
            case _:
                pass
        if self._bar is not None:
            self._bar.set_postfix(self._losses)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _move(self, step: int, total: int | None) -> None:
        if self._bar is None:
            if total is None:
                return
            self._bar = self._tqdm(total=total, unit="step", desc="training", initial=0)
        self._bar.n = step
        self._bar.refresh()

    def _note(self, message: str) -> None:
        self._tqdm.write(message, file=sys.stderr)


def _is_watched() -> bool:
    if "ipykernel" in sys.modules:
        return True
    return sys.stderr is not None and sys.stderr.isatty()
