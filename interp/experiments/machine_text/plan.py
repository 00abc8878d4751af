"""What the study of machine-written text costs, by stage (`interp.experiments.plans`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from interp.data.human_texts import bundled_passages, read_human_texts
from interp.data.prompt_sets import PAIRED_KINDS
from interp.engine.costs import DECODE_ROWS, Work
from interp.experiments.machine_text import ARMS, Config
from interp.experiments.sizes import Sizes

BOUNDS = (
    "texts of the model are counted at their full length, and a reference or another generator as one of the size of "
    "--model"
)
_REFUSAL_ARMS, _REPLY_TOKENS = 3, 16
_INSTRUCTION = 48
"""Tokens around a text that is to be paraphrased, template included."""
_VERSIONS = 0.8
"""Share of a perturbed text's tokens that are behind its first change: what comes before runs once."""


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work by stage.

    Raises:
        ValueError: human texts that cannot be read.
    """
    human = bundled_passages() if not config.human else read_human_texts(config.human)
    lengths = sizes.counter.lengths(human.first(config.n_pairs).texts)
    return _Texts(
        config, sizes, [min(n, config.length) for n in lengths if n > config.prefix_tokens]
    ).stages()


@dataclass(frozen=True, eq=False)
class _Texts:
    """Texts of these numbers of tokens, written and read."""

    config: Config
    sizes: Sizes
    lengths: Sequence[int]

    def stages(self) -> dict[str, Work]:
        """Work by stage."""
        config, n = self.config, len(self.lengths)
        changed = 3 + len(config.decodings) + bool(config.generator)
        kinds = [self.sizes.part(kind, "train", config.n_prompts) for kind in PAIRED_KINDS]
        requests = self.sizes.part("harmful", "test", config.n_refusals)
        depths = len({*range(0, self.sizes.model.n_layers, config.depth_step), self.sizes.model.n_layers})
        lens = self.read(config.n_lens) * 2
        arm = self.written(config.n_steered) + self.read(config.n_steered)
        mark = self.written(config.n_marked) + self.read(config.n_marked)
        return {
            "write": self.written(n),
            "read": self.scored(n) * 2,
            "versions": (self.perturbed(config.n_slow) + self.regenerated(config.n_slow)) * 2,
            "attacks": self.scored(config.n_attacked) * changed
            + self.written(config.n_attacked) * (changed - 3)
            + self.paraphrased(config.n_attacked),
            "lens": replace(lens, unembedded=lens.unembedded * depths),
            "directions": Work(read_tokens=2 * sum(self.lengths)) + self.sizes.read(*kinds),
            "interventions": arm * len(ARMS)
            + self.sizes.replies(requests, _REPLY_TOKENS, arms=_REFUSAL_ARMS),
            "watermark": (mark + self.scored(config.n_marked)) * len(config.deltas),
        }

    def tokens(self, n: int) -> int:
        """Tokens of the first n texts."""
        return sum(self.lengths[:n])

    def written(self, n: int) -> Work:
        """Continuations of the beginnings of n texts."""
        n, config = min(n, len(self.lengths)), self.config
        return self.decoded(n, n * config.prefix_tokens, config.length - config.prefix_tokens)

    def decoded(self, rows: int, before: int, after: int) -> Work:
        """So many texts, after so many tokens of all beginnings, of so many further tokens each."""
        return Work(
            read_tokens=before,
            unembedded=rows,
            decoded_tokens=rows * (after - 1),
            decoding_steps=-(-rows // DECODE_ROWS) * (after - 1),
            cached_tokens=min(rows, DECODE_ROWS) * self.config.length,
        )

    def read(self, n: int) -> Work:
        """The distributions at every token of n texts."""
        return Work(read_tokens=self.tokens(n), unembedded=self.tokens(n))

    def scored(self, n: int) -> Work:
        """The same by all models that score."""
        return self.read(n) * (2 if self.config.reference else 1)

    def perturbed(self, n: int) -> Work:
        """n texts and their perturbed versions, as prefix trees."""
        tokens = round(self.tokens(n) * (1 + _VERSIONS * self.config.n_perturbations))
        return Work(read_tokens=tokens, unembedded=tokens)

    def regenerated(self, n: int) -> Work:
        """The second half of n texts, written again, and the likelihood of all of them."""
        n, versions = min(n, len(self.lengths)), self.config.n_regenerated
        half = self.tokens(n) // 2
        again = self.decoded(n * versions, half * versions, self.config.length // 2)
        tokens = half + half * (1 + versions)
        return again + Work(read_tokens=tokens, unembedded=tokens)

    def paraphrased(self, n: int) -> Work:
        """n texts in the model's other words."""
        n = min(n, len(self.lengths))
        return self.decoded(n, self.tokens(n) + n * _INSTRUCTION, self.config.length)
