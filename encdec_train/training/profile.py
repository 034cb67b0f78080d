"""`trainer.profile`: what a few steps spend their time on, as a Chrome trace and as a table."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from encdec_train import console, distributed

UNSEEN_STEPS, WARM_UP_STEPS, STEPS = 1, 1, 3  # of this start: left out; traced and thrown away; kept
ROWS = 40  # of the table


class ProfileSteps(pl.Callback):
    """Writes `profile/rank<number>.json.gz` (for chrome://tracing or ui.perfetto.dev) and `.txt` into a run's folder.

    Args:
        run: The run's folder.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / "profile" / f"rank{distributed.rank()}.json.gz"
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=UNSEEN_STEPS, warmup=WARM_UP_STEPS, active=STEPS, repeat=1),
            on_trace_ready=self._write,
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count steps."""
        self._profiler.start()

    def on_train_batch_end(self, *_: Any) -> None:  # noqa: ANN401 - Lightning's
        """Count a step."""
        self._profiler.step()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what there is of a run that was shorter."""
        self._profiler.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop the profiler."""
        self._profiler.stop()

    def _write(self, profiler: torch.profiler.profile) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self._path))
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=60)
        self._path.with_name(self._path.name.replace(".json.gz", ".txt")).write_text(table, encoding="utf-8")
        console.say(f"profile: {self._path}")
