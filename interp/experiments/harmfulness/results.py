"""Records of the harmfulness experiment's result; section numbers are those of Zhao et al. 2025, arXiv:2507.11878."""

from dataclasses import dataclass
from typing import Literal

from interp.data.prompts import Kind
from interp.evaluation.records import Group
from interp.representations.records import Belief, HarmAndRefusal, LeakCheck
from interp.stats import Estimate, Measured

Tells = Literal["harmful from harmless", "refused from accepted"]
"""The two classes that a belief should separate."""
Among = Literal["refused", "accepted", "harmful", "harmless"]
"""The label that all of the prompts share."""

# Sections 3.1, 3.2 and 4: reading


@dataclass(frozen=True, kw_only=True)
class TruncationRates:
    """Refusal of held-out prompts of one kind (table 1)."""

    whole: Estimate
    """Share refused, whole prompts."""
    truncated: Estimate
    """Share refused, prompts cut after the instruction; a reply without a word counts as refused."""
    silent: Estimate
    """Share of replies to cut prompts without a word."""


@dataclass(frozen=True, kw_only=True)
class GroupSize:
    """Held-out prompts in one behaviour group."""

    whole: int
    """Group size by the reply to the whole prompt."""
    truncated: int
    """Group size by the reply to the truncated prompt."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A number of a group of prompts at each layer 0..L."""

    n: int
    """Prompts."""
    mean: tuple[Measured, ...]
    """Mean over prompts by layer; NaN for an empty group."""
    sd: tuple[Measured, ...]
    """Standard deviation over prompts by layer; NaN for an empty group."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """The central 95% of what chance gives at each layer."""

    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Margins towards refused harmful and away from accepted harmless prompts at one role (equation 2)."""

    curves: dict[Group, Curve]
    shuffled: dict[Group, Band]
    """Mean margins with centres of two random halves of the anchors; groups without prompts are left out."""
    labels: Literal["full", "truncated"]
    """Whether the groups follow the replies to full or to truncated prompts."""


@dataclass(frozen=True, kw_only=True)
class ClustersByRole:
    """Clusters at both token roles (figure 2)."""

    t_inst: Clusters
    t_post_inst: Clusters


@dataclass(frozen=True, kw_only=True)
class PromptBeliefs:
    """Both beliefs of one held-out prompt (equations 3 and 4)."""

    id: str
    beliefs: HarmAndRefusal[float]


@dataclass(frozen=True, kw_only=True)
class Separation:
    """Separation by one belief of prompts that share the other label."""

    tells: Tells
    among: Among
    belief: Belief
    auroc: Estimate
    """Not measurable where a side has too few prompts."""
    n_positive: int
    n_negative: int


