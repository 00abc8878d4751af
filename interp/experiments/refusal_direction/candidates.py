"""Section 2.3 and appendix A: refusal metric, prompts that behave as their kind asks for, difference in means.

    r = mean(resid_pre of refused harmful prompts) - mean(resid_pre of answered harmless prompts)

at every template token after the instruction and every layer.

Source: Arditi et al. 2024, arXiv:2406.11717. Their refusal tokens are named by hand for each family (table 4); here
they are found on the training prompts (`interp.evaluation.refusals.find_refusal_tokens`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.prompt_sets import PAIRED_KINDS
from interp.data.prompts import Kind, Prompts, PromptSet, Split
from interp.engine.activations import collect_means
from interp.engine.log_probs import next_token_log_probs
from interp.evaluation.records import BehavingCount, RefusalTokens
from interp.evaluation.refusals import find_refusal_tokens, refusal_metric
from interp.experiments.refusal_direction import Config
from interp.experiments.refusal_direction.results import FirstToken
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.representations.sweeps import Place
from interp.storage.stages import Stages

Key = tuple[Kind, Split]
"""(kind, split) of prompts."""
_MIN_PROMPTS: dict[Split, int] = {"train": 8, "val": 4}
"""Prompts that must be left of each kind after filtering."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FilteredPrompts:
    """Prompts on which the unmodified model does what their kind asks for, and what it does with all of them."""

    prompts: dict[Key, Prompts]
    tokens: dict[Key, ChatTokens]
    counts: dict[str, BehavingCount]
    """Number of prompts by kind and split, as `harmful_train`."""
    refusal_tokens: RefusalTokens
    first_tokens: dict[str, tuple[FirstToken, ...]]
    """The ten likeliest first tokens on the training prompts, by kind."""
    refusal_metric: dict[str, tuple[float, ...]]
    """Refusal metric of every training prompt in nats, by kind."""

    def both_splits(self, kind: Kind) -> tuple[str, ...]:
        """Texts of a kind; those that directions were not fitted on come first."""
        return (*self.prompts[kind, "val"].texts, *self.prompts[kind, "train"].texts)


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidates:
    """Differences in means, one a template token and layer."""

    directions: dict[Place, Float[Tensor, " d_model"]]
    """(position from the prompt's end, layer) → direction at its natural length."""
    mean_norms: Float[Tensor, "layer pos"]
    """Mean activation norm at each, over prompts of both kinds."""


def candidate_directions(
    model: ChatModel, prompts: PromptSet, config: Config, stages: Stages
) -> tuple[FilteredPrompts, Candidates]:
    """Filter the training and validation prompts, and take the differences in means of the training ones.

    Raises:
        ValueError: too few prompts that the model refuses or answers.
    """
    filtered = filter_prompts(model, prompts, config)
    stages.lap("filter")
    candidates = differences_in_means(model, filtered.tokens, show_progress=stages.show_progress)
    stages.lap("collect")
    return filtered, candidates


def filter_prompts(model: ChatModel, prompts: PromptSet, config: Config) -> FilteredPrompts:
    """Keep harmful prompts with refusal metric > 0 and harmless ones with metric < 0, train and val alike.

    Source: Arditi et al. 2024, appendix A.

    Raises:
        ValueError: too few prompts are left.
    """
    sizes: dict[Split, int] = {"train": config.n_train, "val": config.n_val}
    parts: dict[Key, Prompts] = {
        (kind, split): prompts[kind, split].first(n) for kind in PAIRED_KINDS for split, n in sizes.items()
    }
    tokens = {key: tokenize(model.tokenizer, part.texts) for key, part in parts.items()}
    log_probs = {key: next_token_log_probs(model, part) for key, part in tokens.items()}
    mass: dict[Kind, Tensor] = {
        kind: log_probs[kind, "train"].double().exp().mean(0) for kind in PAIRED_KINDS
    }
    first_tokens = {kind: _likeliest(model, values) for kind, values in mass.items()}
    refusal_tokens = _refusal_tokens(model, log_probs, mass, config.refusal_tokens)
    metric = {key: refusal_metric(part, refusal_tokens.ids) for key, part in log_probs.items()}
    rows = {key: _behaving_rows(model, key, values, refusal_tokens) for key, values in metric.items()}
    return FilteredPrompts(
        prompts={key: parts[key].take(behaving) for key, behaving in rows.items()},
        tokens={key: tokens[key].take(behaving) for key, behaving in rows.items()},
        counts={
            f"{kind}_{split}": BehavingCount(behaving=len(behaving), of=len(parts[kind, split]))
            for (kind, split), behaving in rows.items()
        },
        refusal_tokens=refusal_tokens,
        first_tokens=first_tokens,
        refusal_metric={kind: tuple(metric[kind, "train"].tolist()) for kind in PAIRED_KINDS},
    )


