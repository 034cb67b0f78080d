import json
import re
import subprocess
import sys

import pytest

from encdec_train.report import manifest


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_what_is_written_is_what_is_returned(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/somebody/bin/encdec", "train", "hub.token=abc", "run.name=a b"])
    written = manifest.write_manifest(tmp_path / "new", {"parameters": {"distinct": 3}, "python": "mine"})
    assert json.loads((tmp_path / "new" / "manifest.json").read_text(encoding="utf-8")) == written
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["manifest.json"]
    assert written["command_line"] == "encdec train hub.token=*** 'run.name=a b'"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", written["started_utc"])
    assert written["parameters"] == {"distinct": 3}
    assert written["python"] == "mine"


def test_a_module_is_named_as_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/lib/encdec_train/__main__.py", "info"])
    assert manifest.write_manifest(tmp_path, {})["command_line"] == "encdec info"


def test_writing_an_earlier_manifest_again_keeps_its_start(tmp_path):
    first = manifest.write_manifest(tmp_path, {"finished": False, "started_utc": "2020-01-01T00:00:00+00:00"})
    second = manifest.write_manifest(tmp_path, {**first, "finished": True})
    assert second == {**first, "finished": True}


def test_versions_are_those_that_are_installed():
    import torch
    import transformers

    import encdec_train

    found = manifest.versions()
    assert found["encdec-train"] == encdec_train.__version__
    assert found["torch"] in {torch.__version__, torch.__version__.partition("+")[0]}  # PyPI's says no more of itself
    assert found["transformers"] == transformers.__version__


def test_versions_import_nothing_and_name_what_is_missing(monkeypatch):
    monkeypatch.setattr(manifest, "LIBRARIES", ("no-such-library",))
    assert manifest.versions()["no-such-library"] is None
    code = "import sys; from encdec_train.report.manifest import versions; versions(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not re.search(r"'(torch|transformers|wandb|numpy)'", done.stdout)


def test_hardware():
    found = manifest.hardware()
    assert found["cpu"]
    assert 1 <= found["usable_cpus"] <= found["cpus"]
    with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
        kib = int(file.readline().split()[1])
    assert found["memory_gib"] == pytest.approx(kib / 2**20, abs=0.2)


def test_git_state_of_code_that_is_tracked(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "code.py").write_text("a = 1\n", encoding="utf-8")
    git(tmp_path, "add", ".")
    assert manifest.git_state(tmp_path / "package") is None  # no commit yet
    git(tmp_path, "commit", "-q", "-m", "first")
    head = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    (tmp_path / "package" / "new.py").write_text("", encoding="utf-8")
    assert manifest.git_state(tmp_path / "package") == {"commit": head.stdout.strip(), "dirty": False}
    (tmp_path / "package" / "code.py").write_text("a = 2\n", encoding="utf-8")
    assert manifest.git_state(tmp_path / "package") == {"commit": head.stdout.strip(), "dirty": True}


def test_code_that_only_lies_in_a_checkout_has_no_commit(tmp_path):
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "somebody else's")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "code.py").write_text("", encoding="utf-8")
    assert manifest.git_state(tmp_path / "site-packages") is None


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert manifest.git_state(tmp_path) is None


def test_a_git_hook_of_another_repository_is_not_believed(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    (tmp_path / "plain").mkdir()
    git(tmp_path / "other", "init", "-q")
    (tmp_path / "other" / "x").write_text("", encoding="utf-8")
    git(tmp_path / "other", "add", ".")
    git(tmp_path / "other", "commit", "-q", "-m", "x")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    assert manifest.git_state(tmp_path / "plain") is None
