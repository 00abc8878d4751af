"""Attention heads: what each writes along a direction, and where it attends, over the model's TransformerBridge.

- `attribute(model, prompts, direction)`: direct attribution. The final residual stream is a sum of what the embedding,
  each head and each MLP wrote, so its projection on a direction is the sum of their projections.
- `attention_by_role(model, prompts, heads)`: attention from one token, summed over the roles of the prompt's tokens.
- `logit_lens`, `patch`: `interp.representations.readouts`.

Direct attribution leaves out what a head changes in later layers, and attention is not importance: both describe, and
only `patch` and interventions are causal. At run time every attribution is compared with the projection of the stream
itself, and every row of attention with 1.

    written = interp.heads.attribute(model, prompts["harmful", "test"], refusal)
    written.top(3)                                    # the heads that write most, with intervals over prompts
    interp.heads.attention_by_role(model, prompts["harmful", "test"], written.top(3))

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits" (direct paths); Arditi et al. 2024,
arXiv:2406.11717, section 5.2 (attribution to the refusal direction and attention of the top heads).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import plotly.graph_objects as go
import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

from interp.directions import Direction, unit
from interp.display.cards import Card, Shown, Table
from interp.display.charts import head_map, rate_bars
from interp.models.chat_model import ChatModel
from interp.models.scalars import whole_number
from interp.models.tokens import ChatTokens, PromptInput, as_tokens
from interp.representations.readouts import logit_lens as logit_lens
from interp.representations.readouts import one_position
from interp.representations.readouts import patch as patch
from interp.stats import Estimate, mean_with_interval
from interp.storage.direction_files import DirectionInput, as_direction

TOKEN_ROLES = ("prefix", "instruction", "t_inst", "post_inst", "thinking", "prefill")
"""Disjoint roles that together cover a prompt: `instruction` without its last token, which is `t_inst`."""
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Head(NamedTuple):
    """An attention head, by layer and number, both counted from 0."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"


def head_list(heads: Any) -> list[Head]:
    """Heads as users write them: (layer, head) pairs.

    Raises:
        ValueError: no heads, or something else than pairs of whole numbers.
    """
    pairs = list(heads) if isinstance(heads, Collection) and not isinstance(heads, str) else []
    if not pairs:
        raise ValueError(
            f"heads must be (layer, head) pairs, for instance attribute(...).top(4), got {heads!r:.60}"
        )
    wanted = []
    for pair in pairs:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f"a head is a pair of its layer and number, such as (3, 0), got {pair!r:.60}")
        wanted.append(Head(whole_number(pair[0], "layer"), whole_number(pair[1], "head")))
    return wanted


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class HeadAttribution(Shown):
    """Projection of every component's output on a unit direction, at one token of each prompt."""

    heads: Float[Tensor, "prompt layer head"]
    """Projection of each head's output, in units of the activations; the sign is along or against the direction."""
    mlps: Float[Tensor, "prompt layer"]
    """Projection of each MLP's output."""
    biases: Float[Tensor, "prompt layer"]
    """Projection of what attention adds that belongs to no head: its output bias."""
    embedding: Float[Tensor, " prompt"]
    """Projection of the stream before the first block."""
    total: Float[Tensor, " prompt"]
    """Projection of the final residual stream: the sum of all of these."""
    position: str
    """Role of the token that was read."""

    def top(self, n: int = 8) -> list[Head]:
        """The n heads whose mean projection is largest in absolute value, largest first.

        Raises:
            ValueError: n is not in 1..number of heads.
        """
        mean = self.heads.double().mean(0)
        n = whole_number(n, "n")
        if not 1 <= n <= mean.numel():
            raise ValueError(f"n must be in 1..{mean.numel()}, the number of heads, got {n}")
        return [Head(*divmod(int(i), mean.shape[1])) for i in mean.abs().flatten().topk(n).indices]

    def estimate(self, head: tuple[int, int]) -> Estimate:
        """Mean projection of one head over prompts, with a bootstrap interval.

        Raises:
            ValueError: not the layer and number of a head that the model has.
        """
        (place,) = head_list([head])
        for number, size, of in zip(
            place, self.heads.shape[1:], ("layers", "heads in each layer"), strict=True
        ):
            if not 0 <= number < size:
                raise ValueError(f"there are {size} {of}, counted from 0, got {place}")
        return mean_with_interval(self.heads[:, place.layer, place.head].tolist())

    def figure(self) -> go.Figure:
        """Mean projection of every head, by layer and head."""
        return head_map(
            self.heads.double().mean(0).tolist(),
            title=f"What each head writes along the direction at {self.position}, n = {len(self.total)} prompts",
            label="mean projection",
        )

    def _card(self) -> Card:
        parts = {
            "final stream": self.total,
            "embedding": self.embedding,
            "all heads": self.heads.sum((1, 2)),
            "all MLPs": self.mlps.sum(1),
        }
        if float(self.biases.abs().max()) > 1e-4 * float(self.heads.abs().max()):  # more than rounding
            parts["attention biases"] = self.biases.sum(1)
        rows = [(str(head), self.estimate(head)) for head in self.top(min(8, self.heads[0].numel()))]
        return Card(
            title=f"Direct attribution to a direction at {self.position}, {len(self.total)} prompts",
            facts={name: mean_with_interval(values.tolist()) for name, values in parts.items()},
            tables=[Table(header=("head", "mean projection"), rows=rows, title="heads that write most")],
            notes=["The parts add up to the final stream. Effects through later layers are not in them."],
        )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class AttentionByRole(Shown):
    """Attention of chosen heads from one token of each prompt, summed over the tokens of each role."""

    values: Float[Tensor, "prompt head role"]
    """Share of attention, 0 to 1; sums to 1 over roles."""
    heads: tuple[Head, ...]
    """What the head axis counts."""
    roles: tuple[str, ...]
    """What the role axis counts, of `TOKEN_ROLES`."""
    tokens: tuple[float, ...]
    """Mean number of tokens of each role: attention spread evenly would be in these proportions."""
    position: str
    """Role of the token that attends."""

    def estimates(self) -> Mapping[str, Mapping[str, Estimate]]:
        """Mean attention over prompts with a bootstrap interval, by role and head."""
        return {
            role: {
                str(head): mean_with_interval(self.values[:, h, r].tolist())
                for h, head in enumerate(self.heads)
            }
            for r, role in enumerate(self.roles)
        }

    def figure(self) -> go.Figure:
        """Mean attention by head and role, with 95% intervals."""
        return rate_bars(
            self.estimates(),
            title=f"Attention from {self.position} by token role, n = {len(self.values)} prompts",
            y_title="share of attention",
        )

    def _card(self) -> Card:
        estimates = self.estimates()
        rows = [[str(head), *(estimates[role][str(head)] for role in self.roles)] for head in self.heads]
        return Card(
            title=f"Attention from {self.position} by token role, {len(self.values)} prompts",
            facts={
                "tokens of each role": ", ".join(
                    f"{role} {count:.1f}" for role, count in zip(self.roles, self.tokens, strict=True)
                )
            },
            tables=[Table(header=("head", *self.roles), rows=rows, title="mean attention")],
        )