def _refusal_tokens(
    model: ChatModel,
    log_probs: Mapping[Key, Float[Tensor, "prompt d_vocab"]],
    mass: Mapping[Kind, Float[Tensor, " d_vocab"]],
    ids: tuple[int, ...],
) -> RefusalTokens:
    """The refusal tokens that the user named, or those found on the training prompts."""
    if not ids:
        return find_refusal_tokens(
            log_probs["harmful", "train"], log_probs["harmless", "train"], model.tokenizer
        )
    return RefusalTokens(
        ids=ids,
        texts=tuple(str(model.tokenizer.decode([i])) for i in ids),
        harmful_mass=tuple(float(mass["harmful"][i]) for i in ids),
        harmless_mass=tuple(float(mass["harmless"][i]) for i in ids),
    )


def _behaving_rows(
    model: ChatModel, key: Key, metric: Float[Tensor, " prompt"], refusal_tokens: RefusalTokens
) -> list[int]:
    """Rows of the prompts with a refusal metric of the sign that their kind asks for."""
    kind, split = key
    rows = (metric > 0 if kind == "harmful" else metric < 0).nonzero()[:, 0].tolist()
    if len(rows) < _MIN_PROMPTS[split]:
        does = "refuses" if kind == "harmful" else "answers"
        raise ValueError(
            f"{model.name} {does} only {len(rows)} of {len(metric)} {kind} {split} prompts (refusal metric on tokens "
            f"{list(refusal_tokens.texts)}); at least {_MIN_PROMPTS[split]} are needed: use an aligned model, other "
            "prompts, or name its refusal tokens (refusal_tokens)"
        )
    return rows


def _likeliest(model: ChatModel, mass: Float[Tensor, " d_vocab"], *, n: int = 10) -> tuple[FirstToken, ...]:
    return tuple(
        FirstToken(token=str(model.tokenizer.decode([int(i)])), id=int(i), probability=float(p))
        for p, i in zip(*mass.topk(n), strict=True)
    )


def differences_in_means(
    model: ChatModel, tokens: Mapping[Key, ChatTokens], *, show_progress: bool = False
) -> Candidates:
    """r of the training prompts at every template token that all prompts have, and every layer."""
    n_post = min(part.n_post for part in tokens.values())
    positions = list(range(-n_post, 0))
    harmful, harmless = (
        collect_means(model, tokens[kind, "train"], positions=positions, show_progress=show_progress)
        for kind in PAIRED_KINDS
    )
    difference = harmful["resid_pre"] - harmless["resid_pre"]
    # At layer 0 both means are of one and the same embedding and differ by float64 rounding alone: that is zero, and
    # normalising it would ablate noise (the released code divides by the norm + 1e-8).
    rounding = difference.norm(dim=-1, keepdim=True) < 1e-9 * harmful["resid_pre"].norm(dim=-1, keepdim=True)
    difference = torch.where(rounding, 0.0, difference).float()
    weighted = harmful.norms["resid_pre"] * harmful.n + harmless.norms["resid_pre"] * harmless.n
    return Candidates(
        directions={
            (position, layer): difference[layer, i].clone()
            for i, position in enumerate(positions)
            for layer in range(model.n_layers)
        },
        mean_norms=weighted / (harmful.n + harmless.n),
    )
