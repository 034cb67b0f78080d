"""Runs `encdec`; where a file `stall` lies in the folder, a checkpoint stops with its second file half written."""

import sys
import time
from pathlib import Path


def main() -> int:
    if Path("stall").exists():
        from encdec_train.training import checkpoint

        write, written = Path.write_bytes, []

        def half(path: Path, data: bytes) -> int:
            if path.parent.name.startswith(".step_") and checkpoint.steps(path.parents[1]):
                written.append(path)
            if len(written) != 2:
                return write(path, data)
            write(path, data[: len(data) // 2])
            Path("stalled").touch()
            while True:
                time.sleep(1)

        Path.write_bytes = half
    from encdec_train.cli import main as encdec

    return encdec(sys.argv[2:])  # after the program's name


if __name__ == "__main__":
    sys.exit(main())
