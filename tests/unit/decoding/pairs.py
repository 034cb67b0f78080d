"""Random tiny pairs of every family that our own search knows, and the library's `generate` as the oracle."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForCausalLM,
    RobertaModel,
)

from encdec_train.decoding.search import SearchSettings

START, END, PAD = 2, 3, 0
SEEDS = {"bert2bert": 6, "bertshare": 3, "roberta2roberta": 3, "bert2gpt": 1}  # whose texts have many lengths
FAMILIES = tuple(SEEDS)


def tiny_pair(family: str, seed: int, vocab: int = 23, hidden: int = 16, positions: int = 40) -> Any:
    """Build a pair whose outputs differ in text and length; weights are larger than at the start of training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = {"vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "intermediate_size": 24, "max_position_embeddings": positions}  # fmt: skip
        deeper = {"is_decoder": True, "add_cross_attention": True}
        if family == "roberta2roberta":
            encoder: Any = RobertaModel(RobertaConfig(**shape, pad_token_id=1), add_pooling_layer=False)
            decoder: Any = RobertaForCausalLM(RobertaConfig(**shape, pad_token_id=1, **deeper))
        elif family == "bert2gpt":  # two vocabularies and widths: the library puts a projection between them
            encoder = BertModel(BertConfig(**{**shape, "vocab_size": 31}), add_pooling_layer=False)
            decoder = GPT2LMHeadModel(
                GPT2Config(vocab_size=vocab, n_embd=hidden + 8, n_layer=2, n_head=2, n_positions=positions,
                           add_cross_attention=True, scale_attn_by_inverse_layer_idx=seed % 2 == 1)
            )  # fmt: skip
        else:
            encoder = BertModel(BertConfig(**shape), add_pooling_layer=False)
            decoder = BertLMHeadModel(BertConfig(**shape, **deeper))
        model: Any = EncoderDecoderModel(encoder=encoder, decoder=decoder)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.ndim == 2:
                    p.normal_(0, 1.0 if "position" in name or "wpe" in name else 0.7 if "cross" in name else 0.3)
                elif name.endswith("bias"):
                    p.normal_(0, 0.2)
        head = decoder.get_output_embeddings()
        head.weight = torch.nn.Parameter(torch.randn(head.weight.shape) * 0.5)  # tied, it would repeat what it reads
        head.weight.data[END] += 0.25 * head.weight.data.sum(0)  # texts of many lengths
    if family == "bertshare":
        for name, p in model.encoder.encoder.named_parameters():
            owner, _, leaf = name.rpartition(".")
            setattr(model.decoder.bert.encoder.get_submodule(owner), leaf, p)
    start, end = (END, END) if family == "bert2gpt" else (START, END)  # GPT-2's start is its end (known_defects D10)
    model.generation_config.decoder_start_token_id = model.generation_config.bos_token_id = start
    model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = end if family == "bert2gpt" else PAD
    return model.eval()


def tiny_sources(num: int, seed: int, vocab: int = 23, longest: int = 14) -> list[list[int]]:
    """Draw sources of many lengths, without special tokens inside."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest - 1, (num,), generator=generator).tolist()
    return [[START, *torch.randint(5, vocab, (n,), generator=generator).tolist(), END] for n in lengths]


def generated(
    model: Any, source: Sequence[int], settings: SearchSettings, **more: Any
) -> list[tuple[list[int], float | None]]:
    """Ask the library about one source alone: the returned sequences, the best first, without start and end."""
    said: Mapping[str, Any] = {
        "num_beams": settings.num_beams,
        "length_penalty": settings.length_penalty if settings.num_beams > 1 else 1.0,
        "max_new_tokens": settings.max_new_tokens,
        "min_new_tokens": settings.min_new_tokens or None,
        "no_repeat_ngram_size": settings.no_repeat_ngram,
        "repetition_penalty": settings.repetition_penalty,
        "num_return_sequences": settings.num_return_sequences,
        "forced_bos_token_id": settings.rules.forced_bos,
        "forced_eos_token_id": settings.rules.forced_eos,
        "suppress_tokens": list(settings.rules.suppressed) or None,
        "begin_suppress_tokens": list(settings.rules.begin_suppressed) or None,
        "do_sample": False,
        "early_stopping": False,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    prompt = [model.generation_config.decoder_start_token_id, *settings.prefix_ids]
    with torch.no_grad():
        found = model.generate(torch.tensor([source]), decoder_input_ids=torch.tensor([prompt]), **{**said, **more})
    scores = found.sequences_scores.tolist() if settings.num_beams > 1 else [None]
    end = model.generation_config.eos_token_id
    texts = []
    for row in found.sequences.tolist():
        new = row[len(prompt) :]
        texts.append(row[1 : len(prompt)] + (new[: new.index(end)] if end in new else new))
    return list(zip(texts, scores, strict=True))
