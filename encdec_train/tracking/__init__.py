"""Who else is told about a run: W&B, TensorBoard or a CSV table, by choice and by rank 0 only.

`metrics.jsonl` is written in any case and not here. A tracker that fails says so once and is left alone: nothing it
raises reaches the run. To add one, write a file with a `start` function and add a line to `TRACKERS`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from encdec_train.config import TrackerName, TrackingConfig
from encdec_train.redact import redact
from encdec_train.tracking import csv_table, tensorboard_log, wandb_run
from encdec_train.tracking.tracker import Outcome, Tracker

__all__ = ["TRACKERS", "Outcome", "Tracker", "start"]

Builder = Callable[[TrackingConfig, Path, str, Mapping[str, object]], Tracker]

TRACKERS: dict[TrackerName, Builder] = {
    TrackerName.wandb: wandb_run.start,
    TrackerName.tensorboard: tensorboard_log.start,
    TrackerName.csv: csv_table.start,
    TrackerName.none: lambda settings, folder, run_id, config: Tracker(),
}


def start(
    kind: TrackerName, settings: TrackingConfig, folder: Path, run_id: str, config: Mapping[str, object]
) -> Tracker:
    """Open the chosen tracker for a new or a resumed run; call it on rank 0 alone.

    Args:
        kind: `auto` is wandb when a key, a mode or a settings file says that it is wanted here, else none.
        settings: Project, group and tags.
        folder: The run folder; everything a tracker writes lies below it.
        run_id: The run's name, the same at each start: a tracker continues the run that it knows by it.
        config: The resolved config; secrets in it are hidden before a tracker sees it.
    """
    if kind is TrackerName.auto:
        kind = TrackerName.wandb if wandb_run.is_configured() else TrackerName.none
    hidden = redact(config)
    return TRACKERS[kind](settings, folder, run_id, hidden if isinstance(hidden, dict) else {})
