"""The checks: each for a fault that trains without a complaint."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from encdec_train.batch import MicroBatch
from encdec_train.config import Group, Precision, shared_groups, spelled
from encdec_train.data.audit import audit
from encdec_train.doctor.overfit import overfit
from encdec_train.doctor.patient import Finding, Patient, Status
from encdec_train.modeling import families
from encdec_train.report.audit import warning_lines

MANY_CUT, MANY_UNUSED = 0.10, 0.05  # shares from which on there is a warning; not studied
SETTINGS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")


def decoder_inputs(patient: Patient) -> Finding:
    """Decoder inputs begin with the start token, once (known_defects D13)."""
    ids_BT, start = patient.micro.decoder_ids_BT, patient.codec.decoder_start_id
    missing = int((ids_BT[:, 0] != start).sum())
    doubled = int(((ids_BT[:, 1:2] == start) & patient.micro.target_mask_BT[:, 1:2]).sum())
    found = f"start token {start}: missing in {missing}, doubled in {doubled} of {len(ids_BT)} examples"
    return Finding.of(missing or doubled, found, "Tokenise targets without special tokens and put one start in front")


def labels(patient: Patient) -> Finding:
    """Labels are the decoder inputs, one position on, and the end token."""
    micro, eos = patient.micro, patient.codec.eos_id
    lengths: list[int] = micro.target_mask_BT.sum(1).tolist()
    rows = zip(micro.labels_N.split(lengths), micro.decoder_ids_BT, lengths, strict=True)
    wrong = sum(found.tolist() != [*ids[1:length].tolist(), eos] for found, ids, length in rows)
    found = f"{wrong} of {len(lengths)} are not the decoder inputs shifted by one and ended by {eos}"
    return Finding.of(wrong, found, "Make labels tokens + eos and decoder inputs start + tokens")


def end_token(patient: Patient) -> Finding:
    """Targets end in the token that ends the search, and the head can emit it."""
    tokenizer, rows = patient.codec.target_tokenizer, patient.halves[1][1].get_output_embeddings().weight.shape[0]
    own = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    ends, stops = {int(row[-1]) for row in patient.targets}, patient.model.generation_config.eos_token_id
    agreed = ends == {own} == {patient.codec.eos_id} and stops in {own, None} and 0 <= own < rows
    found = (
        f"targets end in {sorted(ends)}, the search at {stops}; the tokenizer's is {own}, the head has {rows:,} rows"
    )
    return Finding.of(not agreed, found, "Use the decoder tokenizer's [SEP] or eos in data and generation settings")


def generation_settings(patient: Patient) -> Finding:
    """Start, end and pad are in both configs, and the longest output is explicit (known_defects D3, D15, D20)."""
    model, search = patient.model, patient.search.generation_config(patient.model)
    alone, theirs = families.is_causal(model), model.generation_config
    own: Any = theirs if alone else model.config
    names = SETTINGS[1:] if alone else SETTINGS  # the start is the end of the source
    said = {name: (getattr(own, name, None), getattr(theirs, name, None)) for name in names}
    wrong = [name for name, values in said.items() if values[0] is None or values[0] != values[1]]
    codec = {SETTINGS[0]: patient.codec.decoder_start_id, SETTINGS[2]: patient.codec.pad_id}
    wrong += [name for name, value in codec.items() if name in {*said} - {*wrong} and said[name][1] != value]
    longest = search.max_new_tokens
    shown = ", ".join(f"{name} {values[0]} and {values[1]}" for name, values in said.items())
    found = f"config and generation_config: {shown}; at most {longest} new tokens"
    return Finding.of(wrong or not longest, found, "Write the same ids to model.config and model.generation_config")


def truncation(patient: Patient) -> Finding:
    """Few pairs are cut at the task's limits."""
    *cut, pairs = patient.cut
    found = f"{cut[0]} sources and {cut[1]} targets of {pairs:,} pairs are cut"
    remedy = "Raise task.max_source_tokens or task.max_target_tokens, or split the texts"
    return Finding.of(max(cut) > MANY_CUT * pairs, found, remedy, Status.warning)


