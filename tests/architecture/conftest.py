"""The source tree as the architecture tests see it: read and parsed once."""

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".ci", "benchmarks", "conf", "docs", "encdec_train", "slurm", "tests")
SUFFIXES = {".html", ".md", ".py", ".sbatch", ".toml", ".yaml", ".yml"}
NAMES = {".gitignore", "LICENSE", "Makefile", "run"}


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def texts() -> Mapping[str, str]:
    """Every text file that people write, by its path below the root."""
    top = [path for path in ROOT.iterdir() if path.is_file()]
    below = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    written = [path for path in [*top, *below] if path.suffix in SUFFIXES or path.name in NAMES]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(written)}


@pytest.fixture(scope="session")
def package(texts: Mapping[str, str]) -> Mapping[str, ast.Module]:
    """Every module of the package, parsed."""
    modules = {path: text for path, text in texts.items() if path.startswith("encdec_train/") and path.endswith(".py")}
    return {path: ast.parse(text, filename=path) for path, text in modules.items()}
