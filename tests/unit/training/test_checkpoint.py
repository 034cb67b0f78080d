"""A checkpoint is whole, or it is not there; going on from it is as if nothing had happened."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from encdec_train.errors import CheckpointError
from encdec_train.training import checkpoint
from encdec_train.training.checkpoint import folder_of, newest, prune, read, restore_optimizer, restore_weights, write

FILES = ["MANIFEST.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.fixture
def trained(tmp_path: Path) -> tuple[torch.nn.Module, torch.optim.Optimizer, Path]:
    """A network after three steps, its optimizer, and a folder with a checkpoint of it."""
    model = network(0)
    optimizer = optimizer_of(model)
    train(model, optimizer, range(3))
    write(tmp_path / "checkpoints", 3, model, optimizer, {"progress": {"best_step": None}, "validation_due": False})
    return model, optimizer, tmp_path / "checkpoints"


def test_what_is_written_is_read_back_to_the_bit(trained: Any) -> None:
    model, optimizer, root = trained
    found = read(folder_of(root, 3))
    assert (found.step, found.state) == (3, {"progress": {"best_step": None}, "validation_due": False, "step": 3})
    parameters = dict(model.named_parameters())
    assert found.weights.keys() == parameters.keys()
    assert all(torch.equal(value, parameters[name]) for name, value in found.weights.items())
    kinds = {"step", "exp_avg", "exp_avg_sq"}
    assert found.optimizer.keys() == {f"{kind}/{name}" for kind in kinds for name in parameters}
    for name, p in parameters.items():
        assert all(torch.equal(found.optimizer[f"{kind}/{name}"], optimizer.state[p][kind]) for kind in kinds)


def test_the_folder_is_as_the_manifest_says(trained: Any) -> None:
    _, _, root = trained
    assert [path.name for path in root.iterdir()] == ["step_00000003"]
    folder = root / "step_00000003"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert {name: entry["bytes"] for name, entry in manifest.items()} == {
        name: (folder / name).stat().st_size for name in FILES[1:]
    }
    assert all(len(entry["sha256"]) == 64 for entry in manifest.values())


def test_going_on_is_as_if_nothing_had_happened(trained: Any) -> None:
    model, optimizer, root = trained
    train(model, optimizer, range(3, 8))
    other = network(1)
    again = optimizer_of(other)
    found = read(folder_of(root, 3))
    restore_weights(other, found)
    restore_optimizer(other, again, found)
    train(other, again, range(3, 8))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_without_the_optimizers_state_it_would_not_be(trained: Any) -> None:
    model, optimizer, root = trained
    train(model, optimizer, range(3, 8))
    other = network(1)
    restore_weights(other, read(folder_of(root, 3)))
    train(other, optimizer_of(other), range(3, 8))
    assert not torch.equal(model[0].weight, other[0].weight)


def test_what_was_restored_is_a_copy(trained: Any) -> None:
    _, _, root = trained
    found = read(folder_of(root, 3))
    before = {name: value.clone() for name, value in {**found.weights, **found.optimizer}.items()}
    model = network(1)
    optimizer = optimizer_of(model)
    restore_weights(model, found)
    restore_optimizer(model, optimizer, found)
    train(model, optimizer, range(2))
    assert all(torch.equal(value, before[name]) for name, value in {**found.weights, **found.optimizer}.items())


@pytest.mark.parametrize(("share", "count"), [("none", 50_304), ("all", 30_016)])
def test_shared_parameters_are_kept_once(share: str, count: int, new_model: Callable[..., Any], tmp_path: Path) -> None:
    model = new_model(share)
    write(tmp_path, 1, model, torch.optim.AdamW(model.parameters()), {})
    tensors = load_file(folder_of(tmp_path, 1) / "model.safetensors")
    assert sum(value.numel() for value in tensors.values()) == count
    other = new_model(share, seed=5)
    restore_weights(other, read(folder_of(tmp_path, 1)))
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-10])


def flip(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return spoil


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def manifest(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "MANIFEST.json").write_text(text)


SPOILT: list[tuple[str, Callable[[Path], None], str]] = [
    ("cut weights", cut("model.safetensors"), r"model.safetensors: expected the bytes that were written; its SHA-256"),
    ("cut optimizer", cut("optimizer.safetensors"), r"optimizer.safetensors: expected the bytes that were written"),
    ("flipped bit", flip("model.safetensors"), r"model.safetensors: expected the bytes that were written"),
    ("flipped state", flip("state.json"), r"state.json: expected the bytes that were written"),
    ("no weights", remove("model.safetensors"), r"expected a whole checkpoint; FileNotFoundError: "),
    ("no manifest", remove("MANIFEST.json"), r"expected a whole checkpoint; FileNotFoundError: "),
    ("garbage", manifest("{"), r"expected a whole checkpoint; JSONDecodeError: "),
    ("another type", manifest("7"), r"expected a whole checkpoint; TypeError: "),
    ("a list", manifest('["model.safetensors"]'), r"expected a whole checkpoint; TypeError: "),
    ("no digest", manifest('{"model.safetensors": {"bytes": 3}}'), r"expected a whole checkpoint; KeyError: 'sha256'"),
    ("nothing listed", manifest("{}"), r"expected a whole checkpoint; KeyError: 'state.json'"),
    ("not text", lambda folder: (folder / "MANIFEST.json").write_bytes(b"\xff"), r"UnicodeDecodeError"),
]


@pytest.mark.parametrize(("spoil", "message"), [row[1:] for row in SPOILT], ids=[row[0] for row in SPOILT])
def test_damage_is_found(spoil: Callable[[Path], None], message: str, trained: Any) -> None:
    folder = folder_of(trained[2], 3)
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        read(folder)


def test_weights_of_another_format_are_found(trained: Any) -> None:
    """The digest is right, so that only the reader can tell."""
    folder = folder_of(trained[2], 3)
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    values = json.loads((folder / "MANIFEST.json").read_text())
    values["model.safetensors"] = {"bytes": 15, "sha256": hashlib.sha256(b"not safetensors").hexdigest()}
    (folder / "MANIFEST.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="expected a whole checkpoint; SafetensorError"):
        read(folder)


def test_the_newest_whole_one_is_taken(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model, optimizer, root = trained
    for step in (12, 7):
        write(root, step, model, optimizer, {})
    assert newest(root).step == 12
    flip("model.safetensors")(folder_of(root, 12))
    assert newest(root).step == 7
    said = " ".join(capsys.readouterr().err.split())
    assert "step_00000012/model.safetensors: expected the bytes" in said
    assert "Trying the one before it." in said


def test_when_all_are_damaged_nothing_is_started_over(trained: Any) -> None:
    root = trained[2]
    flip("model.safetensors")(folder_of(root, 3))
    with pytest.raises(CheckpointError, match=r"one whole checkpoint; all 1 are damaged\. Remove the run folder"):
        newest(root)


def test_where_there_is_none_there_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "nothing") is None
    (tmp_path / "step_x").mkdir()
    (tmp_path / "step_x" / "MANIFEST.json").write_text("{}")
    assert newest(tmp_path) is None


@pytest.mark.parametrize("num_files", [0, 1, 2, 3])
def test_a_write_that_is_killed_leaves_what_was_there(
    num_files: int, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer, root = trained
    written: list[str] = []
    write_bytes = Path.write_bytes

    def dying(path: Path, data: bytes) -> None:
        if len(written) == num_files:
            write_bytes(path, data[: len(data) // 2])
            raise KeyboardInterrupt  # no handler in `write`: what lies there stays, as after a kill
        written.append(path.name)
        write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", dying)
    with pytest.raises(KeyboardInterrupt):
        write(root, 5, model, optimizer, {})
    monkeypatch.undo()
    assert "MANIFEST.json" not in written
    assert checkpoint.steps(root) == [3]
    assert newest(root).step == 3
    assert any(path.name.startswith(".step_00000005") for path in root.iterdir())
    write(root, 5, model, optimizer, {})
    prune(root, {5})
    assert [path.name for path in root.iterdir()] == ["step_00000005"]


def test_a_full_disk_is_one_clear_error(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, root = trained

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    room = r"step_00000004: expected room and rights for [0-9,]+ bytes, got '[0-9,]+ bytes free'; "
    message = room + r".*No space left on device\. Earlier checkpoints are"
    with pytest.raises(CheckpointError, match=message):
        write(root, 4, model, optimizer, {})
    assert [path.name for path in root.iterdir()] == ["step_00000003"]
    assert newest(root).step == 3


def test_a_place_that_is_no_folder_is_one_clear_error(trained: Any, tmp_path: Path) -> None:
    model, optimizer, _ = trained
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="expected room and rights .*Not a directory"):
        write(tmp_path / "file", 4, model, optimizer, {})


def test_writing_a_step_again_replaces_it(trained: Any) -> None:
    model, optimizer, root = trained
    (folder_of(root, 3) / "stale").touch()
    train(model, optimizer, range(1))
    write(root, 3, model, optimizer, {"second": True})
    found = read(folder_of(root, 3))
    assert found.state == {"second": True, "step": 3}
    assert torch.equal(found.weights["0.weight"], model[0].weight)
    assert sorted(path.name for path in folder_of(root, 3).iterdir()) == FILES


def test_pruning_keeps_what_it_is_told_to(trained: Any) -> None:
    model, optimizer, root = trained
    for step in (5, 6, 8):
        write(root, step, model, optimizer, {})
    (root / ".step_00000009.123").mkdir()
    (root / "notes.txt").touch()
    prune(root, {3, 8, 99})
    assert sorted(path.name for path in root.iterdir()) == ["notes.txt", "step_00000003", "step_00000008"]


def test_weights_of_another_model_are_refused(trained: Any) -> None:
    found = read(folder_of(trained[2], 3))
    with pytest.raises(CheckpointError, match=r"checkpoint: expected the parameters of this model; 0.weight differs"):
        restore_weights(torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)), found)
    with pytest.raises(CheckpointError, match=r"expected the parameters of this model; 2.bias differs"):
        restore_weights(torch.nn.Sequential(torch.nn.Linear(5, 7)), found)
