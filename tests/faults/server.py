"""A process that has imported everything and forks a child for each rank of each start: a second, not eight.

One line of JSON on stdin is one start, one line on stdout its end. A child is the command line and nothing else, but
for one hook that ends it by a real SIGKILL at an exact point, and a trace of the examples that each finished step saw.
No tensor exists and no second thread runs before a fork, which is checked: so a forked child is as good as a new one.
"""

import importlib
import json
import os
import pkgutil
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any

from forked import become_encdec

POLL_SECONDS = 0.01
SLOW_IMPORTS = ("datasets", "evaluate", "sacrebleu", "rouge_score.rouge_scorer", "torch._dynamo", "torch.distributed",
                "torch.nn.parallel", "transformers.generation.utils", "transformers.models.bert.modeling_bert",
                "transformers.models.encoder_decoder.modeling_encoder_decoder")  # fmt: skip
NOT_PRELOADED = {"encdec_train.__main__"}  # it runs when it is imported


class Clock:
    """Which step this child is in, by the batch that training was given."""

    step = 0


def note_fault() -> None:
    """Write down when the fault came, for all processes the same clock."""
    Path(os.environ["FAULT_TIME"]).write_text(str(time.monotonic()), encoding="utf-8")


def die() -> None:
    """End this process as the out-of-memory killer, `kill -9` and a lost machine do: nothing is tidied up."""
    note_fault()
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def before(owner: Any, name: str, act: Callable[..., None]) -> None:
    """Call `act` with the arguments of every call of `owner.name`, before it."""
    original = getattr(owner, name)

    @wraps(original)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        act(*arguments, **named)
        return original(*arguments, **named)

    setattr(owner, name, wrapped)


def after(owner: Any, name: str, act: Callable[..., None]) -> None:
    """Call `act` with the arguments of every call of `owner.name`, after it."""
    original = getattr(owner, name)

    @wraps(original)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        act(*arguments, **named)
        return result

    setattr(owner, name, wrapped)


def die_at(step: int) -> Callable[..., None]:
    """Make an act that is deadly at one step, whatever it is called with."""
    return lambda *_, **__: die() if Clock.step == step else None


def on_start(step: int) -> None:
    from encdec_train.report import manifest

    before(manifest, "write_manifest", die_at(0))


def on_update(step: int) -> None:
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    register_optimizer_step_pre_hook(die_at(step))


def on_step_end(step: int) -> None:
    from encdec_train.training.callbacks import EveryStep

    after(EveryStep, "on_train_batch_end", die_at(step))


def on_log_line(step: int) -> None:
    from encdec_train.training.metrics_log import MetricsLog

    def half_a_line(log: Any, logged_step: int, values: Mapping[str, float]) -> None:
        if logged_step == step:
            with log._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values})[:30])
            die()

    before(MetricsLog, "log", half_a_line)


def on_validation(step: int) -> None:
    from encdec_train.training import validation

    before(validation, "predict", die_at(step))


def on_journal(number: int) -> None:
    """Die while the journal's line of such a number is half written."""
    from encdec_train.decoding.journal import Journal

    written = []

    def half_a_line(journal: Any, index: int, values: Mapping[str, Any]) -> None:
        written.append(index)
        if len(written) == number:
            journal._own.write(json.dumps({"index": index, **values})[:15].encode())
            journal._own.flush()
            die()

    before(Journal, "append", half_a_line)


