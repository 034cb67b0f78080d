"""The watchdog: ranks learn of one another, without a collective, who was lost, who failed and who stands still.

Each rank keeps one small file in `<run>/.ranks/`, which it alone writes, under a record lock that dies with its
process; a thread reads those of the others. Waits are measured by the reader's own monotonic clock, so clocks need not
agree. A rank that hangs in a collective cannot raise: its thread says why and ends the process.
"""

import errno
import faulthandler
import fcntl
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from encdec_train import atomic, console, distributed
from encdec_train.errors import ClusterError, EncDecError, StoppedError, fault
from encdec_train.redact import redact_text
from encdec_train.training import checkpoint

LOOK_SECONDS = 1.0  # between two looks at the others; longer where there are many
SLEPT_SECONDS = 20.0  # a look so late means that this process itself was stopped: nobody is blamed for that time
PATIENCE_SECONDS = 6.0  # for a rank to end by itself, with a message of its own
VERDICT_SECONDS = 4.0  # a broken connection comes before the reason for it can be read
SIGN_BYTES = 2048  # of one file: written over in place, so that a full disk does not silence a rank


@dataclass
class Peer:
    """What this rank knows of another one (or of itself)."""

    sign: dict[str, Any] = field(default_factory=dict)
    beaten_at: float = 0.0  # when its thread was last seen alive
    moved_at: float = 0.0  # when it last got on
    fresh: bool = False  # of this start: an earlier one may have left its file


