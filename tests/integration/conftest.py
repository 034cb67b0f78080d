"""A place with data and a tiny BERT, the command line in this process, and one finished run."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums come in one order

from encdec_train.cli import main  # noqa: E402

WORDS = "the a cat dog bird sat ran flew on under over mat tree house and because so while old red".split()  # noqa: SIM905
BASE = (
    "task=files", "task.train_file=train.jsonl", "model.encoder=bert", "run.output_dir=out", "tracking=none",
    "trainer.accelerator=cpu", "task.max_source_tokens=16", "task.max_target_tokens=16", "data.batch_examples=24",
    "trainer.max_steps=30", "trainer.validate_every_steps=15", "optim.lr=1e-2", "optim.warmup_steps=0",
    "decoding.num_beams=2",
)  # fmt: skip
SPLITS = ("task.validation_file=validation.jsonl", "task.test_file=test.jsonl")


@dataclass(frozen=True)
class Done:
    """What a command left behind: its exit status, stdout and stderr."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def pairs(numbers: range) -> list[dict[str, str]]:
    """Make a pair a number, each another one; the target is the source's words in reverse."""
    rows = []
    for number in numbers:
        words = [WORDS[(number * 7 + offset * (1 + number % 5)) % len(WORDS)] for offset in range(3 + number % 6)]
        rows.append({"id": f"row{number}", "source": " ".join(words), "target": " ".join(words[::-1])})
    return rows


def write_jsonl(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def furnish(folder: Path, bert: Path) -> Path:
    """Lay out data files and a checkpoint, under the names that `BASE` and `SPLITS` use."""
    folder.mkdir(exist_ok=True)
    for name, numbers in (("train", range(24)), ("validation", range(100, 106)), ("test", range(200, 208))):
        write_jsonl(folder / f"{name}.jsonl", pairs(numbers))
    (folder / "bert").symlink_to(bert)
    return folder


@pytest.fixture
def here(tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a new folder with data and a checkpoint."""
    folder = furnish(tmp_path / "here", tiny_bert)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def encdec(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run a command line in this process: `encdec("train", *overrides)`."""

    def run(*arguments: str) -> Done:
        capfd.readouterr()
        status = main(arguments)
        return Done(status, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def finished_folder(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """Make one whole run, `out/run`, in a folder of its own; never write to it."""
    folder = furnish(tmp_path_factory.mktemp("finished") / "here", tiny_bert)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["train", *BASE, *SPLITS, "run.name=run"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def finished(finished_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a copy of the folder with the finished run."""
    folder = shutil.copytree(finished_folder, tmp_path / "finished", symlinks=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def shared(request: pytest.FixtureRequest) -> ModuleType:
    """Give this file itself: its plain functions cannot be imported."""
    return next(plugin for plugin in request.config.pluginmanager.get_plugins() if hasattr(plugin, "furnish"))


@pytest.fixture
def train(encdec: Callable[..., Done]) -> Callable[..., Done]:
    """Run `encdec train` with the overrides of a run that works, and more; it must end with 0."""

    def run(*overrides: str) -> Done:
        done = encdec("train", *BASE, *overrides)
        assert done.status == 0, done.err
        return done

    return run


def snapshot(folder: Path) -> dict[str, bytes]:
    """Read every file below a folder, but the caches."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
