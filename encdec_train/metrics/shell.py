"""The metrics as `evaluate.Metric` objects, for code that expects that interface.

`evaluate.load` needs the network for every name, also where all dependencies are installed (evaluate 0.4.6); these are
built in place. They keep their rows in memory and never touch the Hugging Face cache. For several processes gather the
predictions first: `evaluate` itself drops ranks without rows.
"""

from collections.abc import Sequence
from typing import Any

import evaluate
from datasets import Features, Value

from encdec_train.errors import ConfigError, DataError, fault
from encdec_train.metrics import METRICS
from encdec_train.metrics.score import score


class ShellMetric(evaluate.Metric):  # type: ignore[misc]
    """One of `METRICS` behind `compute`, `add` and `add_batch`.

    `compute(predictions=…, references=…, sources=…)` returns the value under the metric's name, `signature` and `ci95`;
    `references` is a list of texts an example, `sources` is asked for by SARI only.
    """

    def __init__(self, name: str) -> None:
        self._metric = METRICS[name]
        super().__init__(config_name=name, keep_in_memory=True)
        self.info.module_name = name  # not the class's, which `evaluate.combine` would have to number

    def _build_data_dir(self) -> str:
        return ""  # the library would create a folder here, although nothing is written in memory mode

    def _finalize(self) -> None:
        if self.writer is None:  # the library would look for an attribute of None
            raise DataError(fault("predictions", "1 or more before compute()", 0, "there is nothing to score"))
        super()._finalize()

    def _info(self) -> evaluate.MetricInfo:
        columns = {"predictions": Value("string"), "references": [Value("string")]}
        if self._metric.needs_source:
            columns["sources"] = Value("string")
        return evaluate.MetricInfo(
            description=f"{self._metric.name} on 0-100, with signature and 95 % bootstrap interval.",
            citation="",
            inputs_description="predictions, references (a list an example), sources where the metric needs them",
            features=Features(columns),
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        sources: Sequence[str] | None = None,
        **options: Any,  # noqa: ANN401 - `seed` and `num_resamples` of `score`
    ) -> dict[str, Any]:
        name = self._metric.name
        result = score(predictions, references, sources, [name], **options)[name]
        return {name: result["value"], "signature": result["signature"], "ci95": result["ci95"]}


def as_evaluate_metric(name: str) -> evaluate.Metric:
    """Return the metric of that key as an `evaluate.Metric`, without download and without files.

    Args:
        name: A key of `METRICS`; a group is several metrics and has no single value.

    Raises:
        ConfigError: The name is unknown or a group.
    """
    if name not in METRICS:
        raise ConfigError(fault("name", f"one of {', '.join(METRICS)}", name))
    return ShellMetric(name)
