"""Machine-written text: how well one model's own text is told apart, what hides it, and where in the model it shows.

The detectors are `interp.detectors.machine_text`; the study is in `run.py`. Wu, Yang, Zhan, Yuan, Chao, Wong 2025, *A
Survey on LLM-Generated Text Detection* (arXiv:2310.14724), and the papers of the methods: Fast-DetectGPT (Bao et al.
2024, arXiv:2310.05130) and the green-list watermark (Kirchenbauer et al. 2023, arXiv:2301.10226).

Beyond the papers: detectability by depth, a machine-text direction and its causal test, whether refusal has to do with
it, false positives on human texts of another source, and a control beside every number.
"""

from dataclasses import dataclass

from interp.experiments import SUMMARIES
from interp.experiments.definition import Claim, Experiment, ExperimentResult
from interp.experiments.machine_text.results import (
    Arm,
    Attack,
    Difference,
    Effects,
    LayerDirection,
    ReadExample,
    Separation,
    Watermarks,
)
from interp.stats import Estimate
from interp.storage.settings import AtLeastTwo, CheckedSettings, Count, NonNegative, OpenShare, Share

FAST, LOG_RANK, LIKELIHOOD, ENTROPY = "Fast-DetectGPT", "log-rank", "log-likelihood", "entropy"
"""Detectors whose order is published; the names of `interp.detectors.machine_text.scores.SCORES`."""
ORDER = (FAST, LOG_RANK, LIKELIHOOD, ENTROPY)
"""From best to worst as published."""
TWO_MODELS = "Fast-DetectGPT, two models"
SLOW = ("DetectGPT", "NPR", "DNA-GPT, likelihood", "DNA-GPT, overlap")
"""Detectors that read many versions of each text."""
UNCHANGED, SWAPPED, MIXED, PARAPHRASED, OTHER = (
    "unchanged",
    "words swapped",
    "human sentences mixed in",
    "paraphrased by the model",
    "written by another model",
)
"""Machine-written texts that detectors are tried on."""
PLAIN, ALONG, AGAINST = "no intervention", "machine-text direction added", "machine-text direction subtracted"
RANDOM_ALONG, RANDOM_AGAINST = "random direction added (control)", "random direction subtracted (control)"
ABLATED, RANDOM_ABLATED = "refusal ablated", "random direction ablated (control)"
REFUSAL, RANDOM_REFUSAL = "refusal added", "random direction of its norm added (control)"
ARMS = (
    PLAIN,
    ALONG,
    RANDOM_ALONG,
    AGAINST,
    RANDOM_AGAINST,
    ABLATED,
    RANDOM_ABLATED,
    REFUSAL,
    RANDOM_REFUSAL,
)
"""What is done to the model while it writes."""
HUMAN, UNMARKED = "human", "the model's own, unmarked"
"""Texts without the mark."""
Z_THRESHOLD = 4.0
"""z above which a text counts as marked; exceeded by 3.2e-5 of unmarked texts."""
N_KEYS = 20
"""Keys on which z is tried on texts without the mark."""
MIN_REFUSED = 3
"""Refused requests that refusal must have for its removal to be testable."""

