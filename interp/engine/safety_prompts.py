"""A trained safety prompt: embeddings that stand in the system slot of any prompt of one model.

Zheng et al. 2024 (arXiv:2401.18018) train the embeddings of a system message in place of its words. A `SafetyPrompt`
holds them with the text that they started from, which says how long the slot is, and with the model that they were
trained on. A prompt is rendered with that text as its system message, and the text's tokens get the trained embeddings
(`interp.engine.soft_tokens`).

    prompt = interp.SafetyPrompt.read("prompt.safetensors")
    interp.generate(model, "How do I bake bread?", safety_prompt=prompt)
    with prompt.standing_in(model, prompts) as tokens:       # everything else that takes prompts
        interp.collect(model, tokens)
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pydantic import ConfigDict
from safetensors.torch import save
from torch import Tensor

from interp.display.cards import Card, Shown
from interp.engine.reads import check_model
from interp.engine.soft_tokens import soft_tokens
from interp.models.chat_model import ChatModel
from interp.models.system_slots import SystemSlot, system_slot
from interp.models.tokens import ChatTokens, PromptInput, as_tokens
from interp.storage.atomic_files import write_file
from interp.storage.paths import expanded
from interp.storage.run_folders import replacing_folder
from interp.storage.tensor_files import check_tensors, format_version, read_safetensors, sealed
from interp.storage.typed_json import first_line, from_plain

FORMAT = "interp-safety-prompt"
FORMAT_VERSION = 1
_REMEDY = "train the safety prompt again (interp.safety_prompt)"


class NearestToken(NamedTuple):
    """A token of the vocabulary and how near its embedding is."""

    text: str
    id: int
    cosine: float
    """Cosine with the trained embedding, -1 to 1."""
    distance: float
    """Euclidean distance to the trained embedding."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SafetyPrompt(Shown):
    """Embeddings for the system slot of one model's prompts."""

    embeddings: Float[Tensor, "soft d_model"]
    """One for each token of the text, on the scale of the output of the model's input embedding."""
    text: str
    """The system message that they stand in place of, and started from."""
    model: str
    """Name of the model that they were trained on."""
    weights_hash: str
    """SHA-256 over its weights."""
    template_hash: str | None
    """SHA-256 of its chat template."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How they were trained: objective, settings, prompts, versions."""

    def __post_init__(self) -> None:
        if not torch.isfinite(self.embeddings).all():
            raise ValueError("the soft prompt holds NaN or infinite values")
        if len(self.embeddings) == 0:
            raise ValueError("a soft prompt needs at least one embedding, got none")

    @classmethod
    def from_text(cls, model: ChatModel, text: str) -> "SafetyPrompt":
        """The untrained prompt: the text's own embeddings.

        Raises:
            ValueError: as `interp.models.system_slots.system_slot`.
        """
        ids = system_slot(model.tokenizer, "x", text).ids
        with torch.no_grad():
            embeddings = model.embedding(torch.tensor(ids, device=model.device)).float().cpu()
        return cls(
            embeddings=embeddings,
            text=text.strip(),
            model=model.name,
            weights_hash=model.weights_hash,
            template_hash=model.template_hash,
            provenance={"objective": "text"},
        )

    def check(self, model: ChatModel) -> None:
        """Raise a ValueError unless the prompt was trained on this model: its width, weights and chat template."""
        width = self.embeddings.shape[1]
        if width != model.d_model:
            raise ValueError(
                f"this safety prompt has d_model {width}, but {model.name} has {model.d_model}: it was trained on "
                f"another model ({self.model})"
            )
        for own, found, what in (
            (self.weights_hash, model.weights_hash, "weights"),
            (self.template_hash, model.template_hash, "chat template"),
        ):
            if own != found:
                raise ValueError(
                    f"this safety prompt was trained on {self.model} and the {what} of {model.name} differ; load "
                    f"{self.model}, train one on this model, or take prompt.moved_to(model) to try it here all the same"
                )

    def moved_to(self, model: ChatModel) -> "SafetyPrompt":
        """The same embeddings for another model of this width, such as a fine-tuned one; provenance says so.

        Raises:
            ValueError: a model of another width.
        """
        here = replace(
            self,
            model=model.name,
            weights_hash=model.weights_hash,
            template_hash=model.template_hash,
            provenance={
                **self.provenance,
                "trained_on": {"model": self.model, "weights_hash": self.weights_hash},
            },
        )
        here.check(model)
        return here

    def slot(self, model: ChatModel, prompts: PromptInput) -> SystemSlot:
        """These prompts rendered with the text, and where it stands in them.

        Raises:
            ValueError: another model's prompt, a template without a system slot, or one that gives the text another
                number of tokens.
        """
        self.check(model)
        slot = system_slot(model.tokenizer, prompts, self.text)
        if len(slot) != len(self.embeddings):
            raise ValueError(
                f"this safety prompt has {len(self.embeddings)} embeddings, and its text has {len(slot)} tokens under "
                f"{model.name}'s tokenizer; {_REMEDY}"
            )
        return slot

    @contextmanager
    def standing_in(self, model: ChatModel, prompts: PromptInput) -> Iterator[ChatTokens]:
        """The prompts with the trained embeddings in their system slot, for passes of this thread inside the context.

        Args:
            prompts: instructions or conversations without a system message of their own.

        Raises:
            ValueError: as `slot`, or prompts that are tokens already.
        """
        slot = self.slot(model, prompts)
        with soft_tokens(model, self.embeddings) as ids:
            yield slot.filled(ids)

    def nearest_tokens(self, model: ChatModel, *, n: int = 1) -> tuple[tuple[NearestToken, ...], ...]:
        """The n tokens of the vocabulary whose embeddings have the highest cosine with each trained one.

        Raises:
            ValueError: a model of another width, or n of another size than the vocabulary allows.
        """
        if self.embeddings.shape[1] != model.d_model:
            self.check(model)
        size = min(len(model.tokenizer), model.d_vocab)
        if not 1 <= n <= size:
            raise ValueError(f"n must be in 1..{size}, the vocabulary of {model.name}, got {n}")
        with torch.no_grad():
            own = self.embeddings.to(model.device, torch.float32)
            every = model.embedding(torch.arange(size, device=model.device)).float()
            norms = every.norm(dim=-1).clamp(min=1e-12)
            cosines = (own @ every.T) / norms / own.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            top = cosines.topk(n, dim=-1)
            distances = (own[:, None] - every[top.indices]).norm(dim=-1)
        return tuple(
            tuple(
                NearestToken(str(model.tokenizer.decode([i])), i, c, d)
                for i, c, d in zip(*(values.tolist() for values in row), strict=True)
            )
            for row in zip(top.indices, top.values, distances, strict=True)
        )

    def save(self, path: str | Path) -> Path:
        """Write the prompt to a safetensors file (key `soft_prompt`), atomically."""
        metadata = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "text": self.text,
            "model": self.model,
            "weights_hash": self.weights_hash,
            "template_hash": json.dumps(self.template_hash),
            "provenance": json.dumps(dict(self.provenance)),
        }
        tensors = {"soft_prompt": self.embeddings.detach().to("cpu", torch.float32).contiguous()}
        path = expanded(path)
        write_file(path, save(tensors, sealed(metadata, tensors)))
        return path

    @classmethod
    def read(cls, path: str | Path) -> "SafetyPrompt":
        """Read a prompt that `save` wrote.

        Raises:
            ValueError: no such file, another kind of file, a damaged one, or one of a newer format.
        """
        path = expanded(path)
        if not path.is_file():
            raise ValueError(f"no such safety-prompt file: {path}")
        file = read_safetensors(path, remedy=_REMEDY)
        if file.metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is no safety prompt of interp; {_REMEDY}")
        format_version(file, path, FORMAT_VERSION)
        plain: dict[str, Any] = dict(file.metadata)
        try:
            plain |= {name: json.loads(plain.get(name, "")) for name in ("template_hash", "provenance")}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({first_line(error)}); {_REMEDY}") from None
        about = from_plain(_Metadata, plain, source=str(path))
        embeddings = file.tensors.get("soft_prompt")
        if embeddings is None or embeddings.ndim != 2:
            raise ValueError(f"{path} is damaged (no table named soft_prompt in it); {_REMEDY}")
        check_tensors(file, path, remedy=_REMEDY)
        return cls(
            embeddings=embeddings,
            text=about.text,
            model=about.model,
            weights_hash=about.weights_hash,
            template_hash=about.template_hash,
            provenance=about.provenance,
        )

    def save_peft(self, model: ChatModel, folder: str | Path) -> Path:
        """Write the prompt as a PEFT prompt-tuning adapter, for templates whose system slot begins the prompt.

        PEFT puts its virtual tokens before the whole prompt. The input of the adapted model is what follows the slot.

        Raises:
            ValueError: a template that has text before the system message, or as `slot`.
        """
        slot = self.slot(model, "x")
        if slot.start != 0:
            before = model.tokenizer.decode(list(slot.tokens.ids[0][: slot.start]))
            raise ValueError(
                f"PEFT prompt tuning stands before the whole prompt, and this safety prompt behind {before!r} of the "
                "chat template: it cannot be exported; keep it as .safetensors and give it to interp.generate"
            )
        from peft import PromptTuningConfig

        count, width = self.embeddings.shape
        settings = PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=count,
            token_dim=width,
            num_transformer_submodules=1,
            num_layers=model.n_layers,
            num_attention_heads=model.hf.config.get_text_config().num_attention_heads,
            base_model_name_or_path=model.source,
            inference_mode=True,
        )
        folder = expanded(folder)
        with replacing_folder(folder) as draft:
            settings.save_pretrained(str(draft))
            tensors = {"prompt_embeddings": self.embeddings.detach().to("cpu", torch.float32).contiguous()}
            (draft / "adapter_model.safetensors").write_bytes(save(tensors))
        return folder

    def __repr__(self) -> str:
        return f"SafetyPrompt({self.model}: {len(self.embeddings)} embeddings in place of {self.text[:40]!r})"

    def _card(self) -> Card:
        return Card(
            title=f"SafetyPrompt for {self.model}",
            facts={
                "embeddings": f"{len(self.embeddings)} of width {self.embeddings.shape[1]}, in the system slot",
                "in place of": self.text,
                "objective": self.provenance.get("objective", "unknown"),
            },
        )


@contextmanager
def under(model: ChatModel, prompts: PromptInput, prompt: SafetyPrompt | None) -> Iterator[ChatTokens]:
    """The tokens of the prompts under a safety prompt, or as they are with None."""
    check_model(model)
    if prompt is None:
        yield as_tokens(model.tokenizer, prompts)
        return
    with prompt.standing_in(model, prompts) as tokens:
        yield tokens


@dataclass(frozen=True, kw_only=True)
class _Metadata:
    """Metadata of a safety-prompt file."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    text: str
    model: str
    weights_hash: str
    template_hash: str | None
    provenance: dict[str, Any]
