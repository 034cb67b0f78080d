"""A profile is of three steps, in a form that viewers read."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from encdec_train.data.plan import BatchSize, Plan


@pytest.mark.parametrize(("steps", "kept"), [(6, 3), (1, 0)])
def test_a_trace_and_a_table_of_three_steps_that_change_no_number(
    steps: int, kept: int, new_model: Callable[..., Any], make_run: Callable[..., Any], plan: Plan
) -> None:
    small = Plan(plan.lengths, 11, BatchSize(2, None))  # every operation takes its time to be written
    made = make_run(new_model(), steps, plan=small, profile=True)
    assert made.losses == make_run(new_model(), steps, name="unseen", plan=small).losses
    if not kept:
        assert not (made.root / "profile").exists()
        return
    trace = json.loads(gzip.decompress((made.root / "profile" / "rank0.json.gz").read_bytes()))
    names = [event["name"] for event in trace["traceEvents"]]
    assert len({name for name in names if name.startswith("ProfilerStep#")}) == kept
    table = (made.root / "profile" / "rank0.txt").read_text(encoding="utf-8")
    assert "Self CPU time total" in table
    assert "aten::gelu_backward" in table
