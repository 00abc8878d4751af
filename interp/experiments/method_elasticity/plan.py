"""What comparing methods of alignment costs, by stage (`interp.experiments.plans`)."""

from dataclasses import dataclass, replace
from functools import cached_property

from interp.data.corpora import Corpus
from interp.data.examples import Example
from interp.data.prompt_sets import PAIRED_KINDS, Kind
from interp.data.replies import REFUSALS, STUBS
from interp.engine.costs import Work
from interp.experiments.method_elasticity import Config
from interp.experiments.method_elasticity.results import METHODS, Arm
from interp.experiments.sizes import Sizes, as_part, stubs
from interp.experiments.tracked import checkpoint, reference, with_borderline
from interp.experiments.training_work import policy_optimised, preferences, reward_fitted
from interp.tracking.records import TrackingSettings
from interp.training.policy_config import PolicyConfig

BOUNDS = (
    "no alignment is counted as stopping before its pairs or updates are used up, which its refusal rate decides, and "
    "both matchings as taking different checkpoints; replies at full length"
)
_ROLLOUT_METHODS = ("ppo", "dr-po", "grpo", "tree")
_EPOCHS = 2
"""Passes of PPO over a batch; GRPO has one (`methods.policy_settings`)."""
_TEST_PAIRS = 16
"""Pairs that a reward model's accuracy is measured on (`methods.material`)."""


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work by stage, of all seeds."""
    seed = _Seed(config, with_borderline(sizes))
    return {
        "align": (seed.start + Work.total(map(seed.aligned, seed.arms)) + seed.rewards) * config.seeds,
        "unlearn and align again": (seed.unlearned + seed.aligned_again) * config.seeds,
    }


@dataclass(frozen=True, eq=False)
class _Seed:
    """The legs of one seed."""

    config: Config
    sizes: Sizes

    @property
    def arms(self) -> list[Arm]:
        """Arms that are aligned."""
        return [arm for arm in self.config.arms if arm != "none"]

    @cached_property
    def pairs(self) -> list[tuple[str, str, str]]:
        """Prompt, chosen and rejected reply of as many pairs of each kind as an alignment has."""
        n = {"harmful": self.config.n_pairs - self.config.n_harmless, "harmless": self.config.n_harmless}
        return [pair for kind in PAIRED_KINDS for pair in self._pairs(kind, n[kind])]

    def _pairs(self, kind: Kind, n: int) -> list[tuple[str, str, str]]:
        rows = enumerate(self.sizes.part(kind, "train", n).texts)
        both = [(text, REFUSALS[i % len(REFUSALS)], STUBS[i % len(STUBS)]) for i, text in rows]
        return both if kind == "harmful" else [(text, stub, refusal) for text, refusal, stub in both]

    def measured_on(self, split: str) -> Sizes:
        """The sizes with the prompts of a split as those that are measured."""
        config, prompts = self.config, self.sizes.prompts
        n = config.n_match if split == "val" else config.n_test
        parts = {
            **prompts.parts,
            ("harmful", "test"): self.sizes.part("harmful", split, n),  # pyright: ignore[reportArgumentType]
            ("harmless", "test"): self.sizes.part("harmless", "test", config.n_other),
            ("borderline", "test"): self.sizes.part("borderline", "test", 1),
        }
        return replace(self.sizes, prompts=replace(prompts, parts=parts))

    def measures(self, *names: str) -> TrackingSettings:
        """Settings of what is measured."""
        config = self.config
        return TrackingSettings(
            measures=names,  # pyright: ignore[reportArgumentType]
            n=max(config.n_test, config.n_match, config.n_other),
            n_fit=config.n_fit,
            n_documents=min(config.n_test, 8),
            n_samples=config.n_samples,
            max_new_tokens=config.max_new_tokens,
        )

    @cached_property
    def corpora(self) -> dict[str, Corpus]:
        """Replies whose code lengths are followed."""
        asked = self.sizes.part("harmful", "test", self.config.n_test).texts
        return {
            name: Corpus(name, tuple(replies[i % len(replies)] for i in range(len(asked))), asked)
            for name, replies in (("refusals", REFUSALS), ("stubs", STUBS))
        }

    @property
    def start(self) -> Work:
        """Warm-up, the base's samples on both splits, and the reference."""
        config, tested = self.config, self.measured_on("test")
        fitted = reference(
            self.measures("compression", "beliefs", "directions", "shift"), tested, corpora=self.corpora
        )
        samples = Work.total(
            reference(self.measures("kl"), sizes) for sizes in (tested, self.measured_on("val"))
        )
        warm = [Example(*pair[:2]) for pair in self._pairs("harmful", config.warm_up)]
        trained = self.sizes.supervised(warm, batch_size=config.batch_size) if warm else Work()
        return fitted + samples + trained

    def aligned(self, arm: Arm) -> Work:
        """One alignment, measured from its start to its end."""
        config = self.config
        steps = config.updates if arm in _ROLLOUT_METHODS else -(-config.n_pairs // config.batch_size)
        measured = checkpoint(self.measures("refusal", "kl"), self.measured_on("val"), own_samples=False)
        return self._trained(arm) + measured * (1 + steps // config.align_every)

    def _trained(self, arm: Arm) -> Work:
        config = self.config
        if arm == "sft":
            examples = [Example(prompt, chosen) for prompt, chosen, _ in self.pairs]
            return self.sizes.supervised(examples, batch_size=config.batch_size)
        if arm not in _ROLLOUT_METHODS:
            objective = "dpo" if arm == "shuffled" else arm
            return preferences(self.sizes, self.pairs, objective, batch_size=config.batch_size)
        grouped = arm == "grpo"
        return policy_optimised(
            self.sizes,
            as_part([pair[0] for pair in self.pairs]),
            PolicyConfig(updates=config.updates, max_new_tokens=config.answer_tokens),
            rollouts=config.rollouts,
            passes=1 if grouped else _EPOCHS,
            references=3 if grouped else 2,
        )

    @property
    def rewards(self) -> Work:
        """Reward models: of written pairs, and of pairs of leaves of trees."""
        config, sizes = self.config, self.sizes
        pairs = [pair for kind in PAIRED_KINDS for pair in self._pairs(kind, config.reward_pairs // 2)]
        held_out = [pair for kind in PAIRED_KINDS for pair in self._pairs(kind, _TEST_PAIRS // 2)]
        read = reward_fitted(sizes, pairs, held_out)
        work = read if {"ppo", "dr-po", "grpo"} & set(config.methods) else Work()
        if "tree" not in config.methods:
            return work
        nodes = [config.tree_branching**level for level in range(1, config.tree_depth + 1)]
        segment = -(-config.answer_tokens // config.tree_depth)
        asked = as_part([pair[0] for pair in pairs[: config.tree_prompts]])
        grown = sizes.replies(asked, segment + 1)
        tokens = len(asked) * sum(nodes) * segment
        grown = replace(grown, decoded_tokens=tokens, decoding_steps=segment * config.tree_depth)
        return work + grown + read

    @property
    def unlearned(self) -> Work:
        """Unlearning of every match and of the control that was not aligned."""
        config, tested = self.config, self.measured_on("test")
        methods = [arm for arm in self.arms if arm in METHODS]
        of_matching = {"refusal": len(self.arms), "kl": len(methods)}
        legs = sum(of_matching[name] for name in config.matchings) + ("none" in config.controls)
        texts = self.sizes.part("harmful", "train", config.n_stubs).texts
        steps = -(-config.n_stubs // config.batch_size)
        curve = checkpoint(
            self.measures("refusal", "compression", "kl"), tested, corpora=self.corpora, own_samples=False
        )
        inside = checkpoint(self.measures("beliefs", "directions", "shift"), tested, own_samples=False)
        return (
            self.sizes.supervised(stubs(texts, config.n_stubs), batch_size=config.batch_size)
            + curve * (1 + steps // config.unlearn_every)
            + inside * (1 + steps // config.inside_every)
        ) * legs

    @property
    def aligned_again(self) -> Work:
        """Second alignments."""
        again = self.config.align_again and "refusal" in self.config.matchings
        return Work.total(map(self.aligned, self.config.methods)) if again else Work()