@torch.no_grad()
def attribute(
    model: ChatModel,
    prompts: PromptInput,
    direction: DirectionInput,
    *,
    position: str = "t_post_inst",
) -> HeadAttribution:
    """What every head and MLP writes along a direction at one token of each prompt.

    Args:
        direction: its unit vector is used, so projections are in units of the activations.
        position: a single role (`tokens.ROLES`), or an integer from the prompt's end.

    Raises:
        ValueError: unknown position, a direction of another width or zero, a model that normalises what attention
            writes (a head's output is not what is added to the stream), or parts that do not add up to the stream.
    """
    if model.normalises_attention:
        raise ValueError(
            f"{model.name} normalises what attention writes before it is added to the stream, so no head has an "
            "output of its own there; heads.patch and heads.attention_by_role work on it"
        )
    tokens = as_tokens(model.tokenizer, prompts)
    role, columns = one_position(tokens, position)
    given = as_direction(direction)
    vector = given.vector if isinstance(given, Direction) else given
    if vector.numel() != model.d_model or not float(vector.norm()) > 0:
        raise ValueError(
            f"direction must have {model.d_model} numbers, the d_model of {model.name}, and not be zero; got "
            f"{vector.numel()} of norm {float(vector.norm()):.3g}"
        )
    u = unit(vector.float()).to(model.device)
    last = model.n_layers - 1
    readers = head_readers(model, u)
    parts = ("attn.hook_z", "hook_attn_out", "hook_mlp_out")
    names = {f"blocks.{layer}.{part}" for layer in range(model.n_layers) for part in parts}
    ends = ("blocks.0.hook_resid_pre", f"blocks.{last}.hook_resid_post")
    heads, attention, mlps, streams = [], [], [], []
    for row, cache in caches(model, tokens, {*names, *ends}):

        def at(name: str, at: int = columns[row], cache: Mapping[str, Tensor] = cache) -> Tensor:
            return cache[name][0, at].float()

        z = torch.stack([at(f"blocks.{layer}.attn.hook_z") for layer in range(model.n_layers)])
        heads.append(einsum(z, readers, "layer head d_head, layer head d_head -> layer head"))
        attention.append(torch.stack([at(f"blocks.{n}.hook_attn_out") @ u for n in range(model.n_layers)]))
        mlps.append(torch.stack([at(f"blocks.{n}.hook_mlp_out") @ u for n in range(model.n_layers)]))
        streams.append(torch.stack([at(name) @ u for name in ends]))
    by_head, start_and_end = torch.stack(heads).cpu(), torch.stack(streams).cpu()
    result = HeadAttribution(
        heads=by_head,
        mlps=torch.stack(mlps).cpu(),
        biases=torch.stack(attention).cpu() - reduce(by_head, "prompt layer head -> prompt layer", "sum"),
        embedding=start_and_end[:, 0],
        total=start_and_end[:, 1],
        position=role,
    )
    _adds_up(result, model)
    return result


