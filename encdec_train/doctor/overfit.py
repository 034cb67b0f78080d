"""The test that needs no name for a fault: a small part of the model has to learn a few examples by heart."""

import math
from collections.abc import Iterator

import torch
from transformers import EncoderDecoderModel

from encdec_train.batch import MicroBatch
from encdec_train.decoding.search import SearchSettings, decode
from encdec_train.doctor.patient import MAX_TOKENS, NUM_EXAMPLES, PAST, Finding, Patient, cropped
from encdec_train.modeling import families
from encdec_train.modeling.loss import loss_sum

MAX_STEPS, LOW_LOSS = (
    150,
    0.5,
)  # when it ends (the tested families need 27 to 59), and when it is first asked to generate
WARMUP_STEPS = 10
MAX_TRAINED = 5_000_000  # elements of a parameter; above are word embeddings


def overfit(patient: Patient) -> Finding:
    """A crop of the model learns a few examples by heart and the run's greedy search generates them back."""
    crop = cropped(patient.model)
    longest = min(
        max(map(len, patient.targets)) + PAST, families.max_positions(families.sides(crop)[1][1].config) or MAX_TOKENS
    )
    search = SearchSettings(1, 1.0, longest, 0, NUM_EXAMPLES * 2 * MAX_TOKENS)
    wanted = [[int(token) for token in row[:-1]] for row in patient.targets]
    for loss, steps in _learn(crop, patient.micro):  # noqa: B007 - both are told below
        outputs = decode(crop, patient.sources, search)
        exact = sum(out == row for out, row in zip(outputs, wanted, strict=True))
        if exact == len(wanted) or loss * len(patient.micro.labels_N) < math.log(2):
            break  # below log 2 every label has more than half of the probability: the search can but find it
    found = f"{exact} of {len(wanted)} examples generated back exactly after {steps} steps, loss {loss:.3f}"
    remedy = "Training and search do not agree, or the model cannot learn: compare data.collate with decoding.search"
    return Finding.of(exact < len(wanted), found, remedy)


def _learn(crop: EncoderDecoderModel, micro: MicroBatch) -> Iterator[tuple[float, int]]:
    """Train without dropout; yield the loss a token and the steps made where it is low, halved again, and in the end.

    Large word embeddings stay as they are: their gradient and update cost more than all else, and are not needed.
    """
    crop.eval()
    for p in crop.parameters():
        p.requires_grad_(p.numel() <= MAX_TRAINED)
    trained = [p for p in crop.parameters() if p.requires_grad]
    lr = 0.3 / families.sides(crop)[1][1].config.hidden_size  # 4e-4 at base size; not studied
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=WARMUP_STEPS)
    goal = LOW_LOSS
    for step in range(MAX_STEPS + 1):
        loss = loss_sum(crop, micro) / len(micro.labels_N)
        if loss.item() < goal or step == MAX_STEPS:
            yield loss.item(), step
            goal = loss.item() / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        warmup.step()
