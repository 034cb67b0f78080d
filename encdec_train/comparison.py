"""The verb `compare`: do two systems differ, by how much, and on which examples most?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from encdec_train import console
from encdec_train.cluster import bundle
from encdec_train.config import CompareConfig
from encdec_train.data.load import Rows
from encdec_train.decoding.predictions import read_predictions
from encdec_train.errors import ConfigError, DataError, fault
from encdec_train.jsonl import parse_object
from encdec_train.metrics import LOWER_IS_BETTER, METRICS, expand
from encdec_train.metrics.significance import NUM_RESAMPLES, NUM_TRIALS, Tables, paired_tests

NUM_SHOWN = 5  # examples of those that changed most, in each direction


def compare(config: CompareConfig) -> dict[str, Any]:
    """Test the difference between the runs `a` and the runs `b`; say it as a table and return it. Nothing is written.

    Returns:
        `a` and `b` (names of runs), `split`, `num_examples`, `signature`, `metrics` (what `paired_tests` says, with
        `lower_is_better` and `signature`), `examples` (`metric` that ranks them, `a_better`, `b_better`).

    Raises:
        ConfigError: No such run or metric.
        DataError: A file cannot be read, or does not hold the examples of the others.
    """
    bundle.opened(config)  # nothing of it is read here; where it is damaged, every verb says so
    a, b = _files("a", config.a, config.split), _files("b", config.b, config.split)
    first, *others = [*a.values(), *b.values()]
    names = expand(config.task.metrics or _common_metrics([first, *others], config.split))
    rows, _ = read_predictions(first)
    texts = [_joined(file, first, rows) for file in (first, *others)]
    sources = rows.sources if all(rows.sources) else None
    if sources is None and (asking := [name for name in names if METRICS[name].needs_source]):
        reason, remedy = f"{', '.join(asking)} compares with it", "Leave these metrics out"
        raise DataError(fault(f"{first}:source", "one an example", "none for some", reason, remedy))
    tables = [{name: METRICS[name].statistics(run, rows.references, sources) for name in names} for run in texts]
    tests = paired_tests(tables[: len(a)], tables[len(a) :], config.seed)
    for name, found in tests.items():
        found |= {"lower_is_better": name in LOWER_IS_BETTER, "signature": METRICS[name].signature(rows.references)}
    result = {
        "a": list(a), "b": list(b), "split": config.split, "num_examples": len(rows),
        "signature": f"ar:{NUM_TRIALS}|bs:{NUM_RESAMPLES}|seed:{config.seed}", "metrics": tests,
        "examples": _changed(rows, texts, tables, len(a), NUM_SHOWN),
    }  # fmt: skip
    console.say(_report(result))
    return result


def _files(key: str, given: str | list[str], split: str) -> dict[str, Path]:
    """Find each run's predictions; it is named by its folder, that of `evaluate`, or the file itself."""
    names = [given] if isinstance(given, str) else given
    files = {name: path / "predictions" / f"{split}.jsonl" if (path := Path(name)).is_dir() else path for name in names}
    if len({file.resolve() for file in files.values()}) < max(1, len(names)):
        raise ConfigError(fault(key, "a run, or a list of different runs", given))
    for name, file in files.items():
        if not file.is_file():
            raise ConfigError(fault(key, "a run's folder or a file of predictions", name, f"there is no file {file}"))
    return files


def _common_metrics(files: Sequence[Path], split: str) -> list[str]:
    """List the metrics that every `metrics.json` has for the split; a file of predictions that lies alone has none."""
    beside = [file.parent.parent / "metrics.json" for file in files if file.parent.name == "predictions"]
    found = [
        parse_object(one.read_text("utf-8", "replace"), str(one)).get(split, {}) for one in beside if one.is_file()
    ]
    common = [name for name in (found[0] if found else ()) if all(name in scores for scores in found)]
    if not common:
        reason = f"there is no metrics.json with scores of {split} beside the predictions, or none that is in all"
        raise ConfigError(fault("task.metrics", "names of metrics", None, reason, "Set task.metrics=[chrf,rouge]"))
    return common


def _joined(file: Path, first: Path, rows: Rows) -> list[str]:
    """Read a file's predictions in the order of the first file, whose examples it must have."""
    theirs, texts = read_predictions(file)
    place, known = {one: index for index, one in enumerate(theirs.ids)}, set(rows.ids)
    wrong = {
        "missing": [one for one in rows.ids if one not in place],
        "unknown": [one for one in theirs.ids if one not in known],
    }
    if any(wrong.values()):
        reason = "; ".join(f"{len(ids)} {what}, such as {ids[0]!r}" for what, ids in wrong.items() if ids)
        raise DataError(fault(f"{file}:id", f"each id of {first} once", None, reason))
    for one, *ours in zip(rows.ids, rows.references, rows.sources, strict=True):
        its = [theirs.references[place[one]], theirs.sources[place[one]]]
        if its[0] != ours[0] or (its[1] != ours[1] and its[1] and ours[1]):
            raise DataError(fault(f"{file}:id {one!r}", f"references and source of {first}, {ours!r}", its))
    return [texts[place[one]] for one in rows.ids]


def _changed(rows: Rows, texts: list[list[str]], tables: Sequence[Tables], num_a: int, count: int) -> dict[str, Any]:
    """Pick the examples on which either side is better by most, means over its runs; equal ones in data order."""
    # BLEU ranks only where there is nothing else: a text of three tokens has no 4-grams
    by = next((name for name in tables[0] if "bleu" not in name), next(iter(tables[0])))
    values = np.array([[METRICS[by].value(row) for row in run[by]] for run in tables])
    differences = values[:num_a].mean(axis=0) - values[num_a:].mean(axis=0)
    picked: dict[str, Any] = {"metric": by}
    for side, sign in (("a_better", 1), ("b_better", -1)):
        gains = differences * (-sign if by in LOWER_IS_BETTER else sign)
        picked[side] = [
            {"id": rows.ids[one], "difference": float(differences[one]), "source": rows.sources[one],
             "references": rows.references[one], "a": [run[one] for run in texts[:num_a]],
             "b": [run[one] for run in texts[num_a:]]}
            for one in np.argsort(-gains, kind="stable")[:count] if gains[one] > 0
        ]  # fmt: skip
    return picked


def _report(result: dict[str, Any]) -> str:
    rows = [
        [f"{name} (lower is better)" if found["lower_is_better"] else name, f"{found['a']:.2f}", f"{found['b']:.2f}",
         f"{found['difference']:+.2f}", "{:+.2f} to {:+.2f}".format(*found["ci95"]), f"{found['p']:.4f}"]
        for name, found in result["metrics"].items()
    ]  # fmt: skip
    sides = "\n".join(f"{side}: {', '.join(result[side])}" for side in ("a", "b"))
    table = console.table(rows, ["metric", "a", "b", "a - b", "95% interval", "p"])
    below = "p: two-sided, of one metric, of these very runs. Interval: where a side has several runs, of seeds too."
    return f"{sides}\n{result['num_examples']:,} examples\n\n{table}\n{below}"
