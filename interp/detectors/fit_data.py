"""What detectors are fitted on: states or texts of training prompts, and which of them the model refuses or answers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from interp.data.prompt_sets import PAIRED_KINDS
from interp.data.prompts import Ending, Kind, Prompts, PromptSet
from interp.evaluation.early_verdicts import refusal_verdicts
from interp.models.chat_model import ChatModel
from interp.models.prompt_inputs import PromptIdentity
from interp.models.tokenizer_files import tokenizer_hash
from interp.representations.beliefs import states
from interp.representations.confounds import leak_check
from interp.storage.provenance import library_versions

Needs = Literal["states", "validation", "replies"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Readings:
    """Prompts and their activations, as a fitted detector reads them."""

    texts: tuple[str, ...]
    """Texts of the prompts, with the detector's ending."""
    states: Float[Tensor, "prompt layer role d_model"] | None = None
    """Residual stream at `t_inst` and `t_post_inst` (`interp.representations.beliefs.states`); None where only the
    text is used."""
    given: PromptIdentity | None = None
    """Given ids and categories of the prompts; running numbers when None."""

    @property
    def identity(self) -> PromptIdentity:
        """Ids, categories and hash of the prompts."""
        return PromptIdentity.numbered(self.texts) if self.given is None else self.given

    def at(self, layer: int, role: int) -> Float[Tensor, "prompt d_model"]:
        """States at one layer and role."""
        return self.every_layer[:, layer, role]

    @property
    def every_layer(self) -> Float[Tensor, "prompt layer role d_model"]:
        """The states.

        Raises:
            ValueError: only the text was read.
        """
        if self.states is None:
            raise ValueError(
                "this detector reads the model's states, and only the words of the prompts were read"
            )
        return self.states


@dataclass(frozen=True, eq=False, kw_only=True)
class FitData:
    """Prompts and activations that detectors are fitted on."""

    train: Mapping[Kind, Readings]
    """Harmful and harmless training prompts."""
    validation: Mapping[Kind, Readings]
    """Prompts for selecting a layer and a role; empty where nothing is selected."""
    ending: Ending
    """Treatment of the end of every prompt."""
    refused: tuple[int, ...] | None = None
    """Indices of the harmful training prompts that the model refuses; None where its replies were not generated."""
    answered: tuple[int, ...] | None = None
    """Indices of the harmless training prompts that the model answers."""
    fitted_on: Mapping[str, Any]
    """Model, weights hash, template hash, prompts, counts, versions."""

    def behaving(self, minimum: int) -> dict[Kind, list[int]] | None:
        """Indices of refused harmful and answered harmless training prompts; None where a kind has below `minimum`."""
        if (
            self.refused is None
            or self.answered is None
            or min(len(self.refused), len(self.answered)) < minimum
        ):
            return None
        return {"harmful": list(self.refused), "harmless": list(self.answered)}


def read_fit_data(
    model: ChatModel,
    prompts: PromptSet,
    *,
    n_prompts: int,
    needs: frozenset[Needs],
    max_new_tokens: int = 24,
    show_progress: bool = False,
) -> FitData:
    """Read the first training prompts of each kind and the validation prompts, with the data that a detector needs."""
    train: dict[Kind, Prompts] = {kind: prompts[kind, "train"].first(n_prompts) for kind in PAIRED_KINDS}
    held_out: dict[Kind, Prompts] = {kind: prompts[kind, "val"] for kind in PAIRED_KINDS}

    def read(part: Prompts) -> Readings:
        read_states = states(model, part, show_progress=show_progress) if "states" in needs else None
        return Readings(texts=part.texts, states=read_states)

    counts = {kind: len(train[kind]) for kind in PAIRED_KINDS}
    refused = answered = None
    if "replies" in needs:
        rows = {
            kind: refusal_verdicts(
                model, part, substrings="zhao", max_new_tokens=max_new_tokens, show_progress=show_progress
            ).rows(refused=kind == "harmful")
            for kind, part in train.items()
        }
        refused, answered = (tuple(rows[kind]) for kind in PAIRED_KINDS)
        counts |= {"refused_harmful": len(refused), "answered_harmless": len(answered)}
    leak = leak_check(
        model,
        train=(train["harmful"], train["harmless"]),
        held_out=(held_out["harmful"], held_out["harmless"]),
        label=f"{prompts.name}, {prompts.ending}",
    )
    train_read: dict[Kind, Readings] = {kind: read(part) for kind, part in train.items()}
    validation: dict[Kind, Readings] = {}
    if "validation" in needs:
        validation = {kind: read(part) for kind, part in held_out.items()}
    return FitData(
        train=train_read,
        validation=validation,
        ending=prompts.ending,
        refused=refused,
        answered=answered,
        fitted_on={
            **model.provenance,
            "tokenizer_hash": tokenizer_hash(model.tokenizer),
            "prompts": prompts.provenance,
            "counts": counts,
            "leak_check": asdict(leak),
            "versions": library_versions(),
        },
    )
