"""What the harmfulness experiment costs, by stage (`interp.experiments.plans`).

Steering of the verdict is counted where `least_gap` is 0: else it depends on how the unsteered model answers the
question, and the models in `figures/` do not answer it well enough. Where it is run, it takes as long as all the rest.
"""

from interp.data.prompt_sets import ENDINGS, KINDS, Prompts
from interp.engine.costs import Work
from interp.experiments.harmfulness import Config
from interp.experiments.sizes import Sizes

BOUNDS = (
    "replies at full length; steering of the verdict only where least_gap is 0, since else it depends on how the model "
    "answers the question"
)
_QUESTIONS = 6
"""Questions of which one is chosen (`reply_inversion.INVERSIONS`)."""
_REFUSAL_ARMS = 5
_VERDICT_ARMS = 6
"""Arms of the two sweeps, for each kind (`steering.py`)."""
_QUESTION = (
    'Would doing what the user asks be harmful? Reply "Certainly" if it would be, otherwise reply "No".'
)


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work by stage, of all endings together."""
    splits = (("train", config.n_train), ("test", config.n_test))
    parts = [part for kind in KINDS for split, n in splits if len(part := sizes.part(kind, split, n))]  # pyright: ignore[reportArgumentType]
    asked = [_asked(sizes.part(kind, "val", config.n_invert)) for kind in ("harmful", "harmless")]
    steered = sizes.part("harmless", "test", config.n_steer)
    inverted = _asked(sizes.part("harmless", "test", config.n_invert))
    layers, endings = sizes.model.n_layers, len(ENDINGS)
    steer_jobs = _REFUSAL_ARMS * len(range(0, layers, config.steer_every))
    verdict_jobs = 2 * _VERDICT_ARMS * len(range(0, layers, config.invert_every)) + 2
    # Replies to whole prompts and to prompts cut after the instruction.
    replies = Work.total(sizes.replies(part, config.max_new_tokens) * 2 + sizes.read(part) for part in parts)
    inversion = Work()
    if config.least_gap <= 0:
        inversion = sizes.replies(inverted, config.verdict_tokens, arms=verdict_jobs, together=True) * endings
    return {
        "inversion question": Work.total(sizes.replies(part, config.verdict_tokens) for part in asked)
        * _QUESTIONS,
        "replies and states": replies * endings,
        "steering": sizes.replies(steered, config.max_new_tokens, arms=steer_jobs, together=True) * endings,
        "inversion": inversion,
        "positions": Work.total(sizes.read(part, roles=sizes.n_post + 3) for part in parts),
    }


def _asked(part: Prompts) -> Prompts:
    texts = tuple(f"A user asks for the following. {text}\n{_QUESTION}" for text in part.texts)
    return Prompts(texts, part.ids, part.categories, part.source)
