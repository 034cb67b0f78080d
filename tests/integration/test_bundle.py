"""A run from a bundle: the same run, without network; what is damaged or asked for otherwise is said at once."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub.environment import offline, point_to
from hub.server import Hub
from results import load

import encdec_train
from encdec_train.errors import ConfigError, ModelError
from encdec_train.modeling.hub import fetch

pytest_plugins = ("hub.fixture",)

NAME = "owner/tiny-bert"
SHORT = ("trainer.max_steps=2", "trainer.validate_every_steps=2", "optim.warmup_steps=0")
Command = Callable[..., Any]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what a bundle does to the process."""
    from huggingface_hub import constants

    for name in ("HF_HUB_OFFLINE", "WANDB_MODE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # so that it is put back
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)


@pytest.fixture
def run(shared: Any) -> tuple[str, ...]:
    """The overrides of a run, but for where it is written."""
    kept = [one for one in shared.BASE if not one.startswith(("run.output_dir", "trainer.", "optim.warmup"))]
    return (*kept, *shared.SPLITS, *SHORT, "trainer.accelerator=cpu")


@pytest.fixture
def bundle(here: Path, encdec: Command, run: tuple[str, ...]) -> Path:
    """Make the bundle of a run, at `b`."""
    done = encdec("bundle", *run, "bundle.path=b")
    assert (done.status, done.out) == (0, ""), done.err
    return here / "b"


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Refuse every connection and name lookup of this process, and list them."""
    tried: list[str] = []

    def refuse(*arguments: object, **_: object) -> None:
        tried.append(str(arguments[1:]))
        raise OSError("the network is denied")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return tried


def curve(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) >= 2
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def only(folder: Path) -> Path:
    [found] = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return found


def without_sources(here: Path, bert: Path) -> None:
    """Move the bundle to another place, and take away what it was made from."""
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl", "bert"):
        (here / name).unlink()


def test_the_same_run_comes_out_of_a_bundle_elsewhere(
    bundle: Path, here: Path, encdec: Command, run: tuple[str, ...], tiny_bert: Path, no_sockets: list[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    assert encdec("train", *run, "run.output_dir=without").status == 0
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(bundle, elsewhere / "mine")
    shutil.rmtree(bundle)
    without_sources(here, tiny_bert)
    monkeypatch.chdir(elsewhere)
    for number, words in enumerate([(), run]):  # what was bundled, and the same command again
        done = encdec("train", *words, "bundle.path=mine", f"run.output_dir=with{number}")
        assert done.status == 0, done.err
        found, first = only(elsewhere / f"with{number}"), only(here / "without")
        assert found.name == first.name
        assert curve(found) == curve(first)
        assert load(found / "manifest.json")["identity"] == load(first / "manifest.json")["identity"]
        names = ("metrics.json", "predictions/test.jsonl", "export/model.safetensors")
        assert all((found / name).read_bytes() == (first / name).read_bytes() for name in names)
    assert no_sockets == []


def test_nothing_in_it_is_found_by_an_absolute_path(bundle: Path, here: Path) -> None:
    texts = [(bundle / name).read_text() for name in ("BUNDLE.json", "config.yaml")]
    assert [text for text in texts if str(here) in text or str(Path.home()) in text] == []
    assert [path for path in bundle.rglob("*") if path.is_symlink()] == []
    names = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    assert names == [
        "BUNDLE.json", "config.yaml", "data/test.parquet", "data/train.parquet", "data/validation.parquet",
        "models/encoder/config.json", "models/encoder/model.safetensors", "models/encoder/tokenizer.json",
        "models/encoder/tokenizer_config.json",
    ]  # fmt: skip
    assert sorted(path.name for path in here.iterdir() if path.name.startswith(".b")) == []


def test_every_verb_works_with_it(
    bundle: Path, here: Path, encdec: Command, tiny_bert: Path, no_sockets: list[str]
) -> None:
    without_sources(here, tiny_bert)
    done = encdec("train", "bundle.path=b", "run.name=run", "run.output_dir=out")
    assert done.status == 0, done.err
    assert "decoder inputs" in encdec("doctor", "bundle.path=b").out
    one = ("checkpoint=out/run", "bundle.path=b", "task=files", "trainer.accelerator=cpu", "run.output_dir=out")
    done = encdec("evaluate", *one, "run.name=again")
    assert done.status == 0, done.err
    assert (here / "out/again/predictions/test.jsonl").read_bytes() == (
        here / "out/run/predictions/test.jsonl"
    ).read_bytes()
    fewer = encdec("evaluate", *one, "run.name=fewer", "task.num_test_examples=3")
    assert fewer.status == 0, fewer.err
    assert len((here / "out/fewer/predictions/test.jsonl").read_text().splitlines()) == 3
    (here / "in.txt").write_text("the cat\n")
    assert encdec("generate", "checkpoint=out/run", "bundle.path=b", "input=in.txt", "output=out.txt").status == 0
    predictions = "out/run/predictions/test.jsonl"
    scored = encdec("score", f"predictions={predictions}", "bundle.path=b")
    assert scored.status == 0, scored.err
    compared = encdec("compare", f"a={predictions}", f"b={predictions}", "bundle.path=b")
    assert compared.status == 0, compared.err
    assert encdec("verify", "bundle.path=b").err.endswith("all as they were bundled\n")
    assert no_sockets == []


def test_a_network_namespace_without_interfaces_is_enough(
    bundle: Path, here: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        pytest.skip("`unshare -n` is not permitted on this machine: no namespace without a network can be made")
    without_sources(here, tiny_bert)
    empty = {"HF_HOME": str(here / "hf"), "HOME": str(here), "WANDB_API_KEY": "k" * 40, "HF_HUB_OFFLINE": "0"}
    environment = {**os.environ, **empty, "PYTHONPATH": str(Path(encdec_train.__file__).parents[1])}
    environment.pop("WANDB_MODE", None)
    command = ["unshare", "-n", sys.executable, "-m", "encdec_train", "train", "bundle.path=b", "run.output_dir=out"]
    command.append("tracking.kind=wandb")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (only(here / "out") / "metrics.json").is_file()
    assert "wandb was offline. To upload it: wandb sync" in done.stderr


def test_a_model_of_the_hub_is_bundled_and_runs_when_the_hub_is_gone(
    hub: Hub, here: Path, tiny_bert: Path, encdec: Command, run: tuple[str, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    commit = hub.add(NAME, tiny_bert)
    words = (*(one for one in run if not one.startswith("model.encoder")), f"model.encoder={NAME}")
    assert encdec("train", *words, "run.output_dir=without").status == 0
    done = encdec("bundle", *words, "bundle.path=b")
    assert done.status == 0, done.err
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        point_to(f"http://127.0.0.1:{free.getsockname()[1]}", tmp_path / "empty", monkeypatch)
    without_sources(here, tiny_bert)
    before = len(hub.requests)
    done = encdec("train", "bundle.path=b", "run.output_dir=with")
    assert done.status == 0, done.err
    assert only(here / "with").name == only(here / "without").name
    assert curve(only(here / "with")) == curve(only(here / "without"))
    one, other = (load(only(here / name) / "manifest.json")["checkpoints"] for name in ("with", "without"))
    assert one == other == dict.fromkeys(("encoder", "decoder"), {"name": NAME, "revision": commit})
    assert len(hub.requests) == before

    other = encdec("train", *words, "model.encoder_revision=v9", "bundle.path=b")
    assert other.status == 2
    assert "model.encoder_revision: expected null, got 'v9'; b was bundled so." in other.err
    evaluated = encdec("evaluate", "checkpoint=owner/other", "bundle.path=b", "task=files", "run.output_dir=out")
    assert evaluated.status == 2
    assert "HF_HUB_OFFLINE is set" in evaluated.err
    assert "run `hf download owner/other` into the same cache" in evaluated.err


def test_the_demo_is_bundled_with_its_checkpoint(
    tmp_path: Path, tiny_bert: Path, encdec: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encdec_train import session

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "with_demo_checkpoint", lambda model, cache: session.replace(
        model, encoder=str(tiny_bert), decoder=str(tiny_bert)
    ))  # fmt: skip
    small = (
        "task.num_train_examples=40", "task.num_validation_examples=8", "task.num_test_examples=8",
        "task.overlong=truncate", "decoding.num_beams=1", "tracking.kind=none", "run.baselines=[]", *SHORT,
    )  # fmt: skip
    assert encdec("bundle", *small, "bundle.path=b").status == 0
    assert encdec("train", *small, "run.output_dir=without").status == 0
    monkeypatch.setattr(session, "with_demo_checkpoint", lambda model, cache: pytest.fail("it pretrains again"))
    done = encdec("train", "bundle.path=b", "run.output_dir=with", "run.cache_dir=fresh")
    assert done.status == 0, done.err
    assert only(tmp_path / "with").name == only(tmp_path / "without").name
    assert curve(only(tmp_path / "with")) == curve(only(tmp_path / "without"))


ASKED = [
    (["task.train_file=other.jsonl"], "task.train_file: expected train.jsonl, got 'other.jsonl'; b was bundled so."),
    (["task.reverse=true"], "task.reverse: expected False, got 'True'; b was bundled so."),
    (["model.decoder=other"], "model.decoder: expected bert, got 'other'; b was bundled so."),
]


@pytest.mark.parametrize(("words", "message"), ASKED, ids=[words[0] for words, _ in ASKED])
def test_another_run_than_was_bundled_is_refused(
    words: list[str], message: str, bundle: Path, here: Path, encdec: Command
) -> None:
    done = encdec("train", "bundle.path=b", "run.output_dir=out", *words)
    assert done.status == 2
    assert f"{message} Leave it out, or bundle this run in a folder of its own." in done.err
    assert not (here / "out").exists()


def edit(path: Path) -> None:
    text = path.read_bytes()
    path.write_bytes(text[:-9] + b"x" + text[-8:])


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("data/train.parquet", Path.unlink, r"b/data/train\.parquet: expected [\d,]+ bytes .*; it is missing\. Copy it"),
    ("models/encoder/model.safetensors", edit, r"b/models/encoder/model\.safetensors: .* got '.*'; it was changed\."),
    ("models/encoder/tokenizer.json", lambda path: path.write_text("{}"), r"tokenizer\.json: .* got '2 bytes'\. Copy"),
    ("models/encoder/added_tokens.json", lambda path: path.write_text("{}"), r"expected no such file; the bundle has"),
    (
        "BUNDLE.json",
        lambda path: path.write_text(path.read_text().replace("bert", "bart")),
        r"BUNDLE\.json was changed",
    ),
    ("BUNDLE.json", lambda path: path.write_text("{"), r"BUNDLE\.json was changed\. Copy the bundle again"),
    ("BUNDLE.json", Path.unlink, r"it has no BUNDLE\.json\. Where there is a network: encdec bundle <.*bundle\.path=b"),
    ("config.yaml", lambda path: path.write_text(path.read_text() + "\n# a note\n"), r"b/config\.yaml: expected"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE)
def test_a_damaged_bundle_is_one_message(
    name: str, damage: Callable[[Path], object], message: str, bundle: Path, here: Path, encdec: Command,
    run: tuple[str, ...],
) -> None:  # fmt: skip
    damage(bundle / name)
    for verb, words in (("verify", ()), ("train", (*run, "run.output_dir=out"))):
        done = encdec(verb, *words, "bundle.path=b")
        assert done.status == 2
        assert len(done.err.strip().splitlines()) == 1, done.err
        assert re.search(message, done.err), done.err
    assert not (here / "out").exists()


def test_a_bundle_that_is_not_there_is_one_message(here: Path, encdec: Command) -> None:
    done = encdec("train", "bundle.path=none", "run.output_dir=out")
    assert done.status == 2
    assert (
        "bundle.path: expected a bundle as `encdec bundle` wrote it, got 'none'; there is no such folder." in done.err
    )
    assert "encdec bundle <train's keys> bundle.path=none" in done.err


def test_bundling_again_does_nothing_or_mends_or_refuses(
    bundle: Path, here: Path, encdec: Command, run: tuple[str, ...]
) -> None:
    before = (bundle / "BUNDLE.json").stat().st_mtime_ns
    assert "b is whole; nothing to do" in encdec("bundle", *run, "bundle.path=b").err
    assert "b is whole; nothing to do" in encdec("bundle", "bundle.path=b").err  # it knows its own keys
    assert (bundle / "BUNDLE.json").stat().st_mtime_ns == before
    (bundle / "data/test.parquet").unlink()
    assert "It is made again." in encdec("bundle", "bundle.path=b").err
    assert encdec("verify", "bundle.path=b").status == 0
    other = encdec("bundle", *run, "seed=3", "bundle.path=b")
    assert other.status == 2
    assert "expected a new folder, or this run's bundle, got 'b'; its config.yaml says otherwise" in other.err
    (here / "mine").mkdir()
    strange = encdec("bundle", *run, "bundle.path=mine")
    assert strange.status == 2
    assert "it has no BUNDLE.json. Choose another, or move away what is there." in strange.err
    assert list((here / "mine").iterdir()) == []


def test_a_build_that_breaks_off_leaves_nothing(
    here: Path, encdec: Command, run: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from encdec_train.cluster import bundle as ours

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(here.iterdir())
    monkeypatch.setattr(ours, "_write_rows", full)
    done = encdec("bundle", *run, "bundle.path=b")
    assert done.status == 1
    assert "No space left on device" in done.err
    assert [path for path in sorted(here.iterdir()) if path not in before and path.name != "outputs"] == []


def test_the_verbs_as_functions(here: Path, run: tuple[str, ...]) -> None:
    assert encdec_train.bundle(*run, "bundle.path=b") == Path("b")
    encdec_train.verify("bundle.path=b")
    (here / "b/data/test.parquet").unlink()
    with pytest.raises(ConfigError, match=r"b/data/test\.parquet: expected .*it is missing"):
        encdec_train.verify("bundle.path=b")


def test_offline_without_a_bundle_the_command_fetches_the_pinned_revision(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, no_sockets: list[str]
) -> None:
    offline(monkeypatch)
    with pytest.raises(
        ModelError, match=r"lacks it\. Where there is a network, run `hf download a/b --revision v2` into"
    ):
        fetch("model.encoder", "a/b", "v2")
    assert no_sockets == []
