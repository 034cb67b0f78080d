"""Faults planted one by one, each found by its own check; none on a model that is well."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from encdec_train.batch import MicroBatch
from encdec_train.compose import compose
from encdec_train.data.collate import collate
from encdec_train.doctor import examine
from encdec_train.doctor.checks import CHECKS
from encdec_train.doctor.patient import Patient, Status, admit
from encdec_train.modeling.families import base_model

Admit = Callable[..., Patient]


@pytest.fixture
def admitted(tiny_bert: Path, pairs_file: Path, tmp_path: Path, one_thread: None) -> Admit:
    """Admit the tiny BERT pair and 40 pairs: `admitted(*overrides)`."""
    given = ["task=files", f"task.train_file={pairs_file}", f"model.encoder={tiny_bert}", "trainer.accelerator=cpu",
             f"run.cache_dir={tmp_path}/c", "task.max_source_tokens=32", "task.max_target_tokens=32"]  # fmt: skip
    return lambda *overrides: admit(compose("train", [*given, *overrides]))


def failed(patient: Patient) -> list[str]:
    """Name the checks that fail, but for the overfit test."""
    return [
        name for name, check in CHECKS.items() if name != "overfit" and check(patient).status is Status.fail
    ]  # fmt: skip


def said(patient: Patient, name: str) -> str:
    return CHECKS[name](patient).found


# The ten faults.


def doubled_start(patient: Patient) -> None:
    start, codec = patient.codec.decoder_start_id, patient.codec
    patient.targets = [[start, *target] for target in patient.targets]
    patient.micro = collate(patient.sources, patient.targets, start, (codec.source_pad_id, codec.pad_id))


def start_is_pad_and_masked(patient: Patient) -> None:
    """As the library does when decoder masks are made from ids."""
    pad = patient.codec.pad_id
    patient.codec = replace(patient.codec, decoder_start_id=pad)
    patient.micro = collate(patient.sources, patient.targets, pad, (patient.codec.source_pad_id, pad))
    for config in (patient.model.config, patient.model.generation_config):
        config.decoder_start_token_id = pad
    arguments(patient.model.decoder, lambda given: {**given, "attention_mask": (given["input_ids"] != pad).long()})


def frozen_dropout(patient: Patient) -> None:
    patient.model.decoder.eval()


def dropped_mask(patient: Patient) -> None:
    arguments(patient.model.encoder, lambda given: {**given, "attention_mask": None})


def wrong_end(patient: Patient) -> None:
    for config in (patient.model.config, patient.model.generation_config):
        config.eos_token_id = 4


def other_vocabulary(patient: Patient) -> None:
    words = [f"word{number}" for number in range(50)]
    patient.codec.target_tokenizer.add_tokens(words)


def unconnected_cross_attention(patient: Patient) -> None:
    arguments(patient.model.decoder, lambda given: {**given, "encoder_hidden_states": None})


def unshifted_labels(patient: Patient) -> None:
    micro = patient.micro
    patient.micro = replace(micro, labels_N=micro.decoder_ids_BT[micro.target_mask_BT])


def missing_settings(patient: Patient) -> None:
    patient.model.generation_config.decoder_start_token_id = None


def unapplied_dtype(patient: Patient) -> None:
    patient.model.to(torch.bfloat16)


PLANTED = {
    doubled_start: ["decoder inputs"],
    start_is_pad_and_masked: ["start token"],
    frozen_dropout: ["dropout"],
    dropped_mask: ["encoder mask"],
    wrong_end: ["end token"],
    other_vocabulary: ["vocabulary"],
    unconnected_cross_attention: ["cross-attention", "gradients"],  # its own parameters learn nothing either
    unshifted_labels: ["labels"],
    missing_settings: ["generation settings"],
    unapplied_dtype: ["dtype"],
}


def arguments(half: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Let the half's Transformer be called with other arguments."""
    base_model(half).register_forward_pre_hook(lambda _, args, given: (args, change(given)), with_kwargs=True)


@pytest.mark.parametrize(("plant", "names"), PLANTED.items(), ids=lambda one: getattr(one, "__name__", None))
def test_a_planted_fault_is_found_by_its_own_check(
    plant: Callable[[Patient], None], names: Sequence[str], admitted: Admit
) -> None:
    patient = admitted()
    assert failed(patient) == []
    planted = admitted()
    plant(planted)
    assert failed(planted) == names
    assert CHECKS[names[0]](planted).remedy


# More faults, of the checks that none of the ten is for.


def an_encoder_that_is_no_longer_shared(patient: Patient) -> None:
    weight = patient.model.encoder.embeddings.word_embeddings.weight
    patient.model.encoder.embeddings.word_embeddings.weight = torch.nn.Parameter(weight.detach().clone())


def a_pooler(patient: Patient) -> None:
    patient.model.encoder.pooler = torch.nn.Linear(32, 32)


def no_gradient_to_a_number(patient: Patient) -> None:
    patient.model.decoder.cls.predictions.bias.register_hook(lambda grad: grad * float("nan"))


def eager_attention(patient: Patient) -> None:
    patient.model.decoder.set_attn_implementation("eager")


