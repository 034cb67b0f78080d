"""The decoder-only model (Rothe et al. 2020, `gpt`): one causal LM reads the source as a prefix and writes the target.

A sequence is `source + eos + target + eos`. GPT-2 has no other special token than `<|endoftext|>`, behind which it has
always seen a new text begin, so nothing is added to the vocabulary and no parameter is fresh (docs/adr/0008). The first
eos belongs to the source: the tokenizer itself writes it, so limits count it, truncation keeps it, and an export's
tokenizer makes prompts. The loss is on the target and its eos; their first one is predicted at the source's eos.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from encdec_train.batch import MicroBatch
from encdec_train.config import Init
from encdec_train.errors import ConfigError, ModelError, fault
from encdec_train.modeling.checkpoints import Source, find, quiet_library, special_ids
from encdec_train.modeling.families import base_model, max_positions
from encdec_train.modeling.warm_start import Changes, WarmStart, account, load_half


def find_alone(name: str, revision: str | None) -> Source:
    """Find the checkpoint of a causal LM, a folder or a Hub id, with a tokenizer that ends sources.

    Raises:
        ModelError: When it cannot be used.
    """
    source = find("model.decoder", name, revision, alone=True)
    tokenizer, eos = source.tokenizer, source.tokenizer.eos_token
    if eos is None:
        raise ModelError(fault(source.key, "a tokenizer with an end token (eos)", source.name))
    if not ends_sources(tokenizer):
        backend = cast(Any, tokenizer).backend_tokenizer
        ended = processors.TemplateProcessing(
            single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, tokenizer.eos_token_id)]
        )
        own = backend.post_processor
        backend.post_processor = ended if own is None else processors.Sequence([own, ended])
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # what is generated follows the prompt
    return source


def ends_sources(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer writes eos behind a text."""
    return cast(list[int], tokenizer("a").input_ids)[-1:] == [tokenizer.eos_token_id]


def build(source: Source, init: Init, *, seed: int, changes: Changes) -> WarmStart:
    """Build the model and account for every parameter, as `warm_start.build` does for a pair.

    Raises:
        ConfigError: When a layer is asked for that the checkpoint does not have.
        ModelError: When weights cannot be loaded.
    """
    with torch.random.fork_rng(devices=[]), quiet_library():
        torch.manual_seed(seed)
        loaded, warm = load_half("decoder", source, init in {Init.both, Init.decoder}, changes)
    model, ids = cast(Any, loaded), special_ids(source)
    model.config.eos_token_id = model.generation_config.eos_token_id = ids.eos
    model.generation_config.pad_token_id = ids.pad
    model.config.pad_token_id = None  # else the library looks for padding in every forward, and warns of it
    model.train()  # from_pretrained leaves eval mode (known_defects D7)
    named = list(model.named_parameters())
    decoder = account("decoder", source, model, (warm, set()), {})
    return WarmStart(
        model, [decoder], 0, sum(p.numel() for _, p in named), [name for name, p in named if id(p) in warm]
    )


def label_states(model: Any, micro: MicroBatch) -> torch.Tensor:  # noqa: ANN401 - any causal LM
    """Join each source to its target, run the model, and return the states `[N, H]` that predict the labels.

    A row is as wide as the longest source and the longest target: what the plan counts. All padding is on the right,
    where causal order hides it, so positions count from 0 and there is no mask (known_defects D10).
    """
    (S, T), rows = (micro.source_ids_BS.shape[1], micro.decoder_ids_BT.shape[1]), micro.source_mask_BS
    at_BL = torch.arange(S + T - 1, device=rows.device) - rows.sum(1, keepdim=True) + 1  # 0: the source's eos
    inside_BL, clamped_BL = (at_BL >= 0) & (at_BL < T), at_BL.clamp(0, T - 1)
    padded_BL = torch.nn.functional.pad(micro.source_ids_BS, (0, T - 1))
    ids_BL = torch.where(at_BL < 1, padded_BL, micro.decoder_ids_BT.gather(1, clamped_BL))
    hidden_BLH = base_model(model)(input_ids=ids_BL, use_cache=False).last_hidden_state
    return cast(torch.Tensor, hidden_BLH[inside_BL & micro.target_mask_BT.gather(1, clamped_BL)])


def check_room(model: Any, longest: int, max_new_tokens: int) -> None:  # noqa: ANN401
    """Raise a ConfigError where a prefix and an output together pass the model's positions (known_defects D14)."""
    room = max_positions(model.config)
    if room is not None and longest + max_new_tokens > room:
        reason = f"the longest source has {longest} tokens, and both are one sequence of at most {room}"
        remedy = "Lower it or task.max_source_tokens"
        raise ConfigError(fault("decoding.max_new_tokens", f"at most {room - longest}", max_new_tokens, reason, remedy))


def prompts(sources: Sequence[Any], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad sources on the left, `[B, S]`, with a mask: the library's `generate` goes on at the right."""
    longest = max(map(len, sources))
    ids_BS = torch.full((len(sources), longest), pad_id)
    mask_BS = torch.zeros_like(ids_BS)
    for row, source in enumerate(sources):
        ids_BS[row, longest - len(source) :] = torch.tensor(source)  # a copy: the data set cannot be written to
        mask_BS[row, longest - len(source) :] = 1
    return ids_BS, mask_BS
