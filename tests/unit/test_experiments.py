"""Every experiment composes, checks, and says what the paper says; one of each task takes two steps."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from encdec_train import config as config_module
from encdec_train import run, tasks
from encdec_train.compose import compose, conf_dir
from encdec_train.config import Schedule, TaskConfig, TrainConfig
from encdec_train.errors import ConfigError

FOLDER = conf_dir() / "experiment"
NAMES = sorted(
    path.relative_to(FOLDER).with_suffix("").as_posix()
    for path in FOLDER.rglob("*.yaml")
    if not path.name.startswith("_")
)
NUM_EXPERIMENTS = 81
VARIANTS = {
    *("bert2bert", "bert2gpt", "bert2rnd", "bertshare", "bertshare_large", "gpt", "rnd2bert", "rnd2gpt", "rnd2rnd"),
    *("roberta2gpt", "robertashare", "robertashare_large"),
}
TRANSLATION = VARIANTS - {"bertshare_large", "roberta2gpt", "robertashare", "robertashare_large"}
# task -> steps, examples a step, tokens in, tokens out: the paper's section 4
PAPER: dict[str, tuple[int | None, int, int, int]] = {
    "cnn_dailymail": (300_000, 128, 512, 128),
    "discofuse": (300_000, 256, 128, 128),
    "gigaword": (500_000, 256, 128, 32),
    "wikisplit": (300_000, 256, 128, 128),
    "wmt14_de_en": (None, 256, 128, 128),  # 30 epochs
    "wmt14_en_de": (None, 256, 128, 128),
    "xsum": (200_000, 128, 512, 64),
}
ABLATIONS = {
    *("bert2bert_only_embeddings", "bertshare_all_but_embeddings", "bertshare_frozen_first"),
    *("bertshare_large_best_10", "bertshare_large_first_10"),
}


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make tasks and models that are not there (yet) out of those that are; returns a --config-dir.

    Where all are there it changes nothing, and the folder is empty.
    """
    folder = tmp_path / "conf"
    folder.mkdir()
    for name in PAPER:
        if name not in tasks.TASKS:
            monkeypatch.setitem(tasks.TASKS, name, tasks.TASKS["files"])
            write(folder / "task" / f"{name}.yaml", f"defaults:\n  - files\n  - _self_\n\nname: {name}\nsubset: null\n")
    if "subset" not in {f.name for f in dataclasses.fields(TaskConfig)}:
        kinds = [("subset", str | None, dataclasses.field(default=None))]
        wider = dataclasses.make_dataclass("TaskConfig", kinds, bases=(TaskConfig,), kw_only=True)
        monkeypatch.setitem(TrainConfig.__annotations__, "task", wider)
    if not (conf_dir() / "model" / "gpt.yaml").is_file():
        write(
            folder / "model" / "gpt.yaml",
            "defaults:\n  - bert2bert\n  - _self_\n\nname: gpt\nencoder: openai-community/gpt2\n",
        )
    return str(folder)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


def composed(name: str, config_dir: str, *more: str) -> Any:
    local = ["task.train_file=train.jsonl"] if "discofuse" in name else []
    return compose("train", [f"experiment={name}", *local, *more], config_dir)


def test_none_is_overlooked() -> None:
    assert len(NAMES) == NUM_EXPERIMENTS
    found: dict[str, set[str]] = {}
    for name in NAMES:
        paper, task, variant = name.split("/")
        assert paper == "paper"
        found.setdefault(task, set()).add(variant)
    assert set(found) == set(PAPER)
    assert found.pop("wmt14_en_de") == found.pop("wmt14_de_en") == TRANSLATION
    assert found.pop("discofuse") == VARIANTS | ABLATIONS
    assert all(variants == VARIANTS for variants in found.values())


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_composes_and_checks(name: str, stand_ins: str) -> None:
    config = composed(name, stand_ins)
    _, task, variant = name.split("/")
    assert config.task.name == task
    assert config.model.name == variant or variant in ABLATIONS
    steps, batch, longest_source, longest_target = PAPER[task]
    if task == "wikisplit" and variant.endswith("large"):
        steps = 100_000
    if variant == "bertshare_frozen_first":
        steps = 400_000
    assert (config.trainer.max_steps, config.data.batch_examples) == (steps, batch)
    assert config.trainer.max_epochs == 30 or steps is not None
    assert config.task.limits == (longest_source, longest_target)
    assert (config.optim.name.value, config.optim.schedule, config.optim.warmup_steps) == (
        "adam", Schedule.inverse_sqrt, 40_000,
    )  # fmt: skip
    translation = task.startswith("wmt14")
    assert config.decoding.length_penalty == (0.6 if translation else 1.0)
    assert config.decoding.no_repeat_ngram == 0  # one search for all variants: gpt could not quote its source
    if translation and "google-bert" in (config.model.encoder or ""):
        assert config.model.encoder == "google-bert/bert-base-multilingual-cased"


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_the_paper_scored(name: str) -> None:
    line = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[1]
    table = {"discofuse": "2", "wikisplit": "3", "wmt14_de_en": "4", "wmt14_en_de": "4"}.get(name.split("/")[1], "5")
    start = rf"# Table {table}: " if name.rpartition("/")[2] not in ABLATIONS else r"# (Table 6|Section 5): "
    assert re.match(start + r".*\d", line), line