CLAIMS = (
    Claim(
        text="With the author as scorer, Fast-DetectGPT is above log-rank, log-rank above likelihood, likelihood above "
        "entropy.",
        where="Bao et al. 2024, white-box tables; means of five models on three sets",
        theirs="AUROC .989, .899, .868, .505",
        same_when="each of the three differences of AUROC above 0 by a paired bootstrap over pairs; not seen where one "
        "is below 0; not testable where an interval holds 0 and none is below",
    ),
    Claim(
        text="Longer texts are easier to detect.",
        where="Bao et al. 2024, accuracy by length; the survey",
        theirs="AUROC grows with length",
        same_when="AUROC of Fast-DetectGPT at the longest length above that at the shortest one beyond the prefix, "
        "paired by text",
    ),
    Claim(
        text="Paraphrased and mixed texts escape zero-shot detectors.",
        where="the survey; DetectRL",
        theirs="Fast-DetectGPT from near 1 to .585, log-likelihood to .637",
        same_when="AUROC of Fast-DetectGPT after paraphrase, and after mixing, below that of the same texts unchanged, "
        "paired by text",
    ),
    Claim(
        text="Steering along a machine-text direction moves the scores of new text (control of this project).",
        where="none",
        theirs="not measured",
        same_when="Fast-DetectGPT of texts written with the direction added less those with it subtracted above 0, and "
        "above the same difference for a random direction of equal norm, intervals apart",
    ),
    Claim(
        text="Ablating refusal makes text more detectable (question of this project).",
        where="none",
        theirs="not measured",
        same_when="Fast-DetectGPT of texts written with refusal ablated less those with a random direction ablated "
        "above 0, paired by prompt; not testable where the model refuses fewer than 3 requests",
    ),
    Claim(
        text="On text that does not know the key, the watermark's z is standard normal.",
        where="Kirchenbauer et al. 2023, section 3",
        theirs="false positives of 3.2e-5 at z = 4",
        same_when="over 20 keys the interval of its mean holds 0, and that of its standard deviation 1, on human texts "
        "and on the model's own; not testable where one key was tried, which is one draw for all texts",
    ),
    Claim(
        text="Marked texts have at least as many green tokens as theorem 4.2 says.",
        where="Kirchenbauer et al. 2023, theorem 4.2 and its check",
        theirs="159.5 green tokens of 200, bound 142.2",
        same_when="the interval of the mean share of green tokens above the bound, for every delta",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config(CheckedSettings):
    """Settings; texts are pairs of a human text and the model's continuation of its beginning."""

    human: str = ""
    """File of human texts (`interp.data.human_texts`); empty: the bundled passages."""
    reference: str = ""
    """A second model with the same tokenizer, for Binoculars and two-model Fast-DetectGPT; empty leaves them out."""
    generator: str = ""
    """Another model that writes texts for this one to score; empty leaves it out."""
    n_pairs: AtLeastTwo = 200
    """Pairs (150 to 500 in the papers)."""
    length: Count = 150
    """Tokens of each text."""
    prefix_tokens: Count = 30
    """Tokens of the human text that the model is given; they stay in its text, as published."""
    lengths: tuple[int, ...] = (30, 60, 100, 150)
    """Lengths at which texts are cut; up to the prefix both texts of a pair are the same."""
    false_positive_rate: OpenShare = 0.01
    """Share of human texts that may be called machine-written."""
    n_slow: Count = 24
    """Pairs of DetectGPT, NPR and DNA-GPT."""
    n_perturbations: Count = 10
    """Perturbed versions of a text (1, 10 and 100)."""
    n_regenerated: Count = 4
    """Texts that DNA-GPT writes again (10)."""
    n_attacked: Count = 48
    """Machine-written texts under each attack."""
    swap_share: Share = 0.2
    """Share of the words that change places."""
    mix_share: Share = 0.5
    """Share of the sentences that are replaced by human ones."""
    decodings: tuple[tuple[float, float], ...] = ((0.7, 1.0), (1.0, 0.9))
    """Other temperatures and top-p that texts are written with; pairs are made at 1 and 1."""
    n_lens: Count = 32
    """Pairs that are read through the logit lens."""
    depth_step: Count = 3
    """Every how many blocks the lens reads."""
    n_states: Count = 24
    """Tokens of a text, at equal distances after the prefix, whose states are averaged for the direction."""
    n_shuffles: AtLeastTwo = 20
    """Directions between shuffled labels."""
    n_prompts: AtLeastTwo = 64
    """Prompts of each kind for the refusal and the harmfulness direction."""
    layer: int | None = None
    """Layer of the directions in the interventions; three fifths of the depth when None."""
    dose: NonNegative = 2.0
    """Strength of steering along the machine-text direction, in its own length."""
    n_steered: AtLeastTwo = 40
    """Texts written under each intervention."""
    n_refusals: Count = 24
    """Harmful requests on which it is measured whether ablation removes refusals."""
    deltas: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Strengths of the watermark, in nats."""
    gamma: OpenShare = 0.25
    """Share of green tokens."""
    n_marked: Count = 32
    """Texts written under each strength."""
    seed: int = 0
    """Seed of everything that is drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefix_tokens >= self.length:
            raise ValueError(
                f"prefix_tokens must be below length {self.length}, got {self.prefix_tokens}: nothing would be written"
            )
        if not self.lengths or min(self.lengths) < 2 or max(self.lengths) > self.length:
            raise ValueError(f"lengths must be within 2 and length {self.length}, got {list(self.lengths)}")


@dataclass(frozen=True, kw_only=True)
class Result(ExperimentResult):
    """Results of a run."""

    config: Config
    """Settings of the run."""
    human: str
    """Name of the set of human texts."""
    dropped: int
    """Human texts without a pair."""
    detectors: dict[str, Separation]
    """By detector; those of many versions have fewer pairs."""
    differences: tuple[Difference, ...]
    """The published order, step by step."""
    lengths: dict[str, tuple[Estimate, ...]]
    """AUROC at `Config.lengths`, by detector."""
    lengths_found: dict[str, tuple[Estimate, ...]] | None = None
    """Share found at the false-positive rate, at the same lengths; None in runs that did not measure it."""
    longer: Estimate
    """AUROC of Fast-DetectGPT at the longest length less that at the shortest beyond the prefix, paired by text."""
    sources: dict[str, dict[str, Estimate]]
    """Share of the human texts of each source above a threshold set on those of the others, by detector of `ORDER`."""
    attacks: dict[str, Attack]
    """By attack."""
    lens: dict[int, dict[str, Estimate]]
    """AUROC by number of blocks run and detector of `ORDER`."""
    directions: tuple[LayerDirection, ...]
    """The machine-text direction by layer."""
    layer: int
    """Layer of the interventions."""
    arms: dict[str, Arm]
    """By what was done to the model while it wrote."""
    effects: Effects
    """Contrasts between arms."""
    watermarks: Watermarks
    """The watermark."""
    examples: dict[str, ReadExample]
    """A human text and its twin."""


EXPERIMENT = Experiment(
    name="machine-text",
    summary=SUMMARIES["machine-text"],
    config=Config,
    result=Result,
    package=__name__,
    claims=CLAIMS,
)