def round_trip(patient: Patient) -> Finding:
    """Tokenising a target and back loses few characters."""
    codec, lost = patient.codec, Counter[str]()
    for text, ids in zip(patient.texts, codec.encode_targets(patient.texts), strict=True):
        lost += Counter("".join(text.split())) - Counter("".join(codec.decode(ids).split()))
    few = " ".join(character for character, _ in lost.most_common(8))
    found = f"{lost.total()} of {sum(map(len, patient.texts)):,} characters are lost" + (
        f", such as {few}" if few else ""
    )
    remedy = "No output can hold them: choose another decoder, or score uncased"
    return Finding.of(lost, found, remedy, Status.warning)


def data(patient: Patient) -> Finding:
    """The audit of the pairs that were read has nothing to say; the run's own is of all pairs and splits."""
    said = warning_lines(audit({"train": patient.split}, patient.codec)) if patient.split is not None else []
    found = "; ".join(said) or f"nothing stands out in {patient.cut[2]:,} pairs"
    return Finding.of(said, found, "Look at these pairs: the shares are of all that were read", Status.warning)


def positions(patient: Patient) -> Finding:
    """The task's limits lie within the position embeddings (known_defects D14)."""
    limits = zip(patient.halves, patient.config.task.limits, strict=True)
    reach = [(name, limit, families.max_positions(half.config)) for (name, half), limit in limits]
    found = ", ".join(f"{name}: {limit} tokens of {most or 'any number'}" for name, limit, most in reach)
    remedy = "Lower task.max_source_tokens or task.max_target_tokens"
    return Finding.of(any(most is not None and limit > most for _, limit, most in reach), found, remedy)


def vocabulary(patient: Patient) -> Finding:
    """Every id of a tokenizer has a row in its half's embeddings, and few rows have no token."""
    said, worst = [], Status.ok
    tokenizers = (patient.codec.source_tokenizer, patient.codec.target_tokenizer)
    batch = (patient.micro.source_ids_BS, patient.micro.decoder_ids_BT)
    for (name, half), tokenizer, ids in zip(patient.halves, tokenizers, batch, strict=True):
        rows, highest = half.get_input_embeddings().weight.shape[0], max(tokenizer.get_vocab().values())
        said.append(f"{name}: ids to {highest:,}, {rows:,} rows")
        if max(highest, int(ids.max())) >= rows:
            worst = Status.fail
        elif rows - highest > 1 + MANY_UNUSED * rows and worst is Status.ok:
            worst = Status.warning
    return Finding.of(worst is not Status.ok, "; ".join(said), "Use the tokenizer the checkpoint was made with", worst)


def start_token(patient: Patient) -> Finding:
    """No padding mask hides the start token, also where it is the pad token (known_defects D10)."""
    short = patient.micro.target_mask_BT.sum(1).tolist() != [len(target) for target in patient.targets]
    later = _labelled(patient.few, slice(1, None))

    def turn(_: nn.Module, __: object, embedded_BTH: torch.Tensor) -> torch.Tensor:
        return torch.cat([-embedded_BTH[:, :1], embedded_BTH[:, 1:]], dim=1)

    before = patient.loss(**later)
    hook = patient.exact.decoder.get_input_embeddings().register_forward_hook(turn)
    seen = not _same(before, patient.loss(**later))
    hook.remove()
    same = patient.codec.decoder_start_id == patient.codec.pad_id
    found = f"later positions {'see' if seen else 'do not see'} it; it is {'' if same else 'not '}the pad token"
    found += "; a mask is shorter than its target" if short else ""
    return Finding.of(short or not seen, found, "Make masks from lengths, never from ids")


