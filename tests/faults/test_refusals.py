"""What could run code or write elsewhere is refused before anything is loaded: crafted files, each with a canary."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.runs import BASE

CODE = """
from pathlib import Path
Path({canary!r}).write_text("run")
from transformers import BertConfig, BertModel
class EvilConfig(BertConfig): pass
class EvilModel(BertModel): pass
"""


class Touch:
    """What a pickle does when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._canary,)


def with_auto_map(model: Path, canary: Path) -> None:
    (model / "evil.py").write_text(CODE.format(canary=str(canary)))
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}
    (model / "config.json").write_text(json.dumps(config | {"model_type": "evil"}))


def with_auto_map_of_a_known_type(model: Path, canary: Path) -> None:
    (model / "evil.py").write_text(CODE.format(canary=str(canary)))
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}
    (model / "config.json").write_text(json.dumps(config))


def with_a_pickle(model: Path, canary: Path) -> None:
    for file in model.glob("*.safetensors"):
        file.unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(canary)))


def with_a_pickle_named_safetensors(model: Path, canary: Path) -> None:
    for file in model.glob("*.safetensors"):
        file.write_bytes(pickle.dumps(Touch(canary)))


def with_a_tokenizer_of_code(model: Path, canary: Path) -> None:
    (model / "evil.py").write_text(CODE.format(canary=str(canary)))
    file = model / "tokenizer_config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    config |= {"auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}, "tokenizer_class": "EvilTokenizer"}
    file.write_text(json.dumps(config))


CRAFTED = {
    with_auto_map: "whose `config.json` has an unknown `model_type` and an `auto_map` to `evil.py` beside it",
    with_auto_map_of_a_known_type: "of a known `model_type` with the same `auto_map`",
    with_a_pickle: "with a pickle as `pytorch_model.bin` and no other weights",
    with_a_pickle_named_safetensors: "with a pickle named `model.safetensors`",
    with_a_tokenizer_of_code: "whose `tokenizer_config.json` names a class of `evil.py`",
}
HARMLESS = {"with_auto_map_of_a_known_type", "with_a_tokenizer_of_code"}  # may be ignored instead of refused


@pytest.mark.parametrize("craft", CRAFTED)
def test_09_a_checkpoint_that_holds_code(
    craft: Callable[[Path, Path], None], new_run: Callable[..., Any], tiny_bert: Path, tmp_path: Path,
    refusal: Callable[[str, str], None],
) -> None:  # fmt: skip
    model, canary = tmp_path / "model", tmp_path / "canary"
    shutil.copytree(tiny_bert, model)
    craft(model, canary)
    end = new_run(*BASE).start(1, overrides=[f"model.encoder={model}"])
    assert not canary.exists()
    assert end.statuses[0] == 2 or (end.statuses[0] == 0 and craft.__name__ in HARMLESS), end.err[0]
    assert "Traceback" not in end.err[0]
    what = "refused with status 2" if end.statuses[0] == 2 else "nothing of it is run, the code is ignored"
    refusal(f"a checkpoint {CRAFTED[craft]}", f"{what}; no canary")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+model._target_=os.system", "_target_"),
        ("+task._target_=builtins.eval", "_target_"),
        ("+_target_=os.system", "_target_"),
        ("'run.name=${oc.env:HOME}'", "run.name"),
        ("task.source_column=${oc.env:CANARY}", "task.source_column"),
        ("'task.source_column=${oc.${model.name}:HOME}'", "task.source_column"),
        ("'task.source_column=${oc.decode:1}'", "task.source_column"),
        ("run.name=../elsewhere", "run.name"),
        ("run.name=a/b", "run.name"),
        ("run.name=..", "run.name"),
        ("tracking.project=hf_AAAAAAAAAAAAAAAAAAAAAAAA", "tracking.project"),
        ("tracking.tags=[sk-AAAAAAAAAAAAAAAAAAAAAAAA]", "tracking.tags"),
        ("+tracking.api_key=hf_AAAAAAAAAAAAAAAAAAAAAAAA", "tracking.api_key"),
    ],
)
def test_09_a_config_that_holds_code_paths_or_keys(
    override: str, said: str, new_run: Callable[..., Any], refusal: Callable[[str, str], None]
) -> None:
    run = new_run(*BASE)
    plain = override.strip("'")
    argv = ["train", *BASE, plain, f"run.output_dir={run.folder}"]
    end = run.start(1, argvs=[argv], environment={"CANARY": "a-canary-of-the-environment"})
    assert end.statuses == [2], end.err[0]
    assert said in end.err[0]
    assert "Traceback" not in end.err[0]
    everything = end.err[0] + (run.folder / "start1.out").read_text()
    assert "a-canary-of-the-environment" not in everything
    assert [path.name for path in run.folder.iterdir() if path.is_dir()] == []
    if "AAAA" in plain and not plain.startswith("+"):
        assert "AAAA" not in everything
    refusal(f"`{plain.replace('A' * 24, '…')}` on the command line", "refused with status 2, nothing is written")


def test_09_a_training_checkpoint_is_never_unpickled(
    new_run: Callable[..., Any], tmp_path: Path, refusal: Callable[[str, str], None]
) -> None:
    run, canary = new_run(*BASE), tmp_path / "canary"
    run.kill(1, "step_end", 7)
    folder = run.path / "checkpoints" / "step_00000006"
    (folder / "optimizer.safetensors").write_bytes(pickle.dumps(Touch(canary)))
    (folder / "optimizer.pt").write_bytes(pickle.dumps(Touch(canary)))
    end = run.finish(1)
    assert not canary.exists()
    assert "optimizer.safetensors: expected the bytes that were written" in end.err[0]
    assert "going on after step 4 of 12" in end.err[0]  # the best validation's
    what = "not read: the checkpoint before is taken, and said; no canary"
    refusal("a run's checkpoint with a pickle as `optimizer.safetensors` and another as `optimizer.pt`", what)


def test_09_no_key_in_what_a_run_leaves(new_run: Callable[..., Any], refusal: Callable[[str, str], None]) -> None:
    secret = "0123456789abcdef0123456789abcdef01234567"
    run = new_run(*BASE, "trainer.max_steps=2", "tracking=wandb")
    run.finish(1, environment={"WANDB_API_KEY": secret, "WANDB_MODE": "offline", "HF_TOKEN": f"hf_{secret[:30]}"})
    found = [
        path.name for path in run.folder.rglob("*") if path.is_file() and secret[:30].encode() in path.read_bytes()
    ]
    assert found == []
    refusal("`WANDB_API_KEY` and `HF_TOKEN` in the environment", "in no log, manifest, report or tracker file")
