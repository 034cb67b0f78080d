"""Checkpoints by their Hub id, through a loopback server: a run, a start without network, refusals."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub.environment import offline, point_to
from hub.server import Hub
from results import load

from encdec_train.errors import ModelError
from encdec_train.modeling import hub as ours
from encdec_train.modeling.checkpoints import find
from encdec_train.modeling.hub import fetch

pytest_plugins = ("hub.fixture",)

NAME = "owner/tiny-bert"
SHORT = (
    "model.encoder=owner/tiny-bert",
    "trainer.max_steps=2",
    "trainer.validate_every_steps=2",
    "optim.warmup_steps=0",
)


def test_a_run_downloads_and_starts_again_from_the_cache(
    hub: Hub, here: Path, tiny_bert: Path, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add(NAME, tiny_bert)
    train(*SHORT, "run.name=run")
    manifest = load("out/run/manifest.json")
    assert manifest["finished"] is True
    half = {"name": NAME, "revision": commit}
    assert manifest["checkpoints"] == {"encoder": half, "decoder": half}
    assert "owner/tiny-bert@None" in json.dumps(manifest["identity"])  # what was asked for: the default branch
    assert str(tiny_bert) not in json.dumps(load("out/run/export/config.json"))

    before = len(hub.requests)
    offline(monkeypatch)
    train(*SHORT, "run.name=second")
    assert len(hub.requests) == before
    weights = [(Path("out") / name / "export/model.safetensors").read_bytes() for name in ("run", "second")]
    assert weights[0] == weights[1]


def test_one_question_then_files_then_nothing(hub: Hub, tiny_bert: Path) -> None:
    hub.add(NAME, tiny_bert)
    find("model.encoder", NAME, None)
    asked = len(hub.requests)
    assert sum("/resolve/" in line and line.startswith("GET") for line in hub.requests) >= 2
    again = find("model.encoder", NAME, None)
    assert [line for line in hub.requests[asked:] if "/resolve/" in line] == []
    assert again.revision == Path(again.name).name


def test_a_pinned_revision_is_the_one_that_is_read(hub: Hub, tiny_bert: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_bert, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.25}))
    hub.add(NAME, tiny_bert)
    commit = hub.add(NAME, other, revision="v2")
    for revision in ("v2", commit):
        source = find("model.encoder", NAME, revision)
        assert (source.revision, source.config.hidden_dropout_prob) == (commit, 0.25)
    assert find("model.encoder", NAME, None).config.hidden_dropout_prob == 0.1


def test_neither_code_nor_other_formats_are_downloaded(hub: Hub, tiny_bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "rich")
    for name in ("modeling.py", "pytorch_model.bin", "onnx/model.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    hub.add(NAME, folder)
    assert sorted(path.name for path in fetch("model.encoder", NAME, None).iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


REFUSED = [
    (
        "nothing",
        {},
        r"^model\.encoder: .* got 'owner/nothing'; the Hub has no such model, or you may not read it.*`hf auth",
    ),
    (
        "secret",
        {},
        r"^model\.encoder: .* got 'owner/secret'; the Hub has no such model, or you may not read it.*HF_TOKEN",
    ),
    ("tiny-bert", {"status": 403, "code": "GatedRepo"}, r"the Hub has no such model, or you may not read it.*gated"),
    ("tiny-bert", {"status": 401}, r"answers 401"),
    ("tiny-bert", {"status": 429}, r"http://127\.0\.0\.1:\d+ answers 429"),
    ("tiny-bert", {"status": 500}, r"http://127\.0\.0\.1:\d+ answers 500\. Check the name and the network"),
    ("tiny-bert", {"seconds": 9.0}, r"cannot be reached or breaks off \(ReadTimeout"),
    ("pickle", {}, r"pytorch_model\.bin is a pickle, which can run code\. Load it once"),
]


@pytest.mark.parametrize(("name", "failure", "message"), REFUSED, ids=[f"{r[0]} {r[1]}" for r in REFUSED])
def test_a_refusal_is_one_message(
    name: str, failure: dict[str, Any], message: str, hub: Hub, here: Path, tiny_bert: Path, tmp_path: Path,
    encdec: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pickle = tmp_path / "pickle"
    pickle.mkdir()
    (pickle / "pytorch_model.bin").write_text("x")
    hub.add(NAME, tiny_bert)
    hub.add("owner/secret", tiny_bert, private=True)
    hub.add("owner/pickle", pickle)
    monkeypatch.setattr(ours, "ASK_SECONDS", 0.3)
    if failure:
        hub.fail(**failure)
    with pytest.raises(ModelError, match=message) as caught:
        fetch("model.encoder", f"owner/{name}", None)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


def test_a_revision_that_is_not_there_is_refused_by_its_key(
    hub: Hub, here: Path, tiny_bert: Path, encdec: Callable[..., Any]
) -> None:
    hub.add(NAME, tiny_bert)
    done = encdec("train", "task=files", "task.train_file=train.jsonl", *SHORT, "model.encoder_revision=v9")
    assert done.status == 2
    assert "model.encoder_revision: expected a branch, a tag or a commit of owner/tiny-bert, got 'v9'" in done.err
    assert "Traceback" not in done.err
    assert not Path("out").exists()


def test_a_hub_that_is_gone_is_one_message_without_a_cache_and_no_matter_with_one(
    hub: Hub, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.add(NAME, tiny_bert)
    warm = fetch("model.encoder", NAME, None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    point_to(nobody, tmp_path / "hf", monkeypatch)
    assert fetch("model.encoder", NAME, None) == warm
    assert f"{NAME}: {nobody} cannot be reached" in capfd.readouterr().err
    point_to(nobody, tmp_path / "empty", monkeypatch)
    with pytest.raises(ModelError, match=rf"got '{NAME}'; {nobody} cannot be reached .*ConnectError.*Check the name"):
        fetch("model.encoder", NAME, None)


def test_what_the_hub_no_longer_has_is_not_taken_from_the_cache(hub: Hub, tiny_bert: Path) -> None:
    hub.add(NAME, tiny_bert)
    fetch("model.encoder", NAME, None)
    hub.repositories.clear()
    with pytest.raises(ModelError, match="the Hub has no such model"):
        fetch("model.encoder", NAME, None)


def test_a_connection_that_breaks_is_gone_on_with(hub: Hub, tiny_bert: Path) -> None:
    hub.add(NAME, tiny_bert)
    hub.fail(cut_after=3000, path="/blob/", times=1)
    folder = fetch("model.encoder", NAME, None)
    assert (folder / "model.safetensors").read_bytes() == (tiny_bert / "model.safetensors").read_bytes()


def test_a_download_that_never_ends_leaves_nothing_that_is_used(
    hub: Hub, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its five attempts
    hub.add(NAME, tiny_bert)
    hub.fail(cut_after=0, path="/blob/")
    with pytest.raises(ModelError, match=r"cannot be reached or breaks off \(RemoteProtocolError"):
        fetch("model.encoder", NAME, None)
    offline(monkeypatch)
    with pytest.raises(ModelError, match=r"HF_HUB_OFFLINE is set, and .* lacks it.*`hf download owner/tiny-bert`"):
        fetch("model.encoder", NAME, None)