def target_padding(patient: Patient) -> Finding:
    """What stands in the padding of decoder inputs does not matter."""
    ids_BT = patient.few.decoder_ids_BT
    others = torch.where(patient.few.target_mask_BT, ids_BT, _others(ids_BT, patient.halves[1][1]))
    losses = patient.loss(), patient.loss(decoder_ids_BT=others)
    return Finding.of(not _same(*losses), _two(losses, "other ids in the padding"), "Pad on the right, in causal order")


def encoder_mask(patient: Patient) -> Finding:
    """Neither encoder nor cross-attention reads the padding of sources (known_defects D17)."""
    ids_BS = patient.few.source_ids_BS
    others = torch.where(patient.few.source_mask_BS, ids_BS, _others(ids_BS, patient.halves[0][1]))
    losses = patient.loss(), patient.loss(source_ids_BS=others)
    long = patient.micro.source_mask_BS.sum(1).tolist() != [len(source) for source in patient.sources]
    found = _two(losses, "other ids in the padding") + ("; a mask is not as long as its source" if long else "")
    return Finding.of(long or not _same(*losses), found, "Give encoder and cross-attention the mask of the lengths")


def causality(patient: Patient) -> Finding:
    """A position does not see those after it."""
    ids_BT, first = patient.few.decoder_ids_BT, _labelled(patient.few, slice(2))
    later = torch.cat([ids_BT[:, :2], _others(ids_BT[:, 2:], patient.halves[1][1])], dim=1)
    losses = patient.loss(**first), patient.loss(**{**first, "decoder_ids_BT": later})
    return Finding.of(not _same(*losses), _two(losses, "other ids later on"), "Set is_decoder on the decoder's config")


def cross_attention(patient: Patient) -> Finding:
    """The source matters, and the encoder learns from the loss."""
    others = _others(patient.few.source_ids_BS, patient.halves[0][1])
    losses = patient.loss(), patient.loss(source_ids_BS=others)
    norms = [norm for name, norm in patient.step.gradients.items() if name.startswith("encoder.")]
    norm = math.hypot(*(one or 0.0 for one in norms))
    found = f"{_two(losses, 'another source')}; gradient norm of the encoder {norm:.3g}"
    remedy = "Set add_cross_attention on the decoder's config and pass it the encoder's output"
    return Finding.of(_same(*losses) or (norms and not norm), found, remedy)


def dropout(patient: Patient) -> Finding:
    """Dropout is on while training, at the configured rates (known_defects D7)."""
    step, said = patient.step, patient.config.model
    kinds = ((families.DROPOUT, said.dropout), (families.ATTENTION_DROPOUT, said.attention_dropout))
    rates = {rate for _, half in patient.halves for names, own in kinds for rate in _rates(half.config, names, own)}
    rates_read = {module.p for module in patient.model.modules() if isinstance(module, nn.Dropout)}
    differ = step.losses[0] != step.losses[1]
    found = f"rates {sorted(rates_read)}, {len(step.asleep)} modules in eval mode, "
    found += f"two training forwards {'differ' if differ else 'are equal'}"
    unapplied = any(
        own not in {None, *_rates(half.config, names, None)} for _, half in patient.halves for names, own in kinds
    )
    wrong = step.asleep or unapplied or rates_read - rates or differ is not any(rates)
    return Finding.of(wrong, found, f"Call model.train() before training; the rates should be {sorted(rates)}")


def dtype(patient: Patient) -> Finding:
    """Weights are float32, and what is computed has the run's precision (known_defects D9)."""
    weights, precision = {p.dtype for p in patient.model.parameters()}, patient.config.trainer.precision
    wanted = torch.bfloat16 if precision is Precision.bf16 else torch.float32
    shown = [
        ", ".join(sorted(str(one).removeprefix("torch.") for one in some)) for some in (weights, patient.step.computed)
    ]
    found = f"weights {shown[0]}; computed {shown[1]} with trainer.precision={precision.value}"
    wrong = weights != {torch.float32} or patient.step.computed != {wanted}
    return Finding.of(wrong, found, "Load both halves with dtype=torch.float32; trainer.precision decides the rest")


