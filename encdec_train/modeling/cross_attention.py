"""Cross-attention that starts from the decoder's own self-attention instead of random weights (docs/adr/0009)."""

import torch
from transformers import PreTrainedModel

from encdec_train.errors import ModelError, fault
from encdec_train.modeling.families import is_cross_attention

TWINS = (("crossattention.", "attention."), ("encoder_attn", "self_attn"), ("cross_attn", "self_attn"))
FUSED_TYPES = {"gpt2", "gpt-sw3"}  # query, key and value side by side in one matrix; GPTBigCode orders it by head
FUSED = (  # a part of cross-attention, of self-attention, and which thirds of its columns
    ("crossattention.q_attn", "attn.c_attn", (0, 1)),
    ("crossattention.c_attn", "attn.c_attn", (1, 3)),
    ("crossattention.c_proj", "attn.c_proj", (0, 3)),
    ("ln_cross_attn", "ln_1", (0, 3)),
)


@torch.no_grad()
def copy_self_attention(decoder: PreTrainedModel, warm: set[int]) -> set[int]:
    """Copy query, key, value, output and norm of each layer's self-attention into its cross-attention.

    What a checkpoint holds of cross-attention stays, and nothing is copied from a self-attention that is random itself.

    Args:
        decoder: The half, with its weights.
        warm: The ids of its parameters that come from a checkpoint.

    Returns:
        The ids of the parameters that were written to.

    Raises:
        ModelError: When the architecture's cross-attention is not built like its self-attention.
    """
    parameters, copied = dict(decoder.named_parameters()), set[int]()
    for name, p in parameters.items():
        if not is_cross_attention(name) or id(p) in warm:
            continue
        twin, (first, last) = _twin(name, decoder.config.model_type)
        own = parameters.get(twin)
        thirds = own.shape[-1] if own is not None else 0
        if own is None or own[..., first * thirds // 3 : last * thirds // 3].shape != p.shape:
            reason = f"{decoder.config.model_type} has no self-attention that fits {name}"
            raise ModelError(fault("model.init_cross_attention", "fresh", "self_attention", reason))
        if id(own) in warm:
            p.copy_(own[..., first * thirds // 3 : last * thirds // 3])
            copied.add(id(p))
    return copied


def _twin(name: str, model_type: str) -> tuple[str, tuple[int, int]]:
    """Name the parameter of self-attention that stands where this one does, and which thirds of its columns."""
    for part, own, thirds in FUSED if model_type in FUSED_TYPES else ():
        if part in name:
            return name.replace(part, own), thirds
    part, own = next(pair for pair in (*TWINS, ("", "")) if pair[0] in name)
    return name.replace(part, own) if part else "", (0, 3)