def on_half_file(step: int) -> None:
    """Leave half of the checkpoint's second file: the manifest is still to come."""
    from encdec_train.training import checkpoint

    written = []

    def count(path: Path, data: bytes) -> None:
        if Clock.step == step:
            written.append(path)
        if len(written) == 2:
            with path.open("wb") as file:
                file.write(data[: len(data) // 2])
            die()

    before(checkpoint, "write", lambda *_, **__: before(Path, "write_bytes", count))


def on_checkpoint_rename(step: int) -> None:
    _before_rename_to(f"step_{step:08d}")


def on_prune(step: int) -> None:
    from encdec_train.training import checkpoint

    before(checkpoint, "prune", die_at(step))


def on_sigterm(step: int) -> None:
    _signalled_within(step, signal.SIGTERM, 1)


def on_ctrl_c(step: int) -> None:
    _signalled_within(step, signal.SIGINT, 1)


def on_ctrl_c_twice(step: int) -> None:
    _signalled_within(step, signal.SIGINT, 2)


def on_sigterm_to_the_group(step: int) -> None:
    """As a scheduler or `kill -- -group` sends it: the loader's workers get it too."""
    import multiprocessing

    def act(*_: Any, **__: Any) -> None:
        if Clock.step == step and not told:
            told.append(step)
            for process in multiprocessing.active_children():
                os.kill(process.pid or 0, signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    from encdec_train.training import module

    told: list[int] = []
    before(module, "loss_sum", act)


def on_sigterm_at_the_start(_step: int) -> None:
    from encdec_train.training.callbacks import EveryStep

    before(EveryStep, "on_train_start", lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def on_sigterm_in_validation(step: int) -> None:
    from encdec_train.training import validation

    def act(*_: Any, **__: Any) -> None:
        if Clock.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    before(validation, "predict", act)


def _signalled_within(step: int, number: int, times: int) -> None:
    """Signal this process alone, while a step computes its loss."""
    from encdec_train.training import module

    left = [number] * times

    def act(*_: Any, **__: Any) -> None:
        while left and Clock.step == step:
            os.kill(os.getpid(), left.pop())
            time.sleep(2.1 if left else 0)  # so much later it is another wish

    before(module, "loss_sum", act)


def on_export_rename(step: int) -> None:
    _before_rename_to("export")


def on_second_step_end(step: int) -> None:
    """The end of a step that this process makes for the second time: the baseline comes after the run itself."""
    from encdec_train.training.callbacks import EveryStep

    ended = []

    def act(*_: Any) -> None:
        ended.append(Clock.step)
        if ended.count(step) == 2:
            die()

    after(EveryStep, "on_train_batch_end", act)


def _before_rename_to(name: str) -> None:
    before(Path, "rename", lambda _, target: die() if Path(target).name == name else None)


POINTS = {name.removeprefix("on_"): hook for name, hook in list(globals().items()) if name.startswith("on_")}


def follow(trace: str | None) -> None:
    """Know the step; where asked, write down which examples each finished step saw on this rank."""
    from encdec_train.data.datamodule import StepDataset
    from encdec_train.data.preprocess import EncodedSplit
    from encdec_train.training.callbacks import EveryStep

    collated: dict[int, list[int]] = {}
    current: list[int] = []

    def started(callback: Any, trainer: Any, module: Any, batch: Any, index: int) -> None:
        Clock.step = batch.step

    def ended(callback: Any, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        with Path(trace or os.devnull).open("a", encoding="utf-8") as file:
            file.write(json.dumps([batch.step, sorted(collated.pop(batch.step, []))]) + "\n")

    def taken(split: Any, indices: Any) -> None:
        if current:
            collated.setdefault(current[-1], []).extend(int(index) for index in indices)

    def asked(dataset: Any, index: int) -> None:
        collated[index + 1] = []
        current.append(index + 1)

    before(EveryStep, "on_train_batch_start", started)
    if trace is not None:
        before(EveryStep, "on_train_batch_end", ended)
        before(EncodedSplit, "take", taken)
        before(StepDataset, "__getitem__", asked)
        after(StepDataset, "__getitem__", lambda *_: current.clear())


def be_rank(order: Mapping[str, Any], rank: int) -> list[str]:
    """Stand where one rank of a start would stand; return its arguments."""
    os.chdir(order["cwd"])
    for number, name in ((0, os.devnull), (1, order["stdout"]), (2, f"{order['stderr']}.{rank}")):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(name, flags, 0o600), number)
    if order["ranks"] > 1 and "argvs" not in order:
        os.environ |= torchrun(rank, order["ranks"], order["port"])
    os.environ |= {"FAULT_TIME": f"{order['stderr']}.fault", **order.get("environment", {})}
    for name, limit in order.get("limits", {}).items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    follow(order["trace"] and f"{order['trace']}.{rank}")
    if rank in order["victims"]:
        POINTS[order["point"]](order["step"])
    return order["argv"] if "argvs" not in order else order["argvs"][rank]


def torchrun(rank: int, ranks: int, port: int) -> dict[str, str]:
    """Return what torchrun sets for one rank of one node."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "faults",
        "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "0",
    }  # fmt: skip


def make(order: dict[str, Any]) -> dict[str, Any]:
    """Start all ranks and wait for their end, which is bounded: what is left at the deadline is killed and said."""
    order["port"] = free_port()
    started = time.monotonic()
    running = dict(fork(order))
    statuses: dict[int, int] = {}
    ended: dict[int, float] = {}
    ours: list[int] = []
    peaks: dict[int, int] = {}
    deadline = started + order["seconds"]
    while running:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if pid:
            rank = running.pop(pid)
            statuses[rank], ended[rank] = os.waitstatus_to_exitcode(status), time.monotonic() - started
            peaks[rank] = usage.ru_maxrss * 1024
            if statuses[rank] != 0:  # torchrun and SLURM end the others; here they are given time, to see what they do
                deadline = min(deadline, time.monotonic() + order["patience"])
            continue
        if time.monotonic() > deadline:
            for left, rank in running.items():
                ours.append(rank)
                os.kill(left, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(POLL_SECONDS)
    ranks = range(order["ranks"])
    fault = Path(f"{order['stderr']}.fault")
    stopping = started + max(ended.values()) - float(fault.read_text()) if fault.is_file() else None
    return {"statuses": [statuses[r] for r in ranks], "ended": [ended[r] for r in ranks], "ended_by_us": ours,
            "stopping": stopping, "peak_bytes": [peaks[r] for r in ranks]}  # fmt: skip


def fork(order: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Fork every rank; yields process and rank."""
    for rank in range(order["ranks"]):
        threads = len(list(Path("/proc/self/task").iterdir()))
        if threads != 1:
            raise RuntimeError(f"{threads} threads before a fork: expected 1, or the child may hang on a lock")
        pid = os.fork()
        if pid == 0:
            become_encdec(partial(be_rank, order, rank))
        yield pid, rank


def free_port() -> int:
    """Ask the system for a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def preload() -> None:
    """Import what a run imports."""
    import encdec_train

    names = [found.name for found in pkgutil.walk_packages(encdec_train.__path__, "encdec_train.")]
    for name in [*SLOW_IMPORTS, *(name for name in names if name not in NOT_PRELOADED)]:
        with suppress(ImportError):  # an optional one
            importlib.import_module(name)
    from encdec_train.compose import compose

    compose("train", [])  # Hydra looks for its plugins once


def serve() -> None:
    """Answer orders until stdin ends."""
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background process ignores it, and so would runs
    preload()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing but answers may come out there
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(make(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    sys.modules["server"] = sys.modules["__main__"]  # `troubles` shares the clock
    import troubles

    POINTS |= {name.removeprefix("on_"): hook for name, hook in vars(troubles).items() if name.startswith("on_")}
    serve()
