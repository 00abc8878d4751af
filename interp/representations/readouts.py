"""When is the next token decided, and where: the logit lens, and activation patching by token role.

- `logit_lens`: the residual stream after each number of blocks, read through the model's own final norm and
  unembedding. A description: no component of the model reads the stream in this way.
- `patch`: one activation of a run on a corrupted prompt is replaced by that of its clean prompt, at one layer and the
  token of one role; the recovered share of the difference in the next token says how much that place carries. Tokens
  are matched by role, so that the two prompts may differ in length.

    lens = logit_lens(model, prompts["harmful", "test"])                        # the model's own first tokens
    patched = patch(model, clean=harmful, corrupted=harmless, metric=("I", "Sure"))
    patched.recovered(17, "t_post_inst")                                        # 0 as corrupted, 1 as clean

Source: nostalgebraist 2020 (logit lens; `transformer_lens.tools.analysis.logit_readout` computes it); Vig et al. 2020,
arXiv:2004.12265, and Meng et al. 2022, arXiv:2202.05262 (activation patching).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.display.cards import Card, Shown, Table
from interp.display.charts import head_map, layer_lines
from interp.engine.activations import collect
from interp.engine.log_probs import next_token_log_probs
from interp.models.chat_model import ChatModel, Site
from interp.models.layers import Layers
from interp.models.tokens import ChatTokens, Positions, PromptInput, as_tokens
from interp.stats import Estimate, mean_with_interval, ratio_with_interval

Metric = Callable[[Float[Tensor, "batch d_vocab"]], Float[Tensor, " batch"]]
"""A number from the log-probabilities of the next token, such as a log-odds of refusing."""
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class LogitLens(Shown):
    """The next token as read from the residual stream at every depth."""

    log_probs: Float[Tensor, "prompt depth token"]
    """Log-probability of each token, in nats; depth counts the blocks that were run, 0 to n_layers."""
    ranks: Int[Tensor, "prompt depth token"]
    """Rank of each token, 0 for the likeliest."""
    entropy: Float[Tensor, "prompt depth"]
    """Entropy over the vocabulary, in nats."""
    tokens: tuple[str, ...]
    """Text of the tokens; `own first token` where each prompt has its own."""
    position: str
    """Role of the token that was read."""

    def figure(self) -> go.Figure:
        """Mean probability of each token by depth."""
        mean = self.log_probs.double().exp().mean(0)
        return layer_lines(
            {repr(token): mean[:, i].tolist() for i, token in enumerate(self.tokens)},
            title=f"Logit lens at {self.position}, n = {len(self.log_probs)} prompts",
            y_title="mean probability",
            y_range=(0, 1),
        ).update_xaxes(title="depth (blocks run)")

    def _card(self) -> Card:
        depths = sorted({round(i * (self.log_probs.shape[1] - 1) / 5) for i in range(6)})
        rows = [
            [
                depth,
                *(
                    mean_with_interval(self.log_probs[:, depth, i].exp().tolist())
                    for i in range(len(self.tokens))
                ),
            ]
            for depth in depths
        ]
        return Card(
            title=f"Logit lens at {self.position}, {len(self.log_probs)} prompts",
            tables=[Table(header=("depth", *map(repr, self.tokens)), rows=rows, title="mean probability")],
        )


def logit_lens(
    model: ChatModel,
    prompts: PromptInput,
    *,
    tokens: Sequence[str | int] | None = None,
    position: str = "t_post_inst",
) -> LogitLens:
    """Log-probabilities of chosen tokens as the next one, read from the stream after every number of blocks.

    At the last token of the prompt the deepest entry is compared with the model's own log-probabilities.

    Args:
        tokens: texts that are one token each, or token ids; by default the likeliest next token of each prompt.
        position: a single role, or an integer from the prompt's end.

    Raises:
        ValueError: a text that is not one token, an unknown position, or a model whose unembedding is not read exactly.
    """
    from transformer_lens.tools.analysis import logit_readout

    chat = as_tokens(model.tokenizer, prompts)
    name, columns = one_position(chat, position)
    before = collect(model, chat, sites="resid_pre", positions=position)["resid_pre"][:, :, 0]
    after = collect(model, chat, sites="resid_post", layers=model.n_layers - 1, positions=position)[
        "resid_post"
    ]
    stream = torch.cat([before, after[:, :, 0]], dim=1).to(model.device)
    ids: Tensor | None
    if tokens is None:
        ids = logit_readout(model.bridge, stream[:, -1], top_k=1).top_ids
        texts: tuple[str, ...] = ("own first token",)
        readout = logit_readout(model.bridge, stream, targets=ids, return_type="log_probs")
    else:
        ids = torch.tensor([token_id(model, token) for token in tokens], device=model.device)
        texts = tuple(str(model.tokenizer.decode([int(i)])) for i in ids)
        readout = logit_readout(model.bridge, stream, targets=ids.tolist(), return_type="log_probs")
        ids = ids.expand(len(chat), -1)
    assert ids is not None and readout.target_ranks is not None
    log_probs = readout.values.float().cpu()
    if all(column == len(row) - 1 for column, row in zip(columns, chat.ids, strict=True)):
        own = next_token_log_probs(model, chat).gather(1, ids.cpu())
        if (gap := float((log_probs[:, -1] - own).abs().max())) > _TOLERANCE[model.dtype]:
            raise ValueError(
                f"{model.name}: the unembedding read by the lens is {gap:.2g} nats away from the model's own; "
                "this architecture does more between the last block and the logits"
            )
    return LogitLens(
        log_probs=log_probs,
        ranks=readout.target_ranks.cpu(),
        entropy=readout.entropy.float().cpu(),
        tokens=texts,
        position=name,
    )


def one_position(tokens: ChatTokens, position: str | int) -> tuple[str, list[int]]:
    """The role of a single token, and its index in each prompt.

    Raises:
        ValueError: a region or several positions, or an unknown role.
    """
    names, columns = tokens.resolve([position])
    if len(names) != 1:
        raise ValueError(f"position must be a single token, got {position!r}, which is {len(names)} of them")
    return names[0], columns[:, 0].tolist()


def token_id(model: ChatModel, token: str | int) -> int:
    """Id of a token given by its text or id.

    Raises:
        ValueError: a text that is not exactly one token, or an id outside the vocabulary.
    """
    if isinstance(token, str):
        ids = model.tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(f"{token!r} is {len(ids)} tokens of {model.name}; give one token, or its id")
        return int(ids[0])
    if not 0 <= token < model.d_vocab:
        raise ValueError(f"token id must be in 0..{model.d_vocab - 1}, got {token}")
    return token


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Patching(Shown):
    """The metric after replacing one activation of the corrupted run by that of the clean run."""

    values: Float[Tensor, "prompt layer role"]
    """The metric with the activation at that layer and role replaced."""
    clean: Float[Tensor, " prompt"]
    """The metric of the clean run."""
    corrupted: Float[Tensor, " prompt"]
    """The metric of the corrupted run."""
    layers: tuple[int, ...]
    """What the layer axis counts."""
    roles: tuple[str, ...]
    """What the role axis counts."""
    site: Site
    """Where activations were replaced."""

    def recovered(self, layer: int, role: str) -> Estimate:
        """Recovered share of the difference: sum of (patched - corrupted) over sum of (clean - corrupted).

        0 as the corrupted run, 1 as the clean one; the interval is a bootstrap over prompts. Not measurable where the
        runs do not differ.

        Raises:
            ValueError: a layer or role that was not patched.
        """
        if layer not in self.layers or role not in self.roles:
            raise ValueError(
                f"layer {layer} at {role} was not patched; layers {self.layers}, roles {', '.join(self.roles)}"
            )
        patched = self.values[:, self.layers.index(layer), self.roles.index(role)]
        moved, gap = (patched - self.corrupted).double(), (self.clean - self.corrupted).double()
        if float(gap.abs().max()) < 1e-6:
            return Estimate.unmeasured(len(gap), unit="share")
        return ratio_with_interval(moved.numpy(), gap.numpy(), unit="share")

    def figure(self) -> go.Figure:
        """Recovered share by layer and role."""
        return head_map(
            [[self.recovered(layer, role).value for role in self.roles] for layer in self.layers],
            title=f"Share recovered by patching {self.site}, n = {len(self.clean)} pairs",
            label="recovered share",
            layers=self.layers,
            rows=self.roles,
        )

    def _card(self) -> Card:
        rows = [
            (role, best, self.recovered(best, role))
            for role in self.roles
            for best in [max(self.layers, key=lambda layer: self.recovered(layer, role).value)]
        ]
        return Card(
            title=f"Patching {self.site} by role, {len(self.clean)} pairs",
            facts={
                "metric, clean": mean_with_interval(self.clean.tolist()),
                "metric, corrupted": mean_with_interval(self.corrupted.tolist()),
            },
            tables=[
                Table(
                    header=("role", "best layer", "recovered"),
                    rows=rows,
                    title="recovered share of the difference",
                )
            ],
            notes=["The best of many layers is the largest of noisy numbers; the figure shows all of them."],
        )


@torch.no_grad()
def patch(
    model: ChatModel,
    clean: PromptInput,
    corrupted: PromptInput,
    *,
    metric: Metric | tuple[str, str],
    site: Site = "resid_pre",
    layers: Layers = None,
    positions: Positions = ("t_inst", "t_post_inst"),
) -> Patching:
    """Replace one activation at a time of each corrupted run by that of its clean run, and read the next token.

    Args:
        clean: one prompt for each corrupted prompt.
        metric: a function of the next token's log-probabilities, or two tokens, whose difference in log-probability
            (first minus second) is the metric.
        site: where; attention and MLP outputs tell which kind of component carries it.
        positions: single-token roles, matched between the two prompts.

    Raises:
        ValueError: prompts that are not pairs, an unknown site, layer or role, a role that one of the prompts does not
            have, or a metric token that is not one token.
    """
    measure = _metric(model, metric)
    first, second = as_tokens(model.tokenizer, clean), as_tokens(model.tokenizer, corrupted)
    if len(first) != len(second):
        raise ValueError(f"clean and corrupted are pairs: got {len(first)} and {len(second)} prompts")
    chosen = model.layer_list(layers)
    roles, _ = first.resolve(positions)
    theirs, columns = second.resolve(positions)
    if roles != theirs:
        raise ValueError(
            f"the prompts have other roles: clean {', '.join(roles)}; corrupted {', '.join(theirs)}"
        )
    source = collect(model, first, sites=site, layers=chosen, positions=roles)[site].to(model.device)
    values = torch.empty(len(second), len(chosen), len(roles))
    unpatched = torch.empty(len(second))
    for row, ids in enumerate(second.ids):
        for r in range(len(roles)):
            logits = _patched_logits(model, ids, site, chosen, source[row, :, r], int(columns[row, r]))
            measured = measure(logits.float().log_softmax(-1)).float().cpu()
            unpatched[row], values[row, :, r] = measured[0], measured[1:]
    return Patching(
        values=values,
        clean=measure(next_token_log_probs(model, first)).float(),
        corrupted=unpatched,
        layers=chosen,
        roles=tuple(roles),
        site=site,
    )


def _patched_logits(
    model: ChatModel,
    ids: Sequence[int],
    site: Site,
    layers: Sequence[int],
    source: Float[Tensor, "layer d_model"],
    column: int,
) -> Float[Tensor, "row d_vocab"]:
    """Next-token logits of one prompt: row 0 as it is, row 1 + i with the activation at layers[i] replaced."""

    def edit(i: int) -> Callable[[Tensor], Tensor]:
        def replaced(value: Tensor) -> Tensor:
            value = value.clone()
            value[1 + i, column] = source[i].to(value)
            return value

        return replaced

    batch = torch.tensor([list(ids)], device=model.device).expand(1 + len(layers), -1)
    with model.hooks([(site, layer, edit(i)) for i, layer in enumerate(layers)]):
        return model.hf(input_ids=batch, use_cache=False, logits_to_keep=1).logits[:, -1]


def _metric(model: ChatModel, metric: Metric | tuple[str, str]) -> Metric:
    if callable(metric):
        return metric
    if isinstance(metric, str) or len(metric) != 2:
        raise ValueError(
            f"metric must be two tokens, such as (' Yes', ' No'), or a function, got {metric!r:.60}"
        )
    a, b = (token_id(model, token) for token in metric)
    return lambda log_probs: log_probs[:, a] - log_probs[:, b]
