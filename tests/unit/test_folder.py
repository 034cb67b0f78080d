import fcntl
import json
import multiprocessing
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from encdec_train import folder
from encdec_train.compose import compose
from encdec_train.config import TrainConfig, to_dict
from encdec_train.errors import ConfigError
from encdec_train.folder import RunFolder, difference, identify, open_folder

DATA = {"train": "aa", "test": "bb"}
HALVES = {"encoder": "cc", "decoder": "dd"}


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return compose("train", ["task=files", "task.train_file=train.jsonl", "trainer.max_steps=10"])


def identity_of(*overrides: str) -> dict[str, Any]:
    given = ["task=files", "task.train_file=train.jsonl", "trainer.max_steps=10", *overrides]
    return identify(compose("train", given), DATA, HALVES)


EXECUTION = [
    "data.num_workers=2", "data.max_micro_tokens=64", "trainer.devices=2", "trainer.num_nodes=2",
    "trainer.accelerator=cpu", "trainer.validate_every_steps=3", "trainer.checkpoint_every_steps=3",
    "trainer.log_every_steps=5", "trainer.keep_last=3", "tracking=csv", "tracking.project=x",
    "run.output_dir=elsewhere", "run.cache_dir=elsewhere", "run.name=x", "run.baselines=[]", "decoding=greedy",
    "task.metrics=[ter]", "task.train_file=moved.jsonl", "task.test_file=other.jsonl", "model.encoder=elsewhere",
]  # fmt: skip
SUBSTANCE = [
    ("seed=1", "seed"), ("optim.lr=1", "optim.lr"), ("data.batch_examples=8", "batch.batch_examples"),
    ("data.order=length_pooled", "batch.order"), ("trainer.max_steps=11", "steps.max_steps"),
    ("trainer.precision=bf16", "steps.precision"), ("task.reverse=true", "task.reverse"),
    ("task.max_source_tokens=9", "task.max_source_tokens"), ("task.num_train_examples=5", "task.num_train_examples"),
    ("model.init=none", "model.init"), ("model.dropout=0.5", "model.dropout"),
]  # fmt: skip


@pytest.mark.parametrize("override", EXECUTION)
def test_execution_is_no_part_of_the_identity(override: str) -> None:
    assert identity_of(override) == identity_of()


@pytest.mark.parametrize(("override", "key"), SUBSTANCE)
def test_what_is_learnt_is_the_identity(override: str, key: str) -> None:
    ((changed, _, _),) = difference(identity_of(), identity_of(override))
    assert changed == key


def test_data_and_checkpoints_count_by_content(config: TrainConfig) -> None:
    mine = identify(config, DATA, HALVES)
    assert mine["data"] == DATA
    assert (mine["model"]["encoder"], mine["model"]["decoder"]) == ("cc", "dd")
    other_data, other_half = (
        identify(config, {**DATA, "test": "x"}, HALVES),
        identify(config, DATA, {**HALVES, "encoder": "x"}),
    )
    assert difference(mine, other_data) == [("data.test", "bb", "x")]
    assert difference(mine, other_half) == [("model.encoder", "cc", "x")]


def test_the_identity_survives_json(config: TrainConfig) -> None:
    mine = identify(config, DATA, HALVES)
    assert json.loads(json.dumps(mine)) == mine


def test_a_difference_names_what_one_side_lacks() -> None:
    assert difference({"a": {"b": 1}, "c": 2}, {"a": {"b": 1, "d": 3}}) == [("a.d", None, 3), ("c", 2, None)]
    assert difference({"a": {"b": 1}}, {"a": 2}) == [("a", {"b": 1}, 2)]
    assert difference({"a": 1}, {"a": 1}) == []


def test_the_folder_is_named_after_the_identity(config: TrainConfig) -> None:
    mine = identify(config, DATA, HALVES)
    folder = open_folder(config, mine)
    assert re.fullmatch("files-bert2bert-[0-9a-f]{6}", folder.path.name)
    assert folder.path.parent == Path("outputs")
    assert open_folder(config, dict(reversed(mine.items()))).path == folder.path
    assert open_folder(config, {**mine, "seed": 1}).path != folder.path
    assert open_folder(replace(config, run=replace(config.run, name="x")), mine).path == Path("outputs/x")
    assert not folder.path.exists()


def test_the_trackers_id_is_the_names_and_the_identitys(tmp_path: Path) -> None:
    one, other = RunFolder(tmp_path / "x", {"seed": 0}), RunFolder(tmp_path / "x", {"seed": 1})
    assert re.fullmatch("x-[0-9a-f]{8}", one.run_id)
    assert one.run_id != other.run_id


