import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from encdec_train import console


@pytest.fixture(autouse=True)
def _speaking():
    console.silence(False)
    yield
    console.silence(False)


@pytest.fixture
def clock(monkeypatch):
    """Give a clock that the test turns by hand."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def run(code, **kwargs):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60, **kwargs)


def test_only_out_writes_to_stdout(capsys):
    console.say("a")
    console.say()
    console.warn("b")
    console.out("c")
    captured = capsys.readouterr()
    assert captured.err == "a\n\nwarning: b\n"
    assert captured.out == "c\n"


def test_a_silent_rank_writes_nothing(capsys):
    console.silence()
    console.say("a")
    console.warn("b")
    console.out("c")
    with console.progress(1, "train") as bar:
        bar.advance(loss=1.0)
    assert capsys.readouterr() == ("", "")


def test_control_characters_of_data_do_not_reach_the_terminal(capsys):
    console.say("tab\tline\n\x1b]0;title\x07 \r\x9b2J")
    assert capsys.readouterr().err == "tab\tline\n\\x1b]0;title\\x07 \\r\\x9b2J\n"


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", b"\\xe9 \\u6f22 \\ud800\n"), ("utf-8", "é 漢 \\ud800\n".encode())]
)
def test_what_a_stream_cannot_show_is_escaped(monkeypatch, encoding, shown):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding=encoding))
    monkeypatch.setattr(sys, "stdout", sys.stderr)
    console.say("é 漢 \ud800")
    console.out("é 漢 \ud800")
    assert raw.getvalue() == shown * 2


def test_in_the_c_locale_nothing_crashes():
    code = "from encdec_train import console; console.say('\\xe9 \\u6f22'); console.out('\\xe9 \\u6f22')"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    done = run(code, env=environment)
    assert (done.returncode, done.stderr, done.stdout) == (0, b"\\xe9 \\u6f22\n", b"\\xe9 \\u6f22\n")


def test_a_reader_that_leaves_ends_the_program_quietly():
    code = "from encdec_train import console\nfor i in range(100000): console.out(str(i))"
    shell = f'set -o pipefail; "{sys.executable}" -c "{code}" | head -n 1'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, check=False, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == (b"0\n", b"", 1)


def test_a_terminal_that_is_gone_does_not_stop_a_run():
    read, write = os.pipe()
    os.close(read)
    code = "from encdec_train import console\nconsole.say('x'); console.out('done')"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=write, check=False, timeout=60)
    os.close(write)
    assert done.stdout == b"done\n"
    assert done.returncode == 0


def test_table_aligns_numbers_on_the_right_and_counts_wide_characters_twice():
    rows = [["sacrebleu", "31.2", "漢字"], ["rouge1", "1,004.25", "e\u0301a"], ["x\ny", "-"]]
    assert console.table(rows, ["metric", "value", "note"]).split("\n") == [
        "metric        value  note",
        "---------  --------  ----",
        "sacrebleu      31.2  漢字",
        "rouge1     1,004.25  e\u0301a",
        "x y               -",
    ]


def test_table_without_rows_is_its_header():
    assert console.table([], ["a", "bc"]) == "a  bc\n-  --"


def test_plain_progress_is_a_line_every_twentieth(capsys, clock):
    with console.progress(600, "train") as bar:
        for _ in range(120):
            clock[0] += 0.1
            bar.advance(loss=2.3071, tokens_per_second=1834.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train 30/600 loss 2.31 1,834 tokens/s 0:03 left 0:57"
    assert lines[-1] == "train 120/600 loss 2.31 1,834 tokens/s 0:12 left 0:48"
    assert len(lines) == 4


def test_plain_progress_of_slow_steps_is_a_line_each_15_s_later_each_minute(capsys, clock):
    with console.progress(100_000, "train") as bar:
        for _ in range(4 * 3600):
            clock[0] += 1
            bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["train 15/100,000 0:15 left 27:46:25", "train 30/100,000 0:30 left 27:46:10"]
    assert lines[-2:] == ["train 14,363/100,000 3:59:23 left 23:47:17", "train 14,400/100,000 4:00:00 left 23:46:40"]
    assert 240 < len(lines) < 300


def test_a_resumed_run_estimates_from_its_own_steps(capsys, clock):
    with console.progress(600, "train", done=500) as bar:
        for _ in range(50):
            clock[0] += 2
            bar.advance()
    assert capsys.readouterr().err.splitlines()[-1] == "train 550/600 1:40 left 1:40"


def test_the_last_step_and_an_early_end_are_shown(capsys, clock):
    with console.progress(3, "decode") as bar:
        bar.advance(3, beams="4")
    with console.progress(1000, "train") as bar:
        bar.advance(7)
    assert capsys.readouterr().err.splitlines() == ["decode 3/3 beams 4 0:00", "train 7/1,000 0:00 left 0:00"]


def on_terminal(code, term, columns=100):
    """Run code with stderr on a pseudo-terminal; return what it shows."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "TERM": term}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=child, stdout=subprocess.DEVNULL, env=environment)
    os.close(child)
    shown = b""
    while chunk := _read(parent):
        shown += chunk
    assert process.wait(timeout=60) == 0
    os.close(parent)
    return shown.decode()


def _read(descriptor):
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux: the other end is closed
        return b""


BAR = """
from encdec_train import console
with console.progress(4, "train") as bar:
    for i in range(4):
        bar.advance(loss=1.5, tokens_per_second=1834.0)
        if i == 1:
            console.say("hello")
"""


def test_a_terminal_shows_a_bar_and_text_above_it():
    shown = on_terminal(BAR, "xterm")
    last = shown.rstrip().rsplit("\r", 1)[1]
    assert last.startswith("train 100%|")
    assert " 4/4 " in last
    assert last.endswith("loss 1.5 1,834 tokens/s")
    assert "hello\r\n" in shown


@pytest.mark.parametrize(("term", "columns"), [("dumb", 80), ("xterm", 0)])
def test_a_terminal_that_cannot_draw_shows_lines(term, columns):
    assert on_terminal(BAR, term, columns).splitlines()[-1] == "train 4/4 loss 1.5 1,834 tokens/s 0:00"
