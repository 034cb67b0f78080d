"""The project file, the Makefile and CI agree, and what is built holds what it must."""

import ast
import re
import sys
import tarfile
import tomllib
import warnings
import zipfile
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Declared though no module of ours imports them.
NOT_IMPORTED = {"tensorboard": "torch.utils.tensorboard imports it"}


@pytest.fixture(scope="module")
def project(root: Path) -> Mapping[str, Any]:
    everything = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    table: dict[str, Any] = everything["project"]
    return table


@pytest.fixture(scope="module")
def shipped(root: Path) -> set[str]:
    """What the wheel must hold: the package's files and the YAML, by their path inside it."""
    files = [path for path in (root / "encdec_train").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    modules = {path.relative_to(root).as_posix() for path in files}
    yaml = {f"encdec_train/{path.relative_to(root).as_posix()}" for path in (root / "conf").rglob("*.yaml")}
    assert modules
    assert yaml
    return modules | yaml


def test_the_wheel_carries_code_and_conf_and_nothing_else(root: Path, shipped: set[str], tmp_path: Path) -> None:
    [wheel] = WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    assert {name for name in names if ".dist-info/" not in name} == shipped
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_editable_install_has_no_copy_of_conf(root: Path, tmp_path: Path) -> None:
    [wheel] = WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["editable"])
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    assert [Path(name).suffix for name in names if ".dist-info/" not in name] == [".pth"]


def test_the_source_archive_can_be_built_tested_and_checked(root: Path, shipped: set[str], tmp_path: Path) -> None:
    [archive] = SdistBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    sources = {name.removeprefix("encdec_train/") if "/conf/" in name else name for name in shipped}
    assert sources <= names
    assert {"LICENSE", "Makefile", "README.md", "pyproject.toml", ".ci/run", "tests/architecture/conftest.py"} <= names
    assert not [name for name in names if name.startswith(("outputs/", ".venv/"))]


@pytest.mark.parametrize(
    ("name", "refused", "accepted"),
    [
        ("hydra-core", ["1.3.2", "1.4.0"], "1.3.8"),  # known_defects S1
        ("pytorch-lightning", ["2.6.2", "2.6.3"], "2.6.6"),  # known_defects S2
        ("torch", ["2.9.1"], "2.13.0"),  # known_defects S3
    ],
)
def test_versions_with_known_holes_are_shut_out(
    name: str, refused: list[str], accepted: str, project: Mapping[str, Any]
) -> None:
    [requirement] = [one for one in map(Requirement, project["dependencies"]) if one.name == name]
    assert [version for version in refused if requirement.specifier.contains(version)] == []
    assert requirement.specifier.contains(accepted)


def third_party(tree: ast.Module) -> set[str]:
    """Return the top-level names that a module imports from outside Python and this package."""
    imports = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imports += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) if node.module]
    return {name.split(".")[0] for name in imports} - sys.stdlib_module_names - {"encdec_train"}


def test_what_is_imported_is_declared_and_the_reverse(
    package: Mapping[str, ast.Module], project: Mapping[str, Any]
) -> None:
    declared = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    distributions = packages_distributions()
    names = {name for tree in package.values() for name in third_party(tree)}
    imported = {canonicalize_name(distributions[name][0]) for name in names}
    assert imported - declared == set()
    assert declared - imported <= set(NOT_IMPORTED)


def test_third_party_imports_are_found() -> None:
    text = "import os, torch.nn\nfrom yaml import load\nfrom encdec_train import run\ndef f():\n    import wandb"
    assert third_party(ast.parse(text)) == {"torch", "yaml", "wandb"}


def test_the_console_command_exists(project: Mapping[str, Any]) -> None:
    from encdec_train import cli

    assert project["scripts"] == {"encdec": "encdec_train.cli:main"}
    assert callable(cli.main)


def test_ci_runs_the_three_targets_and_nothing_else(texts: Mapping[str, str]) -> None:
    assert re.findall(r"^for target in (.*); do$", texts[".ci/run"], re.MULTILINE) == ["check demo test"]
    assert re.findall(r"^\s*make .*$", texts[".ci/run"], re.MULTILINE) == ['  make "$target"']


def test_pre_commit_runs_the_tools_of_make_check(texts: Mapping[str, str]) -> None:
    in_make = re.findall(r"^\t\$\(BIN\)/([\w-]+)", texts["Makefile"].split("test:")[0], re.MULTILINE)
    in_hooks = re.findall(r"entry: \.venv/bin/([\w-]+)", texts[".pre-commit-config.yaml"])
    assert in_make == ["ruff", "ruff", "mypy", "lint-imports", "codespell"]
    assert in_hooks == in_make


@pytest.mark.parametrize("module", ["encdec_train", "encdec_train.data.load"])
def test_a_warning_of_our_own_is_an_error(module: str) -> None:
    with pytest.raises(UserWarning, match="planted"):
        warnings.warn_explicit("planted", UserWarning, "file.py", 1, module=module)


def test_a_warning_of_others_is_not() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn_explicit("planted", UserWarning, "file.py", 1, module="torch.nn")
    assert [str(one.message) for one in caught] == ["planted"]
