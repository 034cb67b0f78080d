"""Imports go one way, each library has one door, and the command line starts without loading the heavy ones.

The contracts of import-linter (in `pyproject.toml`) see whole packages; a part of one (`torch.distributed`) is
looked for here.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

HEAVY = {
    "datasets", "evaluate", "pandas", "pyarrow", "pytorch_lightning", "rouge_score", "sacrebleu",
    "tensorboard", "torch", "transformers", "wandb",
}  # fmt: skip
LIGHT_ENTRANCES = ("encdec_train", "encdec_train.config", "encdec_train.compose", "encdec_train.cli")
# part of a library -> the file or folder that may import it
DOORS = {
    "torch.distributed": "encdec_train/distributed.py",
    "torch.utils.tensorboard": "encdec_train/tracking/",
    "pytorch_lightning.loggers": "encdec_train/tracking/",
}


def mentions(tree: ast.Module, part: str) -> list[int]:
    """Return the lines that import a part of a library, or reach it through its parent."""
    parent, _, last = part.rpartition(".")
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute) and node.attr == last:
            names = [ast.unparse(node)]
        else:
            continue
        if any(name == part or name.startswith(f"{part}.") for name in names):
            found.append(node.lineno)
    return found if parent else []


@pytest.mark.parametrize("part", DOORS)
def test_a_part_of_a_library_has_one_door(part: str, package: Mapping[str, ast.Module]) -> None:
    others = {path: tree for path, tree in package.items() if not path.startswith(DOORS[part])}
    found = [f"{path}:{line}" for path, tree in others.items() for line in mentions(tree, part)]
    assert found == [], "\n".join(found)


@pytest.mark.parametrize(
    ("line", "caught"),
    [
        ("import torch.distributed as dist", True),
        ("from torch import distributed", True),
        ("from torch.distributed.fsdp import fully_shard", True),
        ("import torch\nrank = torch.distributed.get_rank()", True),
        ("import torch\nmodel.distributed = torch.nn.Linear(1, 1)", False),
        ("from encdec_train import distributed", False),
    ],
)
def test_the_door_rule_fires(line: str, caught: bool) -> None:
    assert bool(mentions(ast.parse(line), "torch.distributed")) is caught


def test_the_contracts_hold(root: Path) -> None:
    # A process of its own: import-linter keeps the streams of whoever imports it first.
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# A package that breaks each contract once, and nothing else.
PLANTED = {
    "__init__": "",
    "cli": "import planted.run",
    "run": "import planted.compose",
    "compose": "import hydra",
    "errors": "import planted.config",
    "config": "import omegaconf",
    "batch": "import sacrebleu",
    "unplaced": "",
    "data/__init__": "import wandb",
    "tracking/__init__": "import wandb, planted.training",
    "metrics/__init__": "import sacrebleu, evaluate",
    "metrics/rouge": "import rouge_score",
} | {f"{name}/__init__": "" for name in ("training", "report", "serving", "decoding", "modeling", "tasks")}


def test_the_contracts_fire(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (root / "pyproject.toml").read_text().replace("encdec_train", "planted")
    (tmp_path / "pyproject.toml").write_text(settings)
    for name, text in PLANTED.items():
        path = tmp_path / "planted" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{text}\n")
    # A process of its own: import-linter keeps what it knows of a package for as long as Python runs.
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    monkeypatch.setenv("COLUMNS", "200")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    for expected in (
        "Contracts: 0 kept, 4 broken",
        "unplaced",
        "planted.errors -> planted.config",
        "planted.run -> planted.compose",
        "planted.tracking -> planted.training",
        "planted.config -> omegaconf",
        "planted.data -> wandb",
        "planted.batch -> sacrebleu",
    ):
        assert expected in done.stdout
    for allowed in ("compose -> hydra", "tracking -> wandb", "metrics -> sacrebleu", "metrics.rouge -> rouge_score"):
        assert allowed not in done.stdout


def heavy(modules: Iterable[str]) -> list[str]:
    """Return the heavy libraries among the modules that are loaded."""
    return sorted(HEAVY & set(modules))


def test_the_command_line_starts_light() -> None:
    code = f"import sys, {', '.join(LIGHT_ENTRANCES)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert set(LIGHT_ENTRANCES) <= set(loaded)
    assert heavy(loaded) == []


def test_the_light_rule_fires() -> None:
    assert heavy(["sys", "torch", "torch.nn", "wandb.sdk", "datasets"]) == ["datasets", "torch"]
