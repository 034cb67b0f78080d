from typing import Any

import pairs
import pytest
import torch

from encdec_train.decoding import decoder as decoder_module
from encdec_train.decoding.decoder import Decoder


@pytest.mark.parametrize("family", pairs.FAMILIES)
def test_keys_and_values_of_the_source_are_held_once_for_all_beams(family: str, one_thread: None) -> None:
    model = pairs.tiny_pair(family, pairs.SEEDS[family])
    ids = torch.tensor([[2, 6, 7, 3], [2, 8, 9, 3]])
    found = model.generate(ids, num_beams=4, max_new_tokens=3, return_dict_in_generate=True)
    layers: Any = found.past_key_values.cross_attention_cache.layers
    theirs = sum(layer.keys.numel() + layer.values.numel() for layer in layers)
    decoder, mask = Decoder(model), torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        ours = decoder.cache(decoder.encode(ids, mask), mask, 4).cross
    assert 4 * sum(pairs_of_layer.numel() for pairs_of_layer in ours) == theirs > 0
    assert sum(pairs_of_layer.untyped_storage().nbytes() for pairs_of_layer in ours) == theirs  # of 4 bytes, a fourth


def test_many_sources_are_encoded_in_parts(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pairs.tiny_pair("bert2gpt", 1)
    ids = torch.tensor([[2, 6, 7, 3], [2, 8, 3, 0], [2, 9, 9, 3], [2, 3, 0, 0], [2, 5, 6, 3]])
    decoder, mask = Decoder(model), ids != 0
    with torch.no_grad():
        whole = decoder.encode(ids, mask)
        sizes: list[int] = []
        model.encoder.register_forward_hook(lambda _, __, found: sizes.append(len(found[0])))
        monkeypatch.setattr(decoder_module, "ENCODED_TOKENS", 9)
        parts = decoder.encode(ids, mask)
    assert sizes == [2, 2, 1]
    assert torch.allclose(parts, whole, atol=1e-6)