class Watch:
    """A context: signs of life go out, the others' are read, and an error is written where the others find it.

    Args:
        run: The run's folder, one for all ranks.
        ranks: How many there are to be.
        stall_seconds: So long nothing may move while it trains or decodes; None for ever.
    """

    def __init__(self, run: Path, ranks: int, stall_seconds: int | None) -> None:
        self._run, self._ranks, self._limit = run, ranks, stall_seconds
        self._rank, self._stop = distributed.rank(), threading.Event()
        self._file: IO[bytes] | None = None
        self._failed: str | None = None
        self._stopped: list[int] = []  # processes of this machine that do not breathe
        self._peers = {rank: Peer() for rank in range(ranks)}
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        """Show this rank, and begin to look."""
        distributed.moved(None)
        with suppress(OSError):  # a folder that cannot be written is said by whoever needs it
            _error_file(self._run, self._rank, "error").unlink(missing_ok=True)
            _error_file(self._run, self._rank, "stacks").unlink(missing_ok=True)
            if self._ranks > 1:
                _sign_file(self._run, self._rank).parent.mkdir(exist_ok=True, parents=True)
                self._look()  # at what earlier starts left
                self._file = os.fdopen(
                    os.open(_sign_file(self._run, self._rank), os.O_RDWR | os.O_CREAT, 0o600), "r+b", 0
                )
                fcntl.lockf(self._file, fcntl.LOCK_EX)
                self._beat(0)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell the others what went wrong here.

        Raises:
            ClusterError: When it went wrong because another rank failed or was lost; it is named.
        """
        try:
            why = _to_its_end(self._blame) if isinstance(error, RuntimeError) and self._ranks > 1 else None
        finally:  # srun signals who is left when a rank has ended; that must not overtake what the thread ends with
            self._stop.set()
            with suppress(StoppedError):
                self._thread.join()
            self._thread.join()
        if error is not None and not isinstance(error, StoppedError):
            self._tell(why or (str(error) if isinstance(error, EncDecError) else f"{type(error).__name__}: {error}"))
            if why is None and not isinstance(error, EncDecError | KeyboardInterrupt | SystemExit):
                with suppress(OSError):
                    text = redact_text("".join(traceback.format_exception(error)))
                    atomic.write(_error_file(self._run, self._rank, "error"), text.encode(errors="replace"))
        else:
            with suppress(OSError, ValueError):
                for path in _sign_file(self._run, 0).parent.iterdir():  # those of ranks that an earlier start had, too
                    if int(path.name) == self._rank or int(path.name) >= self._ranks:
                        path.unlink(missing_ok=True)
                _sign_file(self._run, 0).parent.rmdir()  # the last one; not empty before
            with suppress(OSError):
                _error_file(self._run, 0, "").parent.rmdir()  # empty, unless somebody else put something there
        if self._file is not None:
            self._file.close()
        if why is not None:
            raise ClusterError(why) from error

    def _watch(self) -> None:
        every = LOOK_SECONDS * max(1.0, self._ranks / 8)
        beats, blamed_at, before = 0, None, time.monotonic()
        while not self._stop.wait(every):
            beats, now = beats + 1, time.monotonic()
            if now - before > SLEPT_SECONDS + every:
                for peer in self._peers.values():
                    peer.beaten_at = peer.moved_at = now
            before = now
            with suppress(OSError):
                self._beat(beats)
                self._look()
            if (silent := self._stalled(now)) is not None:
                self._end(silent, with_stacks=True)
            if why := self._culprit():
                blamed_at = blamed_at or now
                if now - blamed_at > PATIENCE_SECONDS:
                    self._end(why, with_stacks="no rank got on" in why)

    def _beat(self, beats: int) -> None:
        count, doing, waits = distributed.last_move()
        sign = {"rank": self._rank, "host": os.uname().nodename, "pid": os.getpid(), "start": _start(), "beat": beats,
                "count": count, "doing": doing, "waits": waits, "failed": self._failed}  # fmt: skip
        self._take(self._rank, sign)
        if self._file is not None:
            os.pwrite(self._file.fileno(), json.dumps(sign, ensure_ascii=False).encode().ljust(SIGN_BYTES), 0)

    def _look(self) -> None:
        for rank in self._peers.keys() - {self._rank}:
            with suppress(FileNotFoundError, ValueError):  # not there yet, gone, or being written
                self._take(rank, json.loads(_sign_file(self._run, rank).read_bytes()))

    def _take(self, rank: int, sign: dict[str, Any]) -> None:
        peer, now = self._peers[rank], time.monotonic()
        new = sign != peer.sign
        peer.fresh |= rank == self._rank or sign["start"] == _start() or (bool(peer.sign) and new)
        if new:
            peer.beaten_at = now
        if sign["count"] != peer.sign.get("count"):
            peer.moved_at = now
        peer.sign = sign

    def _stalled(self, now: float) -> str | None:
        """Say who stands still, when nobody has moved for too long or the process of one does not breathe."""
        peers = [peer for peer in self._peers.values() if peer.fresh]
        if self._limit is None:
            return None
        frozen = [
            p for p in peers if now - p.beaten_at > self._limit and _sign_file(self._run, p.sign["rank"]).exists()
        ]
        if not frozen and any(p.sign["doing"] is None or now - p.moved_at <= self._limit for p in peers):
            return None  # what is not watched may take long, but its process breathes
        silent = frozen or [p for p in peers if not p.sign["waits"]] or peers
        said = [f"{_named(p)} since {now - p.moved_at:.0f} s, at {p.sign['doing'] or 'the start'}" for p in silent]
        here = [
            p.sign
            for p in frozen
            if p.sign["host"] == os.uname().nodename and not _is_gone(_sign_file(self._run, p.sign["rank"]))
        ]
        self._stopped = [sign["pid"] for sign in here]
        return f"no rank got on for trainer.stall_seconds={self._limit}; silent: {'; '.join(said)}"

    def _culprit(self) -> str | None:
        """Say which other rank failed or was lost, if one did."""
        for rank in sorted(self._peers.keys() - {self._rank}):
            peer = self._peers[rank]
            if not peer.fresh:
                continue
            if failed := str(peer.sign["failed"] or ""):
                return failed if failed.startswith(("rank ", "no rank ")) else f"{_named(peer)} failed: {failed}"
            if _is_gone(_sign_file(self._run, rank)):
                return f"{_named(peer)} was lost, at {peer.sign['doing'] or 'the start'}: killed, or its machine"
        return None

    def _blame(self) -> str | None:
        """Find out whether an error here is another rank's fault."""
        deadline = time.monotonic() + VERDICT_SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError):
                self._look()
            if why := self._culprit():
                return f"{why}. {_remedy(self._run)}"
            time.sleep(0.1)
        return None

    def _tell(self, why: str) -> None:
        self._failed = redact_text(why.splitlines()[0] if why else "an error")[:300]
        with suppress(OSError):
            self._beat(-1)

    def _end(self, why: str, *, with_stacks: bool) -> None:
        """End this process, whose main thread does not get to an end."""
        self._tell(why)
        if with_stacks:
            with suppress(OSError):
                path = _error_file(self._run, self._rank, "stacks")
                path.parent.mkdir(exist_ok=True)
                with path.open("w", encoding="utf-8") as file:
                    faulthandler.dump_traceback(file, all_threads=True)
                why += f"; the stacks of this rank are in {path}"
        console.silence(False)
        console.say(
            f"rank {self._rank}: {fault('watchdog', 'every rank to get on', None, why, _remedy(self._run)[:-1])}"
        )
        sys.stderr.flush()
        time.sleep(2 * LOOK_SECONDS if with_stacks else 0)  # the others read it, and show theirs
        for process in self._stopped:  # last, or it would go on as if nothing had been: woken up it finds nobody
            with suppress(OSError):
                os.kill(process, signal.SIGCONT)
        os._exit(1)


def _to_its_end(find_out: Callable[[], str | None]) -> str | None:
    """Ask again where a signal, which is raised once, has interrupted: srun sends one when a rank has ended."""
    try:
        return find_out()
    except StoppedError:
        return find_out()


def _is_gone(sign_file: Path) -> bool:
    """Tell whether the process that wrote a sign has died without taking it away."""
    try:
        with sign_file.open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return file.read(1) == b"{" and sign_file.exists()
    except OSError as error:
        return error.errno == errno.ESTALE


def _remedy(run: Path) -> str:
    steps = checkpoint.steps(run / "checkpoints")
    where = f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"
    where = where if steps or not (run / "predictions").is_dir() else "what was decoded is kept"
    return f"The same command goes on: {where}."


def _error_file(run: Path, rank: int, kind: str) -> Path:
    return run / "errors" / f"rank{rank}.{kind}"


def _sign_file(run: Path, rank: int) -> Path:
    return run / ".ranks" / f"{rank}"


def _named(peer: Peer) -> str:
    return f"rank {peer.sign['rank']} (process {peer.sign['pid']} on {peer.sign['host']})"


def _start() -> list[object]:
    """Name this start, for the ranks of one launcher on one machine; elsewhere a file is new when it changes."""
    return [os.uname().nodename, os.getppid(), *map(os.environ.get, ("MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"))]
