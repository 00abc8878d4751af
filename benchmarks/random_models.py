"""Chat models of any shape with random weights and a tokenizer trained here, without downloads."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from interp.models.chat_model import ChatModel

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte pairs trained on these texts, with a chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=4000, initial_alphabet=alphabet, special_tokens=list(SPECIAL), show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[0],
        additional_special_tokens=list(SPECIAL),
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(
    shape: dict[str, int], tokenizer: PreTrainedTokenizerFast, *, device: str, dtype: torch.dtype, name: str
) -> ChatModel:
    """A seeded random model of this shape, made on the device."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape,  # pyright: ignore[reportArgumentType]
        vocab_size=32000,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return ChatModel(hf, tokenizer, name=name)
