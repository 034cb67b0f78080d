"""`encdec train` without arguments, with a corpus and a checkpoint small enough for a test.

That the demo learns is shown by `make demo`, which CI runs in full; here it is shown that its parts hang together.
"""

import json
from functools import partial
from pathlib import Path

import pytest

from encdec_train import session
from encdec_train.cli import main
from encdec_train.compose import compose
from encdec_train.data import demo, sources
from encdec_train.modeling import pretrain

FEW = [
    "trainer.max_steps=3",
    "trainer.validate_every_steps=2",
    "trainer.accelerator=cpu",
    "data.batch_examples=8",
    "decoding.max_new_tokens=4",
    "tracking=none",
]


@pytest.fixture
def small_demo(tmp_path, monkeypatch) -> Path:
    sizes = partial(demo.DemoSizes, train=36, validation=18, test=9, test_unseen_words=9, pretrain_passages=60)
    shape = partial(pretrain.PretrainSettings, hidden_size=32, num_heads=2, intermediate_size=64, steps=3, batch=4)
    monkeypatch.setattr(demo, "DemoSizes", sizes)
    monkeypatch.setattr(sources, "DemoSizes", sizes)
    monkeypatch.setattr(pretrain, "PretrainSettings", shape)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_no_argument_is_the_demo() -> None:
    config = compose("train")
    assert (config.task.name, config.model.name, config.model.encoder) == ("demo", "bert2bert", session.DEMO)
    assert config.model.decoder == session.DEMO


def test_the_demo_scores_itself_beside_two_baselines(small_demo, capsys) -> None:
    assert main(["train", *FEW]) == 0
    said = capsys.readouterr().err
    (folder,) = [path for path in (small_demo / "outputs").iterdir() if path.name.startswith("demo-bert2bert-")]
    metrics = json.loads((folder / "metrics.json").read_text())
    splits = {"test", "test_unseen_words"}
    assert set(metrics) == splits | {"baselines"}
    assert list(metrics["baselines"]) == ["copy", "ceiling", "random"]
    assert all(set(scores) == splits for scores in metrics["baselines"].values())
    assert metrics["baselines"]["ceiling"]["test"]["exact_match"]["value"] == 0  # in four tokens
    assert metrics["baselines"]["copy"]["test"]["exact_match"]["value"] == 0
    for name in splits:
        lines = (folder / "predictions" / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == [f"{name}-{n}" for n in range(9)]
    header = next(line for line in said.splitlines() if line.startswith("split"))
    assert header.split() == ["split", "metric", "score", "95%", "interval", "copy", "ceiling", "random"]
    assert said.count("  source  ") == said.count("  prediction  ") == 5
    assert f" generate checkpoint={folder.relative_to(small_demo)}/export" in said
    assert " train task=files task.train_file=" in said

    assert main(["train", *FEW]) == 0
    assert "is finished" in capsys.readouterr().err


def test_the_checkpoint_is_made_once_for_all_runs(small_demo, capsys) -> None:
    assert main(["train", *FEW, "run.baselines=[]"]) == 0
    assert "pretraining a tiny BERT" in capsys.readouterr().err
    assert main(["train", *FEW, "run.baselines=[]", "seed=1", "model=bertshare"]) == 0
    assert "pretraining a tiny BERT" not in capsys.readouterr().err
    names = [path.name[:15] for path in (small_demo / "outputs").iterdir() if not path.name.startswith(".")]
    assert sorted(names) == ["demo-bert2bert-", "demo-bertshare-"]
