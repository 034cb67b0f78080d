"""How fast a run is, and where its time goes: the `time/…` columns of `metrics.jsonl`."""

import time
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EncoderDecoderModel

from encdec_train.batch import StepBatch
from encdec_train.config import Precision
from encdec_train.modeling import families, packed
from encdec_train.modeling.linear import product

WINDOW_STEPS = 100  # percentiles are over so many steps at most
_MATMUL_SIZE, _MATMUL_TRIES = 1024, 5
_FORWARD_AND_BACKWARD = 6  # FLOPs a parameter and token: 2 forward, 4 backward


class Telemetry:
    """The clock of one rank's steps; one device's own share, so no rank waits for another.

    Args:
        model: What is trained.
        precision: What is computed in.
        num_ranks: Tokens are counted on all ranks, work on this one.
    """

    def __init__(self, model: EncoderDecoderModel, precision: Precision, num_ranks: int) -> None:
        self._model, self._num_ranks = model, num_ranks
        self._flops = flops_a_token(model)
        self._rate = matmul_rate(next(model.parameters()).device, precision)
        self._steps: deque[float] = deque(maxlen=WINDOW_STEPS)
        self.restart()

    def restart(self) -> None:
        """Begin anew, after something that is no training step; percentiles go on."""
        self._began = self._step_ended = time.monotonic()
        self._waited = self._work = 0.0
        self._tokens = self._real = self._computed = 0

    def batch_arrived(self) -> None:
        """Take the time that the loader took."""
        self._waited += time.monotonic() - self._step_ended

    def step_ended(self, batch: StepBatch) -> None:
        """Take a finished step. Nothing here waits for a device: on one the time is that of launching."""
        now = time.monotonic()
        self._steps.append(now - self._step_ended)
        self._step_ended = now
        self._tokens += batch.num_source_tokens + batch.num_target_tokens
        self._work += self._flops[0] * batch.num_source_tokens + self._flops[1] * batch.num_target_tokens
        self._real += batch.num_own_tokens
        is_packed = packed.suits(self._model, batch.micro_batches[0])
        self._computed += batch.num_own_tokens if is_packed else batch.num_padded_tokens

    def columns(self) -> dict[str, float]:
        """Return what is logged: since the last `restart`, and percentiles over the last steps.

        Returns:
            `tokens_per_second` (real source + target tokens on all ranks), `data_wait` and `padding` (shares of the
            time and of this rank's computed tokens), `utilisation` (share of the measured matmul rate that the model's
            own FLOPs make, attention products left out), `step_seconds_p50`, `step_seconds_p95`.
        """
        seconds = max(time.monotonic() - self._began, 1e-9)
        half, most = np.percentile(self._steps, [50, 95]).tolist()
        return {
            "time/tokens_per_second": self._tokens / seconds,
            "time/data_wait": self._waited / seconds,
            "time/padding": 1 - self._real / max(self._computed, 1),
            "time/utilisation": self._work / self._num_ranks / seconds / self._rate,
            "time/step_seconds_p50": half,
            "time/step_seconds_p95": most,
        }


def flops_a_token(model: Any) -> tuple[float, float]:  # noqa: ANN401 - a pair, or a causal LM
    """Count FLOPs of forward and backward a source token and a target token, attention products left out.

    A parameter of a matrix is used once a token, but embeddings not at all, cross-attention's keys and values by source
    tokens, and the head by target tokens only.
    """
    (_, encoder), (_, decoder) = families.sides(model)
    head, matrices = decoder.get_output_embeddings(), _matrices(decoder)
    size = decoder.config.vocab_size * decoder.config.hidden_size if head is None else head.weight.numel()
    body = sum(matrices.values()) - (0 if head is None else matrices.get(id(head.weight), 0))
    if families.is_causal(model):
        source, target = body, body + size
    else:
        cross = 2 * decoder.config.num_hidden_layers * decoder.config.hidden_size**2
        source, target = sum(_matrices(encoder).values()) + cross, body - cross + size
    return float(_FORWARD_AND_BACKWARD * source), float(_FORWARD_AND_BACKWARD * target)


def _matrices(half: nn.Module) -> dict[int, int]:
    tables = {id(module.weight) for module in half.modules() if isinstance(module, nn.Embedding)}
    return {id(p): p.numel() for p in half.parameters() if p.dim() == 2 and id(p) not in tables}  # noqa: PLR2004


def matmul_rate(device: torch.device, precision: Precision) -> float:
    """Measure the FLOP/s of a large matmul: the limit that a step is compared with. About 0.05 s on a CPU core."""
    dtype = torch.bfloat16 if precision is Precision.bf16 else torch.float32
    a = torch.ones(_MATMUL_SIZE, _MATMUL_SIZE, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(_MATMUL_TRIES):
        start = time.perf_counter()
        float(product(a, a)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * _MATMUL_SIZE**3 / best