def _adds_up(result: HeadAttribution, model: ChatModel) -> None:
    """Raise where the parts are not the stream, or what is called a bias depends on the prompt."""
    summed = result.embedding + result.heads.sum((1, 2)) + result.biases.sum(1) + result.mlps.sum(1)
    magnitude = float(result.heads.abs().sum((1, 2)).add(result.mlps.abs().sum(1)).mean())
    tolerance = _TOLERANCE[model.dtype] * (magnitude + 1e-6)
    if (gap := float((summed - result.total).abs().max())) > tolerance:
        raise ValueError(
            f"{model.name}: the parts of the stream sum to something {gap:.2g} away from it "
            f"(tolerance {tolerance:.2g}); this architecture adds something else to the stream"
        )
    if (spread := float((result.biases - result.biases[:1]).abs().max())) > tolerance:
        raise ValueError(
            f"{model.name}: attention writes something that belongs to no head and differs between prompts "
            f"({spread:.2g}, tolerance {tolerance:.2g})"
        )


@torch.no_grad()
def attention_by_role(
    model: ChatModel,
    prompts: PromptInput,
    heads: Sequence[tuple[int, int]],
    *,
    position: str = "t_post_inst",
) -> AttentionByRole:
    """Attention of chosen heads from one token of each prompt, summed over the tokens of each role.

    Args:
        heads: (layer, head) pairs, such as `HeadAttribution.top`.
        position: a single role, or an integer from the prompt's end, of the token that attends.

    Raises:
        ValueError: no heads, one that the model does not have, or an unknown position.
    """
    tokens = as_tokens(model.tokenizer, prompts)
    role, columns = one_position(tokens, position)
    wanted = [Head(model.layer(layer), head) for layer, head in head_list(heads)]
    names = {f"blocks.{layer}.attn.hook_pattern" for layer, _ in wanted}
    masks = [role_masks(tokens, row) for row in range(len(tokens))]
    roles = tuple(role for role in TOKEN_ROLES if any(role in mask for mask in masks))
    rows = []
    for row, cache in caches(model, tokens, names):
        by_role = torch.stack(
            [masks[row].get(role, torch.zeros(len(tokens.ids[row]), dtype=torch.bool)) for role in roles]
        ).to(model.device, torch.float32)
        patterns = [cache[f"blocks.{layer}.attn.hook_pattern"][0] for layer, _ in wanted]
        n_heads = patterns[0].shape[0]
        if wrong := [str(head) for head in wanted if not 0 <= head.head < n_heads]:
            raise ValueError(f"{model.name} has heads 0..{n_heads - 1} in each layer, got {', '.join(wrong)}")
        rows.append(
            torch.stack(
                [
                    by_role @ pattern[head.head, columns[row]].float()
                    for pattern, head in zip(patterns, wanted, strict=True)
                ]
            ).cpu()
        )
    values = torch.stack(rows)
    if (gap := float((values.sum(-1) - 1).abs().max())) > _TOLERANCE[model.dtype]:
        raise ValueError(
            f"{model.name}: attention over the prompt's tokens sums to 1 only within {gap:.2g}; part of it goes to "
            "something that is not a token (an attention sink)"
        )
    counts = [[float(mask[role].sum()) if role in mask else 0.0 for role in roles] for mask in masks]
    return AttentionByRole(
        values=values,
        heads=tuple(wanted),
        roles=roles,
        tokens=tuple(torch.tensor(counts).mean(0).tolist()),
        position=role,
    )


def role_masks(tokens: ChatTokens, row: int) -> dict[str, Tensor]:
    """A mask over the tokens of one prompt for each of `TOKEN_ROLES` that it has; they are disjoint and cover it."""
    names = [name.split(" = ")[0].split("[")[0] for _, _, name in tokens.names(row)]
    names = ["prefill" if name == "t_prefill" else name for name in names]
    return {role: torch.tensor([name == role for name in names]) for role in TOKEN_ROLES if role in names}


def head_readers(model: ChatModel, u: Float[Tensor, " d_model"]) -> Float[Tensor, "layer head d_head"]:
    """W_O u of every head, in the dtype of u: its product with a head's `hook_z` is what the head writes along u."""
    axes = "head d_head d_model, d_model -> head d_head"
    return torch.stack([einsum(block.attn.W_O.to(u.dtype), u, axes) for block in model.bridge.blocks])


def caches(
    model: ChatModel, tokens: ChatTokens, names: Collection[str]
) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
    """The bridge's cache of every prompt, one at a time: attention then has no padding in it."""
    for row, ids in enumerate(tokens.ids):
        _, cache = model.bridge.run_with_cache(
            torch.tensor([ids], device=model.device), names_filter=lambda name: name in names
        )
        yield row, cache
