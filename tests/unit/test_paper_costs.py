"""What docs/paper.md says an experiment costs."""

from pathlib import Path

import pytest

from benchmarks import paper_costs
from benchmarks.paper_costs import LENGTHS, Work, experiments, hours, merged, read, work_of
from encdec_train.compose import conf_dir

HIDDEN, FILTER, LAYERS = 768, 3072, 12
LAYER = 4 * HIDDEN * HIDDEN + 2 * HIDDEN * FILTER  # the matrices of a Transformer layer without cross-attention
FOLDER = conf_dir() / "experiment" / "paper"


@pytest.mark.slow
def test_the_page_is_what_the_command_prints() -> None:
    assert Path(paper_costs.PAGE).read_text(encoding="utf-8") == paper_costs.page()


def test_work_is_counted_as_by_hand() -> None:
    work = work_of("bertshare", "google-bert/bert-base-cased", None)
    assert work.per_source == LAYERS * LAYER + LAYERS * 2 * HIDDEN * HIDDEN  # the encoder; keys and values
    head = 28_996 * HIDDEN + HIDDEN * HIDDEN
    assert work.per_target == LAYERS * (LAYER + 2 * HIDDEN * HIDDEN) + head
    assert (work.hidden, work.layers) == (HIDDEN, (12, 12))


def test_gpt_is_one_stack_without_cross_attention() -> None:
    work = work_of("gpt", None, None)
    assert work.per_source == LAYERS * LAYER
    assert work.per_target == LAYERS * LAYER + 50_257 * HIDDEN


def test_a_choice_of_layers_costs_its_part() -> None:
    whole, part = (work_of("bertshare_large", None, layers) for layers in (None, 10))
    assert part.per_source * 24 == whole.per_source * 10
    assert part.layers == (10, 10)


def test_flops_of_a_pair() -> None:
    work = Work(per_source=10, per_target=100, hidden=8, layers=(2, 3))
    assert work.forward_flops(5, 7) == 2 * (50 + 700) + 4 * 8 * (2 * 25 + 3 * (49 + 35))


def test_steps_pairs_and_hours() -> None:
    one = read(FOLDER / "wmt14_en_de" / "bertshare.yaml")
    assert (one.name, one.task, one.model) == ("paper/wmt14_en_de/bertshare", "wmt14_en_de", "bertshare")
    assert one.steps == 30 * 17_613  # 4,508,785 pairs in batches of 256, the last one ragged
    assert read(FOLDER / "wikisplit" / "bertshare_large.yaml").pairs == 100_000 * 256
    assert hours(989e12 * 0.35 * 3600, 1) == pytest.approx(1.0)
    assert hours(989e12 * 0.35 * 3600, 8) == pytest.approx(1 / 7.2)


def test_bases_are_merged_as_hydra_does() -> None:
    values = merged(FOLDER / "cnn_dailymail" / "bertshare.yaml")
    assert values["data"]["batch_examples"] == 128  # the task's, over the 256 of all
    assert values["optim"]["warmup_steps"] == 40_000


def test_every_task_has_lengths_and_every_experiment_is_listed() -> None:
    assert {one.task for one in experiments()} == set(LENGTHS)
    text = Path(paper_costs.PAGE).read_text(encoding="utf-8")
    assert [one.name for one in experiments() if f"| `{one.name}` | {one.score} |" not in text] == []
