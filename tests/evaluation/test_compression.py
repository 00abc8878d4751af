"""Bits per byte against the cross-entropy written out."""

import numpy as np
import pytest
import torch

from interp.data.corpora import Corpus
from interp.evaluation.compression import bits
from interp.models.chat_model import ChatModel


def test_bits_per_byte_is_the_cross_entropy_of_the_response_alone(tiny: ChatModel) -> None:
    corpus = Corpus("c", ("yes", "né"), ("How do I bake bread?", "Hi"))
    found = bits(tiny, corpus, n_documents=2)
    assert found.bytes.tolist() == [3, 3]
    for row, (prompt, text) in enumerate(zip(corpus.prompts or (), corpus.texts, strict=True)):
        messages = [{"role": "user", "content": prompt}]
        rendered = tiny.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = [tiny.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (rendered, text)]  # pyright: ignore[reportArgumentType]
        whole = torch.tensor([ids[0] + ids[1]])  # pyright: ignore[reportOperatorIssue]
        with torch.no_grad():
            logs = tiny.hf(whole).logits.double().log_softmax(-1)[0, :-1]
        scored = logs.gather(1, whole[0, 1:, None])[-3:].sum() / np.log(2)
        assert found.bits[row] == pytest.approx(-float(scored), rel=1e-5)
