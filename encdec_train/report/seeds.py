"""The verb `report`: runs that differ in their seed alone as one row, with an interval over the seeds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from encdec_train import console
from encdec_train.errors import DataError, fault
from encdec_train.fingerprint import json_sha256
from encdec_train.report.run_folder import RunRecord, read_run

# Student's t, the 97.5% quantile by degrees of freedom from 1 on (Fisher and Yates, any table); 1.96 for many.
T975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def seeds(runs: Sequence[str], split: str) -> dict[str, Any]:
    """Bring runs together that differ in their seed alone; say them as a table and return it.

    Returns:
        `split`, and `systems`: `name`, `runs`, `seeds` and `metrics`, by name, each with `mean` and `ci95`: Student's
        interval of the mean over the seeds, of which one alone has none (null).

    Raises:
        DataError: A folder is no finished run, or two are the same seed of the same system.
    """
    groups: dict[str, list[RunRecord]] = {}
    for folder in runs:
        record = read_run(Path(folder))
        if not record.manifest.get("finished") or split not in record.scores:
            raise DataError(fault("runs", f"finished runs of train with scores of {split}", folder))
        identity = {key: value for key, value in record.manifest["identity"].items() if key != "seed"}
        groups.setdefault(json_sha256(identity), []).append(record)
    systems = [_system(group, split) for group in groups.values()]
    console.say(_table(systems))
    return {"split": split, "systems": systems}


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return Student's 95% interval of the mean; None of a single value."""
    if len(values) < 2:
        return None
    freedom = len(values) - 1
    t = T975[freedom - 1] if freedom <= len(T975) else 1.96
    half = t * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def _system(group: Sequence[RunRecord], split: str) -> dict[str, Any]:
    found = [record.manifest["identity"]["seed"] for record in group]
    if len(set(found)) < len(found):
        raise DataError(fault("runs", "each seed of a system once", ", ".join(record.name for record in group)))
    scores = [record.scores[split] for record in group]
    names = [name for name in scores[0] if all(name in one for one in scores)]
    values = {name: [float(one[name]["value"]) for one in scores] for name in names}
    metrics = {name: {"mean": fmean(numbers), "ci95": interval(numbers)} for name, numbers in values.items()}
    identity: Mapping[str, Any] = group[0].manifest["identity"]
    name = f"{identity['task']['name']}-{identity['model']['name']}"
    return {"name": name, "runs": [record.name for record in group], "seeds": found, "metrics": metrics}


def _table(systems: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [system["runs"][0] if len(system["runs"]) == 1 else system["name"], str(len(system["seeds"])), name,
         f"{found['mean']:.2f}", "{:.2f} to {:.2f}".format(*found["ci95"]) if found["ci95"] else "one seed"]
        for system in systems for name, found in system["metrics"].items()
    ]  # fmt: skip
    return console.table(rows, ["system", "seeds", "metric", "mean", "95% interval over seeds"])
