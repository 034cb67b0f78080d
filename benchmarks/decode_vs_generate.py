"""Our search beside the library's `generate`: sentences a second, memory, and how many outputs are the same.

python benchmarks/decode_vs_generate.py MODEL FILE [--beams 4] [--examples 64] [--repeats 3] [--length N]

MODEL is an export or run folder; FILE is JSONL (also .gz) with a `source`. `generate` runs in data order, and by length
in each of several batch sizes, of which the fastest counts. All ways are run in turn, each in a forked process of its
own, on one thread; time is the processor's, so that others on the machine disturb little, and the ratios are those of
medians. Memory is what a process took in addition to the loaded model. Ours has freed memory kept, as `encdec evaluate`
has; `--more` shows `generate` with it too, and ours with torch's products and in bfloat16. `--length` forces outputs of
so many tokens, for a model that was never trained on such data: then all ways do equal work.
"""

import argparse
import gzip
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import EncoderDecoderModel
from transformers.utils import logging

from encdec_train.data.collate import pad_right
from encdec_train.decoding import linear
from encdec_train.decoding.search import Engine, SearchSettings
from encdec_train.decoding.settings import TokenRules
from encdec_train.modeling.export import load
from encdec_train.training.memory import keep_freed_memory

Sources = list[list[int]]
Outputs = dict[int, list[int]]
CLOSE = -1  # the key under which our search tells how many choices were close


def generated(
    model: EncoderDecoderModel, sources: Sources, order: list[int], batch: int, how: SearchSettings
) -> Outputs:
    """Decode with the library in batches of a fixed number of examples."""
    end, found = model.generation_config.eos_token_id, Outputs()
    config = how.generation_config(model)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        ids, mask = pad_right([sources[index] for index in chosen], 0)
        with torch.no_grad():
            rows = cast(Any, model).generate(input_ids=ids, attention_mask=mask.long(), generation_config=config)
        for index, row in zip(chosen, rows[:, 1:].tolist(), strict=True):
            found[index] = row[: row.index(end)] if end in row else row
    return found


def searched(model: EncoderDecoderModel, sources: Sources, how: SearchSettings, bf16: bool = False) -> Outputs:
    """Decode with our own search, as `encdec evaluate` does."""
    keep_freed_memory()
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        results = list(Engine(model).search(dict(enumerate(sources)), how))
    found = {one.index: one.hypotheses[0].tokens for one in results}
    return {**found, CLOSE: [sum(one.close for one in results)]}


def measured(run: Callable[[], Outputs]) -> tuple[float, float, Outputs]:
    """Run in a forked process; return its seconds, its additional memory in MiB, and what it found."""
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)

    def child() -> None:
        before = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
        started = time.process_time()
        found = run()
        seconds = time.process_time() - started
        sender.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before / 2**20, found))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    answer: tuple[float, float, Outputs] = receiver.recv()
    process.join()
    return answer


def with_memory_kept(run: Callable[[], Outputs]) -> Outputs:
    """Run with what ours has beside its search: the C library keeps what is freed."""
    keep_freed_memory()
    return run()


def without_onednn(run: Callable[[], Outputs]) -> Outputs:
    """Run with torch's own products."""
    linear.PACKED_TYPES.clear()
    return run()


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("file", type=Path)
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="examples of a batch of generate in data order")
    parser.add_argument("--sorted", type=int, nargs="*", default=[8, 16, 32, 64], help="examples of its sorted batches")
    parser.add_argument("--max-source", type=int, default=128)
    parser.add_argument("--max-new", type=int, default=128)
    parser.add_argument("--length", type=int)
    parser.add_argument("--budget", type=int, default=32768, help="tokens of a batch of our search")
    parser.add_argument("--more", action="store_true", help="also without oneDNN, and in bfloat16")
    return parser.parse_args()


def ways_of(
    asked: argparse.Namespace, model: EncoderDecoderModel, sources: Sources
) -> dict[str, Callable[[], Outputs]]:
    """Return every way to decode, by its name; the first is `generate` in data order."""
    how = SearchSettings(asked.beams, 1.0, asked.max_new, 0, asked.budget)
    if asked.length:
        rules = TokenRules(suppressed=(model.generation_config.eos_token_id,))
        how = replace(how, max_new_tokens=asked.length, rules=rules)
    order = list(range(len(sources)))
    by_length = sorted(order, key=lambda index: len(sources[index]))
    ways: dict[str, Callable[[], Outputs]] = {
        f"generate, data order, {asked.batch}": lambda: generated(model, sources, order, asked.batch, how)
    }
    for batch in asked.sorted:
        ways[f"generate, sorted, {batch}"] = lambda b=batch: generated(model, sources, by_length, b, how)
    if asked.more:
        kept = asked.sorted[0] if asked.sorted else asked.batch
        ways[f"generate, by length with memory kept, {kept}"] = lambda: with_memory_kept(
            lambda: generated(model, sources, by_length, kept, how)
        )
    ways["ours"] = lambda: searched(model, sources, how)
    if asked.more:
        ways["ours, torch's products"] = lambda: without_onednn(lambda: searched(model, sources, how))
        ways["ours, bf16"] = lambda: searched(model, sources, how, bf16=True)
    return ways


def main() -> None:
    """Print the table."""
    asked = options()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    model, (tokenizer, _) = load(asked.model)
    opened = gzip.open if asked.file.suffix == ".gz" else open
    with opened(asked.file, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["source"] for line, _ in zip(file, range(asked.examples), strict=False)]
    sources = [list(ids) for ids in tokenizer(texts, truncation=True, max_length=asked.max_source).input_ids]

    ways = ways_of(asked, model, sources)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory, outputs = dict[str, float](), dict[str, Outputs]()
    for repeat in range(asked.repeats):
        for name, run in ways.items():
            took, peak, outputs[name] = measured(run)
            seconds[name].append(took)
            memory[name] = max(memory.get(name, 0), peak)
            print(f"# {repeat + 1} {name}: {took:.2f} s", flush=True)

    medians = {name: statistics.median(several) for name, several in seconds.items()}
    first, count = next(iter(ways)), len(sources)
    best = min((medians[name], name) for name in ways if "sorted" in name)[1] if asked.sorted else first
    tokens = statistics.mean(len(outputs[first][index]) for index in range(count))
    print(f"\n{asked.model}, {asked.file}: {count} examples, {asked.beams} beams, {tokens:.1f} tokens an output\n")
    print("| way | sentences/s | against data order | against its best sorted | MiB | same outputs | close |")
    print("|---|---|---|---|---|---|---|")
    for name, found in outputs.items():
        same = sum(found[index] == outputs[first][index] for index in range(count))
        close = found.get(CLOSE, [""])[0]
        ratios = " | ".join(f"{medians[one] / medians[name]:.2f}" for one in (first, best))
        print(f"| {name} | {count / medians[name]:.2f} | {ratios} | {memory[name]:.0f} | {same} of {count} | {close} |")


if __name__ == "__main__":
    main()
