"""Event files below `tensorboard/` in the run folder: `tensorboard --logdir outputs` shows all runs together."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from encdec_train.config import TrackingConfig
from encdec_train.tracking.tracker import Guarded, Outcome, Tracker, warn_failure

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

FOLDER_NAME = "tensorboard"


def start(settings: TrackingConfig, folder: Path, run_id: str, config: Mapping[str, object]) -> Tracker:
    """Continue the event files of the run folder, or begin some at the first logged step."""
    try:
        import torch.utils.tensorboard  # noqa: F401 - whether it can be imported is known before training
    except ImportError as error:
        warn_failure("TensorBoard", error, "`pip install tensorboard` provides it.")
        return Tracker()
    return Guarded(TensorBoardLog(folder / FOLDER_NAME, config), "TensorBoard", (OSError, RuntimeError, ValueError))


class TensorBoardLog(Tracker):
    """Scalars by step and texts as tables.

    The writer is opened at the first step that is logged, so that a resumed run hides what an earlier process wrote
    at or past that step.
    """

    def __init__(self, folder: Path, config: Mapping[str, object]) -> None:
        self._folder, self._config = folder, config
        self._writer: SummaryWriter | None = None
        self._last_step = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        writer = self._open(step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def log_examples(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """Add a Markdown table to the text tab."""
        self._open(step).add_text(name, _markdown(rows), step)

    def finish(self, summary: Mapping[str, float], outcome: Outcome) -> None:
        """Add the final scores at the last step and close the file."""
        if summary:
            self.log(self._last_step, summary)
        if self._writer is not None:
            self._writer.close()

    def _open(self, step: int) -> "SummaryWriter":
        if self._writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            purge_step = step if self._folder.exists() else None
            self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)
            text = json.dumps(self._config, indent=2, ensure_ascii=False, default=str)
            self._writer.add_text("config", "    " + text.replace("\n", "\n    "), step)
        self._last_step = step
        return self._writer


def _markdown(rows: Sequence[Mapping[str, str]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *[[row.get(name, "") for name in columns] for row in rows]]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
