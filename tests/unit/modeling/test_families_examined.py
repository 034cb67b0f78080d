"""Every family passes the checks of the doctor: none of them is about BERT."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from encdec_train.compose import compose
from encdec_train.doctor import examine
from encdec_train.doctor.patient import Status, admit

FAMILIES = ["roberta", "xlm-roberta", "electra", "bert-generation", "gpt2", "xglm"]
PAIRS = [*((family, family) for family in FAMILIES), ("bert", "gpt2"), ("roberta", "gpt2"), ("gpt2", "bert")]


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_a_family_is_well(
    encoder: str, decoder: str, zoo: Callable[..., Path], tmp_path: Path, one_thread: None
) -> None:
    words = "the a cat dog bird sat ran flew on under mat tree house and old".split()  # noqa: SIM905
    texts = [" ".join(words[(number + 4 * place) % 15] for place in range(3 + number % 4)) for number in range(30)]
    pairs = tmp_path / "train.jsonl"
    pairs.write_text(
        "".join(json.dumps({"source": text, "target": " ".join(text.split()[::-1])}) + "\n" for text in texts)
    )
    overrides = ["task=files", f"task.train_file={pairs}", f"model.encoder={zoo(encoder)}",
                 f"model.decoder={zoo(decoder)}", "model.share=none",
                 f"run.cache_dir={tmp_path}/c", "trainer.accelerator=cpu",
                 "task.max_source_tokens=20", "task.max_target_tokens=20"]  # fmt: skip
    findings = examine(admit(compose("train", overrides)))
    bad = {name: one for name, one in findings.items() if one.status in {Status.fail, Status.not_run}}
    assert bad == {}
