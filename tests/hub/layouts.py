"""Checkpoints in the layouts that lie on the Hub, at tiny size."""

import json
from pathlib import Path
from typing import Any

VOCABULARY = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "cat", "dog", "bird", "sat", "ran", "flew", "on"),
    *("under", "over", "mat", "tree", "house", "and", "because", "so", "while", ",", ".", "!", "old", "red", "small"),
    *("it", "she", "he"),
)
GENERATION = {"max_length": 14, "min_length": 6, "no_repeat_ngram_size": 3, "length_penalty": 2.0, "num_beams": 4}
# What transformers of 2020 wrote into every config, of a half too.
DEFAULTS_OF_2020: dict[str, Any] = {
    "_num_labels": 2, "bad_words_ids": None, "bos_token_id": None, "chunk_size_feed_forward": 0,
    "decoder_start_token_id": None, "diversity_penalty": 0.0, "do_sample": False, "early_stopping": False,
    "eos_token_id": None, "finetuning_task": None, "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_encoder_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0, "max_length": 20,
    "min_length": 0, "no_repeat_ngram_size": 0, "num_beams": 1, "num_return_sequences": 1,
    "output_attentions": False, "output_hidden_states": False, "prefix": None, "pruned_heads": {},
    "repetition_penalty": 1.0, "return_dict": False, "sep_token_id": None, "task_specific_params": None,
    "temperature": 1.0, "tie_encoder_decoder": False, "tie_word_embeddings": True, "tokenizer_class": None,
    "top_k": 50, "top_p": 1.0, "torchscript": False, "use_bfloat16": False, "use_cache": True, "xla_device": None,
}  # fmt: skip
BERT = {
    "model_type": "bert", "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 32,
    "initializer_range": 0.02, "intermediate_size": 64, "layer_norm_eps": 1e-12, "max_position_embeddings": 64,
    "num_attention_heads": 2, "num_hidden_layers": 2, "pad_token_id": 0, "type_vocab_size": 2,
    "vocab_size": len(VOCABULARY),
}  # fmt: skip


def write_bert2bert_of_2020(folder: Path, *, head: bool = True) -> Path:
    """Write a bert2bert as `patrickvonplaten/bert2bert_cnn_daily_mail` is laid out, with safetensors for its pickle.

    All settings are in `config.json`, of generation too; there is no `generation_config.json` and no `tokenizer.json`;
    the encoder has a pooler, the embeddings a `position_ids` buffer; the head is tied and in the file only with `head`.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig, BertLMHeadModel, BertModel

    folder.mkdir(parents=True)
    half = {**DEFAULTS_OF_2020, **BERT}
    config = {
        "architectures": ["EncoderDecoderModel"], "bos_token_id": 2, "decoder_start_token_id": 2, "eos_token_id": 3,
        "pad_token_id": 0, "is_encoder_decoder": True, "model_type": "encoder-decoder", "early_stopping": True,
        "vocab_size": len(VOCABULARY), "tie_encoder_decoder": False, **GENERATION,
        "encoder": {**half, "is_decoder": False, "add_cross_attention": False},
        "decoder": {**half, "is_decoder": True, "add_cross_attention": True},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer = {"do_lower_case": True, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    sizes = {key: value for key, value in BERT.items() if key not in {"model_type", "architectures"}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        encoder = BertModel(BertConfig(**{**sizes, "initializer_range": 0.4}))
        decoder = BertLMHeadModel(
            BertConfig(**{**sizes, "initializer_range": 0.4}, is_decoder=True, add_cross_attention=True)
        )
    tensors = {f"encoder.{name}": value.clone() for name, value in encoder.state_dict().items()}
    tensors |= {f"decoder.{name}": value.clone() for name, value in decoder.state_dict().items()}
    for place in ("encoder", "decoder.bert"):
        tensors[f"{place}.embeddings.position_ids"] = torch.arange(64).unsqueeze(0)
    tied = "decoder.cls.predictions.decoder.weight"
    tensors[tied] = tensors["decoder.bert.embeddings.word_embeddings.weight"].clone()
    if not head:
        del tensors[tied]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_t5(folder: Path) -> Path:
    """Write a T5 with a prefix for translation, as `google-t5/t5-small` has, and a tokenizer of words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    words = ["<pad>", "</s>", "<unk>", *VOCABULARY[5:], "translate", "English", "to", "German:"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    specials = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = T5Config(vocab_size=len(words), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
                      decoder_start_token_id=0, initializer_factor=4.0)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials).save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    values["task_specific_params"] = {
        "translation_en_to_de": {"prefix": "translate English to German: ", "max_length": 9, "num_beams": 2}
    }
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "generation_config.json").unlink()  # the oldest layouts have none
    return folder