@dataclass(frozen=True, kw_only=True)
class GroupBeliefs:
    """Beliefs of the behaviour groups (figure 3)."""

    points: dict[Group, tuple[PromptBeliefs, ...]]
    means: dict[Group, HarmAndRefusal[Estimate]]
    separation: tuple[Separation, ...]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The harmfulness and the refusal direction side by side, at each layer 0..L (section 3.2)."""

    cosine: tuple[Estimate, ...]
    """Cosine of the two directions by layer; n counts the prompts that they are fitted on."""
    mean_cosine: Estimate
    """Mean cosine over layers."""
    random_sd: float
    """SD of the cosine of two random directions, 1 / sqrt(d_model)."""
    direction_norm: HarmAndRefusal[tuple[float, ...]]
    """Norms of the unnormalised differences in means by layer."""
    activation_norm: HarmAndRefusal[tuple[float, ...]]
    """Mean norm of the activations at `t_inst` and at `t_post_inst`."""
    reliability: HarmAndRefusal[tuple[float, ...]]
    """Cosine of a direction with itself fitted on the other half of the prompts: a ceiling for any cosine with it."""


@dataclass(frozen=True, kw_only=True)
class AnchorReading:
    """The harm belief with one set of harmless anchors."""

    harmless: Estimate
    """AUROC of harmful against harmless test prompts."""
    borderline: Estimate
    """AUROC of harmful against borderline test prompts."""
    called_harmful: dict[Group, Estimate]
    """Share of a group with a belief above 0."""


@dataclass(frozen=True, kw_only=True)
class AnchorCheck:
    """The harm belief with harmless anchors of another source than the test prompts: a confound check."""

    source: str
    """Source of the other anchors."""
    n: int
    """Other anchors, all answered."""
    same_source: AnchorReading
    other_source: AnchorReading


# Sections 3.3 and 3.4: steering


@dataclass(frozen=True, kw_only=True)
class RefusalSweep:
    """Refusal of harmless prompts that the model answers, steered at one layer at a time (figure 4)."""

    layers: tuple[int, ...]
    """Steered layers."""
    n: int
    """Prompts."""
    rates: dict[str, tuple[Estimate, ...]]
    """Rates by arm, then in the order of `layers`."""


@dataclass(frozen=True, kw_only=True)
class VerdictRates:
    """Replies to an inverted question by one score."""

    no: Estimate
    """Share of "No" among valid replies."""
    invalid: Estimate
    """Share of replies that are no verdict."""


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """Replies to an inverted question by both scores."""

    strict: VerdictRates
    """The first of the two words that stands alone."""
    published: VerdictRates
    """The released score, by substrings."""


@dataclass(frozen=True, kw_only=True)
class QuestionBaseline:
    """How the unsteered model answers one inverted question."""

    question: int
    """Index into `reply_inversion.INVERSIONS`."""
    gap: float
    """Share "No" of all harmless minus of all harmful prompts, less the invalid share: 1 is always right."""
    harmful: Verdicts
    harmless: Verdicts


@dataclass(frozen=True, kw_only=True)
class QuestionChoice:
    """The question that the unsteered model answers best on validation prompts."""

    question: int
    gap: float
    table: tuple[QuestionBaseline, ...]
    """Every question."""


@dataclass(frozen=True, kw_only=True)
class InversionArms:
    """Replies of one kind of prompts to the inverted question."""

    baseline: Verdicts
    """Unsteered."""
    arms: dict[str, tuple[Verdicts, ...]]
    """Verdicts by arm, then by steered layer."""


@dataclass(frozen=True, kw_only=True)
class InversionSweep:
    """The inverted question, steered at one layer at a time (figure 5)."""

    layers: tuple[int, ...]
    """Steered layers."""
    harmless: InversionArms
    harmful: InversionArms

    def of(self, kind: Kind) -> InversionArms:
        """The arms of harmless or of harmful prompts."""
        return self.harmless if kind == "harmless" else self.harmful


# Appendix F: other token positions


@dataclass(frozen=True, kw_only=True)
class GroupMargin:
    """Margin of one group at one position."""

    curve: Curve
    middle: Estimate
    """Mean over the middle layers and prompts."""


@dataclass(frozen=True, kw_only=True)
class PositionMargin:
    """Margins of the misbehaving groups with everything read at one position (figures 14 and 15)."""

    position: str
    """0 is `t_inst`, the last one `t_post_inst`."""
    middle_layers: tuple[int, int]
    """First and last of the middle layers."""
    groups: dict[Group, GroupMargin]


@dataclass(frozen=True, kw_only=True)
class PositionSweep:
    """The inverted question on harmless prompts, steered with each position's direction (figure 16)."""

    layers: tuple[int, ...]
    """Steered layers."""
    verdicts: tuple[tuple[Verdicts, ...], ...]
    """Verdicts by position, then in the order of `layers`."""


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Results at positions from two tokens before `t_inst` to the last token, with unchanged endings."""

    margins: tuple[PositionMargin, ...]
    inversion: PositionSweep | None
    """Sweep of the inversion; None where the unsteered model does not answer the inverted question."""


@dataclass(frozen=True, kw_only=True)
class EndingResult:
    """Results with prompts of one ending."""

    truncation: dict[Kind, TruncationRates]
    """Table 1, held-out prompts."""
    group_sizes: dict[Group, GroupSize]
    leak: LeakCheck
    clusters: ClustersByRole
    beliefs: GroupBeliefs
    geometry: Geometry
    yardstick: HarmAndRefusal[dict[Group, Curve]]
    """Cosine of held-out states with each direction (section 3.2)."""
    anchors: AnchorCheck | None
    """Check with anchors of another source; None where there is no other source of harmless prompts."""
    steering: RefusalSweep | None
    """Sweep of refusal steering; None where too few harmless prompts are answered."""
    inversion: InversionSweep | None
    """Sweep of the inversion; None where the unsteered model does not answer the inverted question."""