def eager_layers(patient: Patient) -> None:
    """Only what the encoder's layers read: the config of the half goes on saying SDPA."""
    patient.model.encoder.encoder.config._attn_implementation = "eager"


def sight_of_the_future(patient: Patient) -> None:
    patient.model.decoder.config.is_decoder = False
    base_model(patient.model.decoder).config.is_decoder = False
    for module in patient.model.decoder.modules():
        if hasattr(module, "is_causal") and not getattr(module, "is_cross_attention", False):
            module.is_causal = False
    arguments(patient.model.decoder, lambda given: {**given, "attention_mask": everything(given["input_ids"])})


def everything(ids_BT: torch.Tensor) -> torch.Tensor:
    rows, columns = ids_BT.shape
    return torch.zeros(rows, 1, columns, columns)


def a_rate_that_was_not_applied(patient: Patient) -> None:
    patient.config.model.dropout = 0.3


def too_long(patient: Patient) -> None:
    patient.config.task.max_source_tokens = 65


def a_mask_that_is_too_short(patient: Patient) -> None:
    mask_BS = patient.micro.source_mask_BS.clone()
    mask_BS[0, 0] = False
    patient.micro = replace(patient.micro, source_mask_BS=mask_BS)


MORE = {
    an_encoder_that_is_no_longer_shared: ["sharing"],
    a_pooler: ["gradients"],
    no_gradient_to_a_number: ["gradients"],
    eager_attention: ["attention"],
    eager_layers: ["encoder mask", "attention"],  # the mask is made for SDPA: added as a number it hides nothing
    sight_of_the_future: ["target padding", "causality"],
    a_rate_that_was_not_applied: ["dropout"],
    too_long: ["positions"],
    a_mask_that_is_too_short: ["encoder mask"],
}


@pytest.mark.parametrize(("plant", "names"), MORE.items(), ids=lambda one: getattr(one, "__name__", None))
def test_more_faults(plant: Callable[[Patient], None], names: Sequence[str], admitted: Admit) -> None:
    patient = admitted()
    plant(patient)
    assert failed(patient) == names


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model=bertshare", "trainer.precision=bf16"],
        ["model=rnd2rnd", "model.share=none", "model.dropout=0", "model.attention_dropout=0"],
        ["optim.freeze=[encoder.*]", "task.max_target_tokens=6"],
    ],
    ids=["plain", "shared", "random", "frozen"],
)
def test_a_model_that_is_well(overrides: list[str], admitted: Admit) -> None:
    patient = admitted(*overrides)
    before = {name: value.clone() for name, value in patient.model.state_dict().items()}
    findings = examine(patient)
    assert list(findings) == list(CHECKS)
    assert {name: one for name, one in findings.items() if one.status in {Status.fail, Status.not_run}} == {}
    assert findings["overfit"].found.startswith("16 of 16 examples generated back exactly after ")
    assert all(torch.equal(before[name], value) for name, value in patient.model.state_dict().items())
    assert all(module.training for module in patient.model.modules())


def test_what_the_overfit_test_alone_finds(admitted: Admit) -> None:
    """A search that reads a start token the model was not trained with; everything a check compares is equal."""
    patient = admitted()
    patient.micro = replace(patient.micro, source_ids_BS=patient.micro.source_ids_BS.roll(1, 0))
    assert CHECKS["overfit"](patient).status is Status.fail


def test_the_overfit_test_waits_for_the_others(admitted: Admit) -> None:
    patient = admitted()
    other_vocabulary(patient)
    findings = examine(patient)
    after = list(CHECKS)[list(CHECKS).index("vocabulary") + 1 :]
    assert [name for name, one in findings.items() if one.status is Status.not_run] == after
    assert findings["overfit"].found == "first: vocabulary"


def test_what_is_read_back(admitted: Admit) -> None:
    patient = admitted("model.attention_dropout=0", "model.dropout=0")
    assert patient.step.kernels == {"_scaled_dot_product_flash_attention_for_cpu": 6}  # 2 layers: 1 + 2 attentions
    assert admitted().step.kernels == {"math": 6}  # no fused kernel of the CPU has dropout
    assert admitted("trainer.precision=bf16").step.computed == {torch.bfloat16}
    ids = {"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    shown = ", ".join(f"{name} {one} and {one}" for name, one in ids.items())
    assert said(patient, "generation settings") == f"config and generation_config: {shown}; at most 32 new tokens"


def test_warnings_fail_nothing(admitted: Admit) -> None:
    patient = admitted("task.max_source_tokens=6", "task.max_target_tokens=5")
    assert CHECKS["truncation"](patient).status is Status.warning
    assert said(patient, "truncation") == "26 sources and 26 targets of 40 pairs are cut"
    patient.texts = ["The cat", "the dog"]
    assert CHECKS["round trip"](patient).status is Status.warning
    assert said(patient, "round trip") == "1 of 14 characters are lost, such as T"


def test_examples_are_the_shortest_and_no_source_comes_twice(admitted: Admit) -> None:
    patient = admitted()
    assert isinstance(patient.micro, MicroBatch)
    assert len({tuple(source) for source in patient.sources}) == 16
    lengths = [len(source) + len(target) for source, target in zip(patient.sources, patient.targets, strict=True)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 3 + 2 + 3 + 1