FIGURES = {
    "paper/wikisplit/bertshare": "Table 3: exact 16.3, SARI 63.5, BLEU 77.2",
    "paper/discofuse/roberta2gpt": "Table 2: exact 65.6, SARI 89.9; of 10% of the examples SARI 87.1, of 1% 80.3",
    "paper/wmt14_de_en/bert2gpt": "Table 4: uncased BLEU 31.4 on newstest2014, 37.0 on newstest2016",
    "paper/xsum/robertashare_large": "Table 5: ROUGE-1/2/L 41.45 / 18.79 / 33.90",
    "paper/cnn_dailymail/bertshare": "Table 5: ROUGE-1/2/L 39.09 / 18.10 / 36.33",
    "paper/gigaword/bertshare_large": "Table 5: ROUGE-1/2/L 38.35 / 19.80 / 35.66",
}


@pytest.mark.parametrize("name", FIGURES)
def test_its_figures_are_the_papers(name: str) -> None:
    assert (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[1] == f"# {FIGURES[name]}."


def test_what_the_paper_does_not_state_is_marked() -> None:
    marked = [path for path in FOLDER.rglob("*.yaml") if "our choice" in path.read_text(encoding="utf-8")]
    base = (FOLDER / "paper" / "_base.yaml").read_text(encoding="utf-8")
    for key in (
        "lr",
        "weight_decay",
        "betas",
        "label_smoothing",
        "max_grad_norm",
        "precision",
        "num_beams",
        "no_repeat_ngram",
    ):
        assert re.search(rf"^  {key}: (\S+|\[.+\]) # our choice", base, re.MULTILINE), key
    unmarked = [
        path.name
        for path in FOLDER.rglob("*.yaml")
        if "google-bert/" in path.read_text(encoding="utf-8") and path not in marked and "wmt14" not in path.parent.name
    ]
    assert unmarked == []


def test_an_experiment_is_a_choice_like_any_other(stand_ins: str) -> None:
    config = composed("paper/wikisplit/bertshare", stand_ins, "optim.lr=3e-4", "model=bert2rnd", "seed=4")
    assert (config.optim.lr, config.model.name, config.seed) == (3e-4, "bert2rnd", 4)
    with pytest.raises(
        ConfigError, match=r"experiment: .* got 'paper/wikisplt/bertshare'\. Did you mean paper/wikisplit"
    ):
        compose("train", ["experiment=paper/wikisplt/bertshare"])
    with pytest.raises(ConfigError, match=r"experiment: expected one of"):
        compose("train", ["experiment=paper/wikisplit/_base"])
    with pytest.raises(ConfigError, match=r"experiment: expected a known key; 'experiment=x' sets nothing"):
        compose("evaluate", ["checkpoint=x", "experiment=x"])


TINY = (
    "model.encoder=bert", "trainer.max_steps=2", "optim.warmup_steps=0", "optim.schedule=constant",
    "data.batch_examples=8", "task.max_source_tokens=32", "task.max_target_tokens=32", "trainer.precision=fp32",
    "trainer.accelerator=cpu", "tracking=none", "run.output_dir=out", "run.name=run", "decoding.num_beams=1",
    "run.baselines=[]", "task.metrics=[exact_match]", "task.source_column=source", "task.target_column=target",
)  # fmt: skip


@pytest.mark.parametrize("task", PAPER)
def test_one_of_each_task_takes_two_steps(
    task: str, stand_ins: str, tiny_bert: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own rows are not downloaded: local files stand in, in the columns that `files` reads."""
    from encdec_train.data import sources

    monkeypatch.chdir(pairs_file.parent)
    Path("bert").symlink_to(tiny_bert)
    monkeypatch.setitem(sources.SOURCES, tasks.TASKS[task].source, local_rows)
    config = compose("train", [f"experiment=paper/{task}/bertshare", *TINY, "task.train_file=train.jsonl"], stand_ins)
    folder = run.train(config)
    rows = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if "train/loss" in line]
    assert len(rows) == 2
    assert (folder / "export" / "model.safetensors").is_file()


def local_rows(task: Any, _: Path) -> dict[str, Any]:
    from encdec_train.data.load import load_file
    from encdec_train.data.sources import SplitSource

    def read() -> Any:
        return load_file(Path("train.jsonl"), ("source", "target"), key="task.train_file")

    assert task.train_file == "train.jsonl"
    return {"train": SplitSource("tiny", read)}


def test_the_stand_ins_stand_aside_for_the_real_tasks(stand_ins: str) -> None:
    shipped = {path.stem for path in (conf_dir() / "task").glob("*.yaml")}
    written: Sequence[Path] = list(Path(stand_ins).rglob("task/*.yaml"))
    assert {path.stem for path in written} == set(PAPER) - shipped
    assert config_module.TaskConfig is TaskConfig
