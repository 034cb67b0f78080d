"""How many tokens fit is found by trying, and ranks take the least."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.two_ranks import on_two_ranks
from encdec_train import distributed
from encdec_train.folder import RunFolder
from encdec_train.training import budget


@pytest.mark.parametrize("most", [32768, 20000, 100])
@pytest.mark.parametrize("room", [100_000, 32768, 16384, 5000, 700, 512, 511, 60, 0])
def test_the_largest_that_fits_is_found_to_an_eighth(most: int, room: int) -> None:
    tried: list[int] = []

    def fits(tokens: int) -> bool:
        tried.append(tokens)
        return tokens <= room

    found = budget.largest(fits, most)
    best, first = min(room, most), min(512, most)
    assert found == 1 if best < first else best * 8 / 9 <= found <= best
    assert max(tried) <= most
    assert len(tried) <= 11


def test_ranks_agree_on_the_least_and_rank_0_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifest.json").write_text('{"identity": 1}', encoding="utf-8")
    folder, module = RunFolder(tmp_path, {}), SimpleNamespace(device=torch.device("cpu"))
    monkeypatch.setattr(budget, "_measured", lambda *_: 300 - 100 * distributed.rank())

    def run() -> list[int]:
        with distributed.joined():
            given: Any = (module, None, np.array([[3, 4], [9, 2]]), folder, tmp_path)
            first = budget.auto_budget(*given)
            distributed.barrier()
            monkeypatch.setattr(budget, "_measured", lambda *_: 7)  # asked no more
            return [first, budget.auto_budget(*given)]

    assert on_two_ranks(run) == [[200, 200]] * 2
    assert folder.manifest() == {"identity": 1, "max_micro_tokens": {"cpu": 200}}


@pytest.mark.parametrize(
    ("free", "low", "high"),
    [(100_000_000, 5333, 6000), (4_000_000, 3022, 3400), (100_000, 1, 1)],  # memory runs out; 85% of it; nothing fits
)
def test_a_gpu_is_tried_until_memory_runs_out_or_most_of_it_is_used(
    free: int, low: int, high: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    peak, tried = [0], set()

    def run(_: Any, lengths: tuple[int, int], tokens: int) -> int:
        tried.add(lengths)
        if tokens > 6000:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        peak[0] = 1000 * tokens
        return tokens

    answers = {"memory_allocated": 0, "memory_reserved": 0, "mem_get_info": (free, 2 * free)}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: peak.__setitem__(0, 0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: peak[0])
    monkeypatch.setattr(budget, "_try", run)
    module: Any = SimpleNamespace(device=torch.device("cpu"), model=torch.nn.Linear(2, 2))
    assert low <= budget._largest_that_fits(module, (60, 20)) <= high
    assert tried == {(60, 20), (20, 20)}
