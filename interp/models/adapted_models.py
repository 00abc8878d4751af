"""A loaded model with an adapter merged into it for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from interp.models.adapter_merging import merged_adapter
from interp.models.adapter_tokenizers import adapter_tokenizer
from interp.models.chat_model import ChatModel
from interp.models.prompt_frames import dated_like


@contextmanager
def with_adapter(model: ChatModel, adapter: str) -> Iterator[ChatModel]:
    """Merge a PEFT adapter into the model's weights in memory for the context; `model` is restored afterwards.

    Raises:
        ValueError: no such adapter, an unreadable one, or one made for another model.
    """
    tokenizer = model.tokenizer
    if model.chat_template is None:  # a template that was asked for goes before the adapter's own
        tokenizer = adapter_tokenizer(tokenizer, str(adapter), n_embeddings=model.d_vocab)
    with merged_adapter(model.hf, str(adapter), shown=model.name):
        adapted = ChatModel(
            model.hf,
            tokenizer,
            name=model.name,
            revision=model.revision,
            adapter=str(adapter),
            source=model.source,
            chat_template=model.chat_template,
            date=dated_like(tokenizer, model.date),
            thinking=model.thinking,
            batch_size=model.batch_size,
        )
        yield adapted
