import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import encdec_train
from encdec_train import api, cli, comparison, doctor, evaluation, run, session
from encdec_train.cli import main
from encdec_train.cluster import bundle
from encdec_train.compose import compose
from encdec_train.config import (
    CompareConfig,
    EvaluateConfig,
    GenerateConfig,
    ScoreConfig,
    TrainConfig,
    VerifyConfig,
    to_dict,
)
from encdec_train.errors import CheckpointError, DataError, StoppedError
from encdec_train.training import stop

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Record which verb is run with which config, instead of running it."""
    found: list[tuple[str, Any]] = []

    def replace(module: Any, name: str, answer: object = None) -> None:
        monkeypatch.setattr(module, name, lambda config, *_: found.append((name, config)) or answer)

    replace(run, "train")
    replace(doctor, "doctor")
    replace(evaluation, "evaluate")
    replace(evaluation, "score", {"exact_match": {"value": 1.0}})
    replace(comparison, "compare", {"exact_match": {"value": 1.0}})
    replace(api, "generate_stream")
    replace(session, "make_bundle")
    replace(bundle, "say_verified")
    return found


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"], ["train", "--help"], ["train", "x=1", "-h"]])
def test_help(arguments: list[str], capsys: Capture) -> None:
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for verb in cli.VERBS:
        assert f"  encdec {verb}" in captured.out
    for flag in ("--cfg", "--multirun, -m", "--config-dir DIR", "--help", "--version"):
        assert flag in captured.out
    assert "'task.train_file=\"my file.csv\"'" in captured.out  # how to quote
    assert max(map(len, captured.out.splitlines())) <= 110


def test_help_goes_by_without_the_heavy_libraries() -> None:
    code = (
        "import sys; from encdec_train.cli import main; main([]); print(sorted({'hydra', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{encdec_train.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "name", "kind"),
    [
        (["train"], "train", TrainConfig),
        (["doctor", "seed=3"], "doctor", TrainConfig),
        (["evaluate", "checkpoint=x"], "evaluate", EvaluateConfig),
        (["score", "predictions=x"], "score", ScoreConfig),
        (["compare", "a=x", "b=[y,z]"], "compare", CompareConfig),
        (["generate", "checkpoint=x"], "generate_stream", GenerateConfig),
        (["bundle", "bundle.path=x"], "make_bundle", TrainConfig),
        (["verify", "bundle.path=x"], "say_verified", VerifyConfig),
    ],
)
def test_a_verb_gets_its_config(
    arguments: list[str], name: str, kind: type, calls: list[tuple[str, Any]], capsys: Capture
) -> None:
    assert main(arguments) == 0
    ((called, config),) = calls
    assert (called, type(config)) == (name, kind)
    verb = "train" if name == "doctor" else arguments[0]  # the same keys and values
    assert to_dict(config) == to_dict(compose(verb, arguments[1:]))
    printed = '{\n "exact_match": {\n  "value": 1.0\n }\n}\n' if name in {"score", "compare"} else ""
    assert capsys.readouterr().out == printed


def test_arguments_come_from_the_process(calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["encdec", "train", "seed=7"])
    assert main() == 0
    assert calls[0][1].seed == 7
    assert sys.argv == ["encdec", "train", "seed=7"]


@pytest.mark.parametrize("arguments", [["train"], ["generate", "checkpoint=x"], ["evaluate", "checkpoint=x"]])
def test_cfg_prints_what_would_run(arguments: list[str], calls: list[tuple[str, Any]], capsys: Capture) -> None:
    assert main([arguments[0], "--cfg", *arguments[1:]]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == to_dict(compose(arguments[0], arguments[1:]))
    assert calls == []


WRONG = [
    (["trian"], "encdec trian: verb: expected one of train, doctor, evaluate, score, compare, generate, report, "
     "submit, bundle, verify, info, got 'trian'. Did you mean train."),
    (["--cfg"], "encdec --cfg: verb: expected one of train, doctor, evaluate, score, compare, generate, report, "
     "submit, bundle, verify, info, got '--cfg'."),
    (["train", "--cgf"], "encdec train: argument: expected --cfg, --multirun, --config-dir DIR or key=value, "
     "got '--cgf'."),
    (["train", "--config-dir"], "encdec train: --config-dir: expected a folder of YAML files, got ''."),
    (["train", "--config-dir="], "encdec train: --config-dir: expected a folder of YAML files, got ''."),
    (["train", "--config-dir=nowhere"], "encdec train: --config-dir: expected a folder of YAML files, got 'nowhere'."),
    (["info", "seed=1"], "encdec info: argument: expected none, got 'seed=1'."),
    (["score", "-m", "predictions=a,b"], "encdec score: --multirun: expected encdec train or submit, got 'score'."),
    (["train", "optim.lr=x", "seed=x"], "encdec train: seed: expected a whole number, got 'x'.\n"
     "optim.lr: expected a number, got 'x'."),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_a_wrong_command_line(arguments: list[str], text: str, calls: list[tuple[str, Any]], capsys: Capture) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"{text}\n")
    assert calls == []


def raising(error: BaseException) -> Callable[[object], None]:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (DataError("a.jsonl: bad"), 2, "encdec train: a.jsonl: bad\n"),
        (CheckpointError("disk full"), 1, "encdec train: disk full\n"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C; the same command goes on from the last checkpoint\n"),
    ],
)
def test_exit_statuses(
    error: BaseException, status: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(run, "train", raising(error))
    assert main(["train"]) == status
    assert capsys.readouterr().err == text


def test_a_rank_that_lightning_started_ends_well_when_it_was_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its status is read by Lightning alone, which kills rank 0 for another one."""
    monkeypatch.setattr(run, "train", raising(StoppedError(signal.SIGTERM, 7)))
    for local_rank, status in (("0", 143), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        monkeypatch.setattr(stop, "listen_early", lambda: None)
        assert main(["train"]) == status


def test_ctrl_c_waits_until_the_config_is_composed(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupted(*_: object) -> None:
        try:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        except KeyboardInterrupt as early:
            raise AttributeError("what OmegaConf makes of it") from early

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(encdec_train.compose, "compose", interrupted)
    assert main(["train"]) == 130
    signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.startswith("stopped by Ctrl-C")


def test_other_verbs_do_not_promise_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(evaluation, "evaluate", raising(KeyboardInterrupt()))
    assert main(["evaluate", "checkpoint=x"]) == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_memory_that_runs_out_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def run_out(_config: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nA second line.")

    monkeypatch.setattr(evaluation, "evaluate", run_out)
    assert main(["evaluate", "checkpoint=x"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("encdec evaluate: memory: expected room for what is computed; CUDA out of memory. Tried")
    assert "lower data.max_micro_tokens" in said


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ],
)
def test_threads_wait_as_measured_unless_the_user_says_how(
    given: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for name in names:
        monkeypatch.setenv(name, "")  # so that what main sets is taken back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    main(["--version"])
    assert {name: os.environ[name] for name in names if name in os.environ} == expected


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "train", raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main(["train"])


def test_info_names_versions_and_devices(capsys: Capture) -> None:
    assert main(["info"]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["encdec-train"] == encdec_train.__version__
    assert {"torch", "transformers", "cpu", "gpus", "memory_gib"} <= set(lines)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace the processes of a multirun: they end with `statuses` in turn, then with 0."""
    found = SimpleNamespace(commands=[], statuses=[])

    def start(command: list[str]) -> int:
        found.commands.append(command)
        return found.statuses.pop(0) if found.statuses else 0

    monkeypatch.setattr(cli, "_job", start)
    return found


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_a_multirun_starts_a_process_a_job(flag: str, children: SimpleNamespace, capsys: Capture) -> None:
    assert main(["train", flag, "seed=1,2", "optim.lr=3"]) == 0
    start = [sys.executable, "-m", "encdec_train", "train"]
    assert children.commands == [[*start, "seed=1", "optim.lr=3"], [*start, "seed=2", "optim.lr=3"]]
    captured = capsys.readouterr()
    assert "[1/2] encdec train seed=1 optim.lr=3\n" in captured.err
    assert captured.err.endswith("2 of 2 jobs are finished\n")
    assert captured.out == ""


def test_a_multirun_goes_on_after_a_failed_job(children: SimpleNamespace, capsys: Capture) -> None:
    children.statuses = [0, 2, 0]
    assert main(["train", "-m", "seed=1,2,3"]) == 1
    assert len(children.commands) == 3
    assert capsys.readouterr().err.endswith("2 of 3 jobs are finished\nfailed: encdec train seed=2\n")


@pytest.mark.parametrize("status", [130, -2])
def test_ctrl_c_ends_a_multirun(status: int, children: SimpleNamespace) -> None:
    children.statuses = [0, status]
    assert main(["train", "-m", "seed=1,2,3"]) == 130
    assert len(children.commands) == 2


def test_a_multirun_passes_the_folder_of_own_yaml_on(
    children: SimpleNamespace, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["train", "-m", "--config-dir", str(tmp_path), "seed=1,2"]) == 0
    assert children.commands[1][4:] == ["--config-dir", str(tmp_path), "seed=2"]


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["seed=1,2", "optim.lr=x,1"], "optim.lr: expected a number, got 'x'."),
        (["seed=1,2", "run.name=a"], "run.name: expected a name for each job, or none, got 'a'; "
         "several jobs would share one folder. Leave it out."),
        (["decoding.num_beams=1,4"], "--multirun: expected jobs that differ in what they train; several jobs are the "
         "same run: decoding, metrics and how a run is executed do not make another one. Sweep a key of the model, "
         "data, optimisation, steps or seed, or give each job a run.name."),
        (["optim.lr=interval(0,1)"], "optim.lr: expected values to choose from: 1,2,3 or range(1,4), "
         "got 'optim.lr=interval(0,1)'."),
    ],
)  # fmt: skip
def test_the_faults_of_all_jobs_come_before_the_first(
    overrides: list[str], text: str, children: SimpleNamespace, capsys: Capture
) -> None:
    assert main(["train", "--multirun", *overrides]) == 2
    assert capsys.readouterr().err == f"encdec train: {text}\n"
    assert children.commands == []


def test_a_multirun_may_name_its_runs(children: SimpleNamespace) -> None:
    assert main(["train", "-m", "run.name=a,b"]) == 0
    assert [command[-1] for command in children.commands] == ["run.name=a", "run.name=b"]


def test_cfg_of_a_multirun_prints_every_job(children: SimpleNamespace, capsys: Capture) -> None:
    assert main(["train", "-m", "--cfg", "seed=1,2"]) == 0
    assert [config["seed"] for config in yaml.safe_load_all(capsys.readouterr().out)] == [1, 2]
    assert children.commands == []


@pytest.mark.parametrize(
    ("number", "to_group", "status"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143), (signal.SIGTERM, True, 143)],
)
def test_a_job_of_a_multirun_has_the_time_that_its_checkpoint_takes(number: int, to_group: bool, status: int) -> None:
    job = (
        "import signal, sys, time\n"
        "def stop(number, frame):\n    time.sleep(1)\n    sys.exit(128 + number)\n"
        "for one in (signal.SIGINT, signal.SIGTERM): signal.signal(one, stop)\n"
        "print('ready', flush=True)\nfor _ in range(600): time.sleep(0.1)\n"  # a signal may come just before a sleep
    )
    code = f"import sys; from encdec_train.cli import _job; sys.exit(_job([sys.executable, '-c', {job!r}]))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        (os.killpg if to_group else os.kill)(parent.pid, number)
        assert parent.wait(timeout=30) == status