def manifest(folder: Path, values: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "manifest.json"
    file.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return file


def test_a_run_is_finished_when_it_says_so_and_has_scores(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", {"seed": 0})
    assert not folder.is_finished()
    manifest(folder.path, {"finished": True})
    assert not folder.is_finished()
    folder.metrics.write_text("{}", encoding="utf-8")
    assert folder.is_finished()
    manifest(folder.path, {"finished": False})
    assert not folder.is_finished()


def test_the_same_identity_is_let_in(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", {"seed": 0})
    folder.check_identity()
    folder.path.mkdir()
    (folder.path / ".lock").touch()
    folder.check_identity()
    manifest(folder.path, {"identity": {"seed": 0}})
    folder.check_identity()


def test_another_identity_is_refused_with_the_difference(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", {"seed": 1, "optim": {"lr": 0.1, "eps": 0}})
    file = manifest(folder.path, {"identity": {"seed": 0, "optim": {"lr": 0.2, "eps": 0}}})
    before = file.read_bytes()
    with pytest.raises(ConfigError) as caught:
        folder.check_identity()
    assert str(caught.value) == (
        "run.name: run is another run; nothing was changed. It differs in\n"
        "  optim.lr: 0.2 there, 0.1 here\n"
        "  seed: 0 there, 1 here\n"
        "Choose another run.name, or leave it out."
    )
    assert file.read_bytes() == before


@pytest.mark.parametrize("values", [{}, [1], {"versions": {}}])
def test_a_folder_of_somebody_elses_is_refused(tmp_path: Path, values: object) -> None:
    folder = RunFolder(tmp_path / "run", {})
    manifest(folder.path, values)
    (folder.path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="^run.name: expected a new name, .*, got 'run'; .* holds manifest.json, "
                       "thesis.tex, and no training run made it. Choose another"):  # fmt: skip
        folder.check_identity()


def test_a_damaged_manifest_is_said(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", {})
    file = manifest(folder.path, '{"identity": ')
    with pytest.raises(ConfigError, match=f"^{re.escape(str(file))}: expected what an earlier start wrote; "):
        folder.is_finished()


def test_the_lock_is_held_and_let_go(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "deep" / "run", {})
    with folder.lock():
        (folder.path / "config.yaml").touch()
        holder = f"process {os.getpid()} on {os.uname().nodename}"
        assert (folder.path / ".lock").read_text(encoding="utf-8") == holder
        with (
            pytest.raises(
                ConfigError, match=f"^run.name: expected a run that nobody else is making, got 'run'; {holder} is at it"
            ),
            RunFolder(folder.path, {}).lock(),
        ):
            pass
    with folder.lock():
        assert (folder.path / "config.yaml").is_file()


def test_a_lock_without_a_name_is_somebodys(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is at it"), RunFolder(tmp_path, {}).lock():
            pass


def hold_and_die(path: Path) -> None:
    with RunFolder(path, {}).lock():
        (path / "config.yaml").touch()
        os._exit(9)


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=hold_and_die, args=(tmp_path / "run",))
    process.start()
    process.join()
    assert process.exitcode == 9
    with RunFolder(tmp_path / "run", {}).lock():
        assert (tmp_path / "run" / "config.yaml").is_file()


def test_a_folder_in_which_nothing_was_written_is_gone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", {})
    with pytest.raises(ZeroDivisionError), folder.lock():
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = RunFolder(tmp_path / "file" / "run", {})
    with pytest.raises(ConfigError, match="^run.output_dir: expected a folder that can be written, got '.*/file'; "):
        folder.lock().__enter__()


def test_the_files_of_a_run_have_their_names() -> None:
    folder = RunFolder(Path("outputs/x"), {})
    assert [folder.metrics, folder.export] == [Path("outputs/x/metrics.json"), Path("outputs/x/export")]
    assert folder.manifest() == {}


def test_every_section_is_decided_about(config: TrainConfig) -> None:
    left_out = {"run", "decoding", "tracking", "bundle"}
    mine = identify(config, DATA, HALVES)
    assert set(mine) == {"task", "data", "model", "batch", "optim", "steps", "seed"}
    assert set(to_dict(config)) == {"seed", "task", "model", "data", "optim", "trainer"} | left_out


def test_a_link_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"run\.name: expected a folder and no link to one"):
        RunFolder(tmp_path / "run", {}).check_identity()


def test_a_link_in_a_run_may_not_lead_out_of_it(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (run / "wandb").mkdir(parents=True)
    elsewhere.mkdir()
    for name, target in (("wandb/latest", elsewhere), ("a", run / "b"), ("wandb/a", "../b"), ("b", "c"), ("c", "b")):
        (run / name).symlink_to(target)
        folder.refuse_links(run)
    (run / "deep").mkdir()
    for name, target in (("deep/d", "../../elsewhere"), (".ranks", elsewhere), ("e", tmp_path / "not there")):
        (run / name).symlink_to(target)
        with pytest.raises(ConfigError, match="run.name: expected a folder without links out of it") as caught:
            folder.refuse_links(run)
        assert f"got '{run / name}, a link to {os.path.realpath(run / name)}'" in str(caught.value)
        (run / name).unlink()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(ConfigError, match=r"run\.output_dir: expected a folder that can be written"):
        RunFolder(tmp_path / "run", {}).lock().__enter__()
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_key_in_the_config_is_refused_and_not_shown(config: TrainConfig) -> None:
    tracking = replace(config.tracking, project="hf_AAAAAAAAAAAAAAAAAAAAAAAA")
    with pytest.raises(
        ConfigError, match=r"^tracking\.project: expected no key, token or password in a config; "
    ) as said:
        open_folder(replace(config, tracking=tracking), {})
    assert "AAAA" not in str(said.value)
