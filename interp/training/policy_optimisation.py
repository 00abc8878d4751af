"""PPO with a value head, and DR-PO: PPO whose rollouts start from cuts of reference answers.

    done = optimise_policy(model, prompts, reward.score, out="runs/ppo", config=PolicyConfig())
    done = optimise_policy(model, prompts, reward.score, out="runs/dr-po", config=PolicyConfig(beta=1.0),
                           references=replies)
    done.records[-1].kl, done.collapsed

TRL has no PPO since version 1.10, so this one is ours. Each update draws prompts, resets a share `beta` of them to a
uniform cut of their reference answer, lets the policy finish (`interp.training.rollouts`), scores the answers, shapes
the rewards by KL to the model before training, and takes clipped steps on whitened GAE advantages. Forced tokens have
no part in the policy loss; as in the released code they have one in KL reward, GAE, whitening and value loss, unless
`forced="everywhere"`. With `beta` 0 references are never looked at.

Every random number of update k comes from the seed and k alone, so that a killed run continues to the same weights. A
batch whose KL passes a bound, or whose answers are empty, stops the run, and the result says so.

Sources: Schulman et al. 2017, arXiv:1707.06347; Chang et al. 2024, arXiv:2404.08495. Deviations: the value head shares
the policy's network (theirs is a model of its own that starts as the reward model; `value_head` starts ours as one).
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import TrainerCallback

from interp.engine.batching import pad_id
from interp.models.chat_model import ChatModel
from interp.models.contexts import check_context
from interp.models.tokens import ChatTokens, PromptInput, as_tokens
from interp.storage.locks import folder_lock, resolved
from interp.storage.paths import expanded
from interp.storage.stages import StageCache
from interp.training.advantages import gae, kl_shaped_rewards, masked_mean, whiten
from interp.training.policy_config import (
    OptimisedPolicy,
    PolicyConfig,
    RewardFunction,
    UpdateRecord,
    collapse_of,
    logged,
)
from interp.training.policy_files import load_state, policy_key, read_policy, save_state, write_policy
from interp.training.policy_models import PolicyInTraining, policy_in_training
from interp.training.policy_updates import Batch, Targets, outputs_of, padded, ppo_steps
from interp.training.reporting import Reporter
from interp.training.reward_models import Replies, RewardModel, reply_ids
from interp.training.rollouts import Rollouts, draw_resets, empty_share, prompt_rows, roll_out, scores_of

logger = logging.getLogger(__name__)


def optimise_policy(
    model: ChatModel,
    prompts: PromptInput,
    reward: RewardFunction | RewardModel,
    *,
    out: str | Path,
    config: PolicyConfig | None = None,
    references: Replies | None = None,
    start: str | Path | None = None,
    value_head: RewardModel | None = None,
    report_to: Sequence[str] = (),
    callbacks: Sequence[TrainerCallback] = (),
) -> OptimisedPolicy:
    """Train a policy from a model, which stays as it is, and write it to `out`.

    Args:
        reward: scores answers; a reward model must share the tokenizer.
        references: an answer to each prompt, for resets; needed where `beta` is above 0.
        start: adapter to continue; the KL is to the model with it.
        value_head: a reward model on the same network, whose head the value head starts from.
        report_to: names of trackers, as transformers has them (`tensorboard`, `wandb`, `trackio`).
        callbacks: callbacks of transformers' trainer, which see every update as a step, and may ask to stop.

    Raises:
        ValueError: no references for resets, another tokenizer, a prompt that does not fit, or losses or scores that
            are not numbers.
    """
    config, out = PolicyConfig() if config is None else config, resolved(expanded(out))
    tokens = as_tokens(model.tokenizer, prompts)
    check_context(model, tokens, new_tokens=config.max_new_tokens)
    if isinstance(reward, RewardModel):
        reward.check_tokenizer(model)
        reward = reward.score
    if config.beta and references is None:
        raise ValueError(f"beta is {config.beta}: resets need references, an answer to each prompt")
    given = [[0]] * len(tokens) if references is None else reply_ids(model, references)
    if len(given) != len(tokens):
        raise ValueError(f"got {len(given)} references for {len(tokens)} prompts; give one each")
    given = [ids[: config.max_new_tokens] for ids in given]
    key = policy_key(model, tokens, given if config.beta else [], config, start)
    with folder_lock(out):
        if (done := read_policy(out, key)) is not None:
            return done
        cache = StageCache(out.with_name(f"{out.name}.parts"), {"run": key})
        with policy_in_training(model, config, start) as policy:
            if value_head is not None:
                head = policy.network.head
                head.weight.data[0] = value_head.weight.to(head.weight)
                head.bias.data[0] = value_head.bias
            run = _Run(model, policy, reward, config, tokens, given, cache)
            with Reporter(policy.network.module, model.tokenizer, out, report_to, callbacks) as reporter:
                records, collapsed = run.all_updates(reporter)
            policy.save(out)
        done = write_policy(out, key, records, collapsed)
        cache.remove()
    return done


class _Run:
    """The updates of one run."""

    def __init__(
        self,
        model: ChatModel,
        policy: PolicyInTraining,
        reward: RewardFunction,
        config: PolicyConfig,
        prompts: ChatTokens,
        references: Sequence[Sequence[int]],
        cache: StageCache,
    ) -> None:
        self.model, self.policy, self.network = model, policy, policy.network
        self.reward, self.config, self.prompts, self.references = reward, config, prompts, references
        self.cache, self.micro_batch = cache, config.micro_batch
        self.trained = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        self.optimiser = torch.optim.AdamW(
            self.trained.values(), lr=float(config.learning_rate), eps=1e-5, weight_decay=0.0
        )

    def all_updates(self, reporter: Reporter) -> tuple[list[UpdateRecord], str | None]:
        """Run the updates that are left, and stop at a collapse."""
        records = list[UpdateRecord]()
        if (resumed := load_state(self.cache, self.trained, self.optimiser)) is not None:
            records, self.micro_batch = resumed
            logger.warning("continuing at update %d", len(records))
        reporter.begin(len(records), self.config.updates)
        collapsed = collapse_of(records, self.config) if records else None
        while len(records) < self.config.updates and collapsed is None and not reporter.stop_asked:
            records.append(self._update(len(records), records[-1].tokens if records else 0))
            reporter.log(len(records), logged(records[-1]))
            if (collapsed := collapse_of(records, self.config)) is not None:
                logger.warning("%s", collapsed)
            elif len(records) % self.config.save_every == 0 and len(records) < self.config.updates:
                save_state(self.cache, self.trained, self.optimiser, records, self.micro_batch)
        return records, collapsed

    def _update(self, number: int, tokens_before: int) -> UpdateRecord:
        config = self.config
        generator = torch.Generator().manual_seed(1_000_003 * config.seed + number)
        places = range(number * config.rollouts, (number + 1) * config.rollouts)
        rows = prompt_rows(len(self.prompts), places, seed=config.seed)
        prompts = self.prompts.take(rows)
        seed = int(torch.randint(2**31, (1,), generator=generator))
        # Of a generator of their own: without resets everything else is drawn as it is with them.
        resets = torch.Generator().manual_seed(seed)
        prefixes = draw_resets([self.references[row] for row in rows], share=config.beta, generator=resets)
        rollouts = roll_out(
            self.policy.live.refreshed(),
            prompts,
            prefixes,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=seed,
        )
        scores = scores_of(rollouts, self.reward, missing_end_score=config.missing_end_score)
        batch = padded(rollouts, padding=pad_id(self.model), device=self.model.device)
        targets, kl, forced_kl = self._targets(batch, rollouts, scores)
        for group in self.optimiser.param_groups:
            group["lr"] = float(config.learning_rate) * (1 - number / config.updates)
        count = -(-len(rows) // config.minibatches)
        losses = ppo_steps(
            self.network,
            self.optimiser,
            batch,
            targets,
            [
                part.to(batch.ids.device)
                for _ in range(config.epochs)
                for part in torch.randperm(len(rows), generator=generator).split(count)
            ],
            clip=config.clip,
            value_clip=config.value_clip,
            value_coefficient=config.value_coefficient,
            micro_batch=self.micro_batch,
        )
        self.micro_batch = losses.micro_batch
        generated = torch.tensor(rollouts.generated, dtype=torch.float32)
        returns, mask = targets.returns, targets.value_mask
        spread = masked_mean((returns - masked_mean(returns, mask)) ** 2, mask)
        error = masked_mean((returns - targets.old.values) ** 2, mask)
        return UpdateRecord(
            update=number + 1,
            tokens=tokens_before + sum(map(len, rollouts.answers)),
            reward=float(scores.mean()),
            kl=kl,
            forced_kl=forced_kl,
            entropy=float(masked_mean(targets.old.entropies, targets.policy_mask)),
            length=float(generated.mean()),
            empty=empty_share(rollouts),
            finished=sum(rollouts.finished) / len(rollouts),
            reset_share=sum(n > 0 for n in rollouts.forced) / len(rollouts),
            policy_loss=losses.policy,
            value_loss=losses.value,
            clip_share=losses.clip_share,
            explained=float(1 - error / spread) if spread > 0 else float("nan"),
        )

    def _targets(self, batch: Batch, rollouts: Rollouts, scores: Tensor) -> tuple[Targets, float, float]:
        """Advantages and returns under the KL-shaped reward, and KL of generated and forced tokens."""
        config, device = self.config, batch.ids.device
        old = outputs_of(self.network, batch, self.micro_batch)
        before = outputs_of(self.policy.reference, batch, self.micro_batch)
        present = batch.answers >= 0
        forced = torch.tensor(rollouts.forced, device=device)[:, None]
        free = present & (torch.arange(present.shape[1], device=device) >= forced)
        valued = free if config.forced == "everywhere" else present
        ratios, lengths = old.log_probs - before.log_probs, present.sum(1)
        rewards = kl_shaped_rewards(scores.to(device), ratios, lengths, kl_coefficient=config.kl_coefficient)
        if config.whiten_rewards:
            rewards = torch.where(valued, whiten(rewards, valued, keep_mean=True), rewards)
        advantages = gae(rewards, old.values, lengths, gamma=config.gamma, lam=config.gae_lambda)
        targets = Targets(
            old=old,
            advantages=whiten(advantages, valued),
            returns=advantages + old.values,
            policy_mask=free,
            value_mask=valued,
        )
        return (
            targets,
            float((ratios * free).sum(1).mean()),
            float((ratios * (present & ~free)).sum(1).mean()),
        )
