"""Reward models: a Bradley-Terry head on a loaded model, fitted on states or trained with TRL.

    reward = train_reward_model(model, preferences)                  # a head on the frozen model: seconds
    reward = train_reward_model(model, preferences, config=RewardModelConfig(method="lora"), out="runs/reward")
    reward.score(prompts, replies)                                   # one number a reply
    reward.per_token(prompts, replies)[0]                            # its reward after every token
    reward.accuracy(preferences["test"])

P(a preferred to b) = sigmoid(r(a) - r(b)), so only differences of one prompt are fitted; the bias is set afterwards
such that reference replies score 0 on average (as in the released code of Chang et al. 2024, arXiv:2404.08495). The
reward is linear in the state of the last token after the final norm, w . h + b: the end-of-turn token of a finished
reply, and of any prefix its last token. Only finished replies were fitted, so a prefix's reward is a reading, not a
prediction.

`method="head"` fits w on a frozen model by L2-regularised maximum likelihood, which has one optimum; `method="lora"`
trains an adapter and the head with `trl.RewardTrainer`. TRL's sequence classifiers find the last token by the padding
id, which is also the end-of-turn token of many chat models: here the attention mask decides.

Source: Bradley and Terry 1952; Stiennon et al. 2020, arXiv:2009.01325, section 3.4.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.preferences import PreferencePair
from interp.directions import Direction
from interp.engine.applying import Applied
from interp.engine.batching import plan_batches, run_batches
from interp.engine.budgets import PassBudget
from interp.engine.log_probs import final_states
from interp.engine.unembedding import completion_states
from interp.models.chat_model import ChatModel
from interp.models.contexts import check_context
from interp.models.tokens import ChatTokens, PromptInput, as_tokens, tokenize
from interp.stats import Estimate, rate
from interp.storage.settings import CheckedSettings, Count, NonNegative, Positive

logger = logging.getLogger(__name__)

Replies = Sequence[str] | Sequence[Sequence[int]]
"""Replies as text, which are finished, or as token ids, which are taken as they are."""


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig(CheckedSettings):
    """Settings of a reward model."""

    method: Literal["head", "lora"] = "head"
    """Whether only the head is fitted, on a frozen model, or an adapter is trained with it."""
    penalty: NonNegative = 1e-2
    """Half the squared norm of the head (of states scaled to unit variance) has this weight in the loss (`head`)."""
    epochs: Positive = 1.0
    """Passes over the pairs (`lora`); 1 as published."""
    batch_size: Count = 16
    """Pairs of a step (`lora`)."""
    learning_rate: Positive = 1e-3
    """Peak learning rate (`lora`)."""
    rank: Count = 8
    """Rank of the adapter (`lora`)."""
    target_modules: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "down_proj")
    """Modules that get an adapter (`lora`)."""
    max_completion_tokens: Count = 256
    """Tokens at which a reply is cut, its end included; pairs that are equal then are refused."""
    seed: int = 0
    """Seed of initialisation and order."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RewardModel:
    """A head on a model: the reward of a reply is weight . state + bias at its last token."""

    model: ChatModel
    """The model whose states are read, its adapter included."""
    weight: Float[Tensor, " d_model"]
    """The head, float32."""
    bias: float
    """Set so that reference replies score 0."""
    about: Mapping[str, Any]
    """What it was made of: base weights, tokenizer and template, preferences, settings, held-out accuracy."""

    def __post_init__(self) -> None:
        if self.weight.shape != (self.model.d_model,):
            raise ValueError(
                f"the head has width {self.weight.numel()}, {self.model.name} has {self.model.d_model}: it is of "
                "another model"
            )
        if not torch.isfinite(self.weight).all():
            raise ValueError(
                "the head holds NaN or infinite values; train it again at a smaller learning rate"
            )

    def score_states(self, states: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest"]:
        """The reward of states of the last layer after the final norm, float32."""
        return states.float() @ self.weight.to(states.device) + self.bias

    def score(self, prompts: PromptInput, replies: Replies) -> Float[Tensor, " sample"]:
        """The reward of one reply to each prompt, on the CPU.

        Raises:
            ValueError: not one reply per prompt, or prompts of another tokenizer.
        """
        tokens, ids = self._tokens(prompts, replies)
        return self.score_states(final_states(self.model, with_replies(tokens, ids)))

    def per_token(self, prompts: PromptInput, replies: Replies) -> list[Float[Tensor, " prefix"]]:
        """The reward after every prefix of a reply, the empty one first: one number more than it has tokens.

        One pass gives them all, since a token's state does not depend on later ones.
        """
        tokens, ids = self._tokens(prompts, replies)
        return [self.score_states(states) for states in prefix_states(self.model, tokens, ids)]

    def accuracy(self, pairs: Sequence[PreferencePair]) -> Estimate:
        """Share of pairs whose preferred reply has the larger reward, with its Wilson interval."""
        return rate([bool(margin > 0) for margin in self.margins(pairs)])

    def margins(self, pairs: Sequence[PreferencePair]) -> Float[Tensor, " pair"]:
        """Reward of the chosen minus that of the rejected reply."""
        limit = int(self.about["config"]["max_completion_tokens"])
        chosen, rejected = (
            self.score_states(final_states(self.model, side))
            for side in pair_tokens(self.model, pairs, limit)
        )
        return chosen - rejected

    def check_tokenizer(self, other: ChatModel) -> None:
        """Raise a ValueError unless token ids of another model mean the same here."""
        if other.tokenizer.get_vocab() != self.model.tokenizer.get_vocab():
            raise ValueError(
                f"the reward model reads {self.model.name}'s tokens, whose tokenizer is not that of {other.name}; "
                "train a reward model on a model with that tokenizer"
            )

    @property
    def direction(self) -> Direction:
        """The head as a direction at the last layer; it reads states after the final norm, of which this is blind."""
        return Direction(
            vector=self.weight,
            layer=self.model.n_layers - 1,
            position="-1",
            site="resid_post",
            sign="preferred - rejected",
            kind="reward_head",
            provenance=dict(self.about),
        )

    def _tokens(self, prompts: PromptInput, replies: Replies) -> tuple[ChatTokens, list[list[int]]]:
        tokens = as_tokens(self.model.tokenizer, prompts)
        if len(replies) != len(tokens):
            raise ValueError(f"got {len(replies)} replies for {len(tokens)} prompts; give one each")
        if tokens.tokenizer is not self.model.tokenizer and (
            tokens.tokenizer.get_vocab() != self.model.tokenizer.get_vocab()
        ):
            raise ValueError(
                f"these tokens are not of {self.model.name}'s tokenizer, which the reward model reads"
            )
        ids = reply_ids(self.model, replies)
        check_context(self.model, tokens, new_tokens=[len(row) for row in ids])
        return tokens, ids


def bradley_terry_loss(chosen: Float[Tensor, " pair"], rejected: Float[Tensor, " pair"]) -> Float[Tensor, ""]:
    """Mean of -log sigmoid(r(chosen) - r(rejected)), in nats per pair; ln 2 at equal rewards."""
    return -torch.nn.functional.logsigmoid(chosen - rejected).mean()


def fit_bradley_terry(
    differences: Float[Tensor, "pair d_model"],
    *,
    penalty: float | int,
    scale: Float[Tensor, " d_model"] | None = None,
) -> Float[Tensor, " d_model"]:
    """The w that minimises the mean of -log sigmoid(w . difference) + penalty |w scale|^2 / 2, in float64.

    Logistic regression without an intercept on the differences and their negatives.

    Args:
        differences: features of the preferred reply minus those of the other.
        scale: spread of the features, in units of which the penalty counts; 1 when None.

    Raises:
        ValueError: no pairs, or differences that are not finite.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    if not len(differences) or not torch.isfinite(differences).all():
        raise ValueError(f"a reward is fitted on finite states of pairs, got {len(differences)} pairs")
    unit = torch.ones(differences.shape[1]) if scale is None else scale.clamp(min=1e-6 * float(scale.max()))
    x = (differences / unit).double().cpu().numpy()
    strength = 1 / (2 * len(x) * max(float(penalty), 1e-10))
    model = LogisticRegression(C=strength, fit_intercept=False, max_iter=2000, tol=1e-8)
    model.fit(np.concatenate([x, -x]), np.repeat([1, 0], len(x)))
    return (torch.from_numpy(model.coef_[0]) / unit.double().cpu()).float()


def pair_tokens(
    model: ChatModel, pairs: Sequence[PreferencePair], max_completion_tokens: int
) -> tuple[ChatTokens, ChatTokens]:
    """Every pair's conversation followed by its chosen and by its rejected reply, ended or cut.

    Raises:
        ValueError: a conversation that does not fit into the context, or a pair that is equal once it is cut.
    """
    if not pairs:
        raise ValueError("no preference pairs; give at least one")
    several = any(pair.before for pair in pairs)
    tokens = tokenize(
        model.tokenizer, [pair.messages for pair in pairs] if several else [pair.prompt for pair in pairs]
    )
    sides = [
        [ids[:max_completion_tokens] for ids in reply_ids(model, texts)]
        for texts in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    ]
    for pair, chosen, rejected in zip(pairs, *sides, strict=True):
        if chosen == rejected:
            raise ValueError(
                f"pair {pair.id}: both replies begin with the same {max_completion_tokens} tokens; raise "
                "max_completion_tokens or remove the pair"
            )
    for side in sides:
        check_context(model, tokens, new_tokens=[len(row) for row in side])
    return with_replies(tokens, sides[0]), with_replies(tokens, sides[1])


def reply_ids(model: ChatModel, replies: Replies) -> list[list[int]]:
    """Token ids of replies; texts get the end-of-turn token, ids stay as they are."""
    end = model.tokenizer.eos_token_id
    ended = [] if end is None else [int(end)]  # pyright: ignore[reportArgumentType]
    return [
        [*model.tokenizer(reply, add_special_tokens=False)["input_ids"], *ended]  # pyright: ignore[reportGeneralTypeIssues]
        if isinstance(reply, str)
        else list(reply)
        for reply in replies
    ]


def with_replies(tokens: ChatTokens, replies: Sequence[Sequence[int]]) -> ChatTokens:
    """The prompts continued by these tokens, as prefilled turns."""
    return replace(
        tokens,
        ids=tuple((*ids, *reply) for ids, reply in zip(tokens.ids, replies, strict=True)),
        offsets=(),
        prefills=tuple(tokens.prefill(row) for row in range(len(tokens))),
        given=None,
    )


@torch.no_grad()
def prefix_states(
    model: ChatModel, tokens: ChatTokens, replies: Sequence[Sequence[int]]
) -> list[Float[Tensor, "prefix d_model"]]:
    """States after the final norm at the prompt's last token and at every token of the reply, float32, on the CPU."""
    # The state of the last token is that which would predict a further one, whichever that is.
    further = [[*reply, 0] for reply in replies]
    lengths = [len(ids) + len(reply) for ids, reply in zip(tokens.ids, further, strict=True)]
    budget = PassBudget.for_(model)
    plan = plan_batches(
        lengths, budget=budget.plain_tokens, max_rows=budget.rows, overhead=budget.overhead_tokens
    )
    out: list[Tensor] = [torch.empty(0)] * len(tokens)

    def run(rows: list[int]) -> None:
        final = completion_states(model, tokens, further, rows, Applied([]))
        for row, states in zip(rows, final.per_text(final.states), strict=True):
            out[row] = states.float().cpu()

    for _ in run_batches(plan, run, max_rows=budget.rows):
        pass
    return out