def attention(patient: Patient) -> Finding:
    """Both halves compute attention as asked, by a kernel that is named (known_defects D9, D17)."""
    names = {name: (families.attention_of(half), half._supports_sdpa) for name, half in patient.halves}
    kernels = patient.step.kernels
    wrong = any(got != {"sdpa" if able else "eager"} for got, able in names.values())
    wrong = wrong or (not kernels and all(able for _, able in names.values()))
    found = ", ".join(f"{name} {' and '.join(sorted(got))}" for name, (got, _) in names.items()) + "; ran: "
    found += ", ".join(f"{count}x {kernel}" for kernel, count in kernels.items()) or "no kernel of its own"
    return Finding.of(wrong, found, "Set attn_implementation on each half, not on the pair")


def gradients(patient: Patient) -> Finding:
    """Every trainable parameter takes part in the loss, and its gradient is finite (known_defects D8)."""
    norms = patient.step.gradients
    unused = [name for name, norm in norms.items() if norm is None]
    broken = [name for name, norm in norms.items() if norm is not None and not math.isfinite(norm)]
    found = (
        f"{len(norms)} trainable tensors: {len(unused)} without a gradient, {len(broken)} with one that is not finite"
    )
    found += f", such as {(unused + broken)[0]}" if unused or broken else ""
    return Finding.of(unused or broken or not norms, found, "Build the encoder without pooler; freeze what is not used")


def sharing(patient: Patient) -> Finding:
    """The halves have those parameters in common that `model.share` names (known_defects D1)."""
    share = patient.config.model.share
    groups, (encoder, decoder) = shared_groups(share), (half for _, half in patient.halves)
    mine, theirs = ({p.data_ptr() for p in half.parameters()} for half in (encoder, decoder))
    named = families.base_model(decoder).named_parameters()
    wanted = {p.data_ptr() for name, p in named if families.group_of(name) in groups}
    if Group.word_embeddings in groups:
        wanted.add(decoder.get_input_embeddings().weight.data_ptr())
    found = f"{len(mine & theirs)} tensors in common, {len(wanted)} with model.share={spelled(share)}"
    return Finding.of(
        mine & theirs != wanted, found, "Give both halves one parameter; the library's own tie does nothing"
    )


def _others(ids: torch.Tensor, half: Any) -> torch.Tensor:  # noqa: ANN401 - a half of the pair
    """Return another id of the vocabulary at every position."""
    return (ids + 1).remainder(int(half.get_input_embeddings().weight.shape[0]))


def _labelled(micro: MicroBatch, where: slice) -> dict[str, torch.Tensor]:
    """Keep the labels of some positions only."""
    kept_BT = torch.zeros_like(micro.target_mask_BT)
    kept_BT[:, where] = micro.target_mask_BT[:, where]
    return {"target_mask_BT": kept_BT, "labels_N": micro.labels_N[kept_BT[micro.target_mask_BT]]}


def _same(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=1e-12)


def _two(losses: tuple[float, float], what: str) -> str:
    return f"loss {losses[0]:.12g}, with {what} {losses[1]:.12g}"


def _rates(config: PretrainedConfig, names: tuple[str, ...], own: float | None) -> set[float]:
    """Return the dropout rates that a half should have under some names: the run's own, else the checkpoint's."""
    return {float(getattr(config, name)) if own is None else own for name in names if hasattr(config, name)}


CHECKS: dict[str, Callable[[Patient], Finding]] = {
    "decoder inputs": decoder_inputs,
    "labels": labels,
    "end token": end_token,
    "generation settings": generation_settings,
    "truncation": truncation,
    "round trip": round_trip,
    "data": data,
    "positions": positions,
    "vocabulary": vocabulary,
    "start token": start_token,
    "target padding": target_padding,
    "encoder mask": encoder_mask,
    "causality": causality,
    "cross-attention": cross_attention,
    "dropout": dropout,
    "dtype": dtype,
    "attention": attention,
    "gradients": gradients,
    "sharing": sharing,
    "overfit": overfit,
}
