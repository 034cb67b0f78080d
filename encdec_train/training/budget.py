"""`data.max_micro_tokens=auto`: how many padded tokens a micro-batch may have, found out by trying.

On a GPU real forward and backward passes of growing size are made until memory runs out. On a CPU there is nothing to
run into but the system's killer of processes, so one pass is measured and the rest is arithmetic. Either is made once
for a model, a device and a data set's lengths, and kept in the cache; what a run was started with stays with the run.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from encdec_train import __version__, atomic, console, distributed
from encdec_train.config import TrainerConfig
from encdec_train.data.collate import collate
from encdec_train.errors import DataError
from encdec_train.fingerprint import json_sha256
from encdec_train.folder import RunFolder
from encdec_train.jsonl import parse_object
from encdec_train.training import memory
from encdec_train.training.module import Seq2SeqModule

MOST_TOKENS = {"cpu": 4096, "cuda": 32768}  # not studied; docs/scaling.md has what was seen on a CPU
FIRST_TOKENS = 512  # of the smallest pass
SHARE = {"cpu": 0.5, "cuda": 0.85}  # of the free memory that passes may take; what is left is for what was not tried
# Of the weights, in float32, besides what tokens need: what an optimizer holds; on a CPU also what a pass was seen to
# need whatever its size (docs/scaling.md: 9 copies; half of the memory is left for that too).
COPIES = {"cpu": 6, "cuda": 3}
ID = 5  # a token: any id that no vocabulary pads with


def auto_budget(
    module: Seq2SeqModule, trainer: TrainerConfig, lengths: npt.NDArray[np.integer], folder: RunFolder, cache: Path
) -> int:
    """Choose one budget for all ranks; every rank must call it, with the model on its device.

    Args:
        module: What is trained; its gradients are gone afterwards.
        trainer: The section of the config.
        lengths: `[num_examples, 2]` source and target tokens.
        folder: The run's; rank 0 writes the number into its manifest, and takes it from there the next time.
        cache: Where what was found out is kept for other runs.

    Returns:
        Tokens of a micro-batch with padding: what the run has used before, else the least of what the ranks found.
    """
    device, recorded = module.device.type, folder.manifest().get("max_micro_tokens", {})
    found = distributed.gather_ordered([(distributed.rank(), recorded.get(device))])[0]
    if found is None:
        longest = tuple(lengths.max(axis=0).tolist())
        mine = _measured(module, trainer, longest, cache)
        found = min(distributed.gather_ordered([(distributed.rank(), mine)]))
        if found < MOST_TOKENS[device]:
            console.say(f"data.max_micro_tokens=auto: {found:,} tokens are what fits into memory")
        if distributed.rank() == 0:
            folder.note(max_micro_tokens={**recorded, device: found})
    return int(found)


def _measured(module: Seq2SeqModule, trainer: TrainerConfig, longest: tuple[int, int], cache: Path) -> int:
    """Return this rank's own budget, from the cache where an earlier run has found it out."""
    device = module.device.type
    about = {
        "device": torch.cuda.get_device_name(module.device) if device == "cuda" else device,
        "longest": list(longest),
        "precision": trainer.precision.value,
        "gradient_checkpointing": trainer.gradient_checkpointing,
        "versions": [__version__, str(torch.__version__)],
    }
    file = cache / "budgets" / f"{json_sha256([about, _shape(module)])[:24]}.json"
    found = _kept(file)
    if found is None:
        distributed.moved("the search for data.max_micro_tokens")
        found = _bytes_a_token(module, longest) if device == "cpu" else _largest_that_fits(module, longest)
        with suppress(OSError):  # a cache that cannot be written costs time
            atomic.write_json(file, {"found": found, **about})
    if device == "cuda":
        return found
    free = memory.available_bytes()
    if not found or free is None:
        return MOST_TOKENS["cpu"]
    room = free * SHARE["cpu"] / trainer.devices - COPIES["cpu"] * _bytes(module)
    return int(min(max(room // found, 1), MOST_TOKENS["cpu"]))


def _shape(module: Seq2SeqModule) -> list[object]:
    parts = [[name, list(p.shape), p.requires_grad] for name, p in module.model.named_parameters()]
    return [parts, [getattr(part, "p", None) for part in module.model.modules()]]


def _kept(file: Path) -> int | None:
    """Read what was found out before; None where nothing was, or not whole."""
    try:
        found = parse_object(file.read_text(encoding="utf-8"), str(file))["found"]
    except (OSError, DataError, KeyError):
        return None
    return found if isinstance(found, int) else None


def _bytes(module: Seq2SeqModule) -> int:
    return sum(p.numel() * p.element_size() for p in module.model.parameters() if p.requires_grad)


def _try(module: Seq2SeqModule, lengths: tuple[int, int], tokens: int) -> int:
    """Run so many tokens of examples of these lengths forward and backward; return how many they really were."""
    rows = max(tokens // sum(lengths), 1)
    source, target = lengths
    micro = collate([[ID] * source] * rows, [[ID] * target] * rows, ID, (ID, ID)).to(module.device)
    module.model.train()
    module.add_gradient(micro, 0.0, 0, last=False)
    return micro.num_tokens


def _forget(module: Seq2SeqModule) -> None:
    for p in module.model.parameters():
        p.grad = None
    memory.release()


def _bytes_a_token(module: Seq2SeqModule, longest: tuple[int, int]) -> int:
    """Measure one pass on a CPU; 0 where the system does not show it."""
    tokens: list[int] = []
    _try(module, longest, 1)  # gradients and the libraries' own buffers are there now
    used = memory.peak_of(lambda: tokens.append(_try(module, longest, 2 * FIRST_TOKENS)))
    _forget(module)
    return 0 if used is None else -(-used // tokens[0])


def _largest_that_fits(module: Seq2SeqModule, longest: tuple[int, int]) -> int:
    """Try growing passes on a GPU, beside as much as an optimizer will hold, until they take too much memory."""
    device = module.device
    held = torch.cuda.memory_allocated(device)
    room = int((torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - held) * SHARE["cuda"])

    def fits(tokens: int) -> bool:
        try:
            states = torch.empty(COPIES["cuda"] * _bytes(module), dtype=torch.uint8, device=device)
            torch.cuda.reset_peak_memory_stats(device)
            for lengths in {longest, (min(longest), longest[1])}:  # logits weigh more where T is large
                _try(module, lengths, tokens)
            del states
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):
                raise
            return False
        finally:
            _forget(module)
        return torch.cuda.max_memory_allocated(device) - held <= room

    return largest(fits, MOST_TOKENS["cuda"])


def largest(fits: Callable[[int], bool], most: int) -> int:
    """Find about the largest size that fits: doubled until one does not, then halved back to an eighth.

    Args:
        fits: Tries a size.
        most: Larger ones are not tried.

    Returns:
        A size that fitted, or 1 where the first did not.
    """
    good, bad = 0, min(FIRST_TOKENS, most)
    while fits(bad):
        if bad == most:
            return most
        good, bad = bad, min(2 * bad, most)
    while good and bad - good > good // 8:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return max(good, 1)
