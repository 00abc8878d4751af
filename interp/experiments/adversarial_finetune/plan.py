"""What adversarial fine-tuning costs, by stage (`interp.experiments.plans`)."""

from interp.data.examples import Example
from interp.data.prompt_sets import COMPARED_ENDINGS, PAIRED_KINDS
from interp.data.replies import REFUSALS
from interp.engine.costs import Work
from interp.experiments.adversarial_finetune import Config
from interp.experiments.sizes import Sizes, stubs

BOUNDS = "every prompt counted as behaving, so that all sizes are reached; replies at full length"
_CONTROLS = 2
"""Arms beside the stubs: the same prompts with refusals, harmless ones with stubs."""


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work by stage."""
    n = 2 * max((*config.sizes, config.n_centres))
    asked = [sizes.part(kind, "train", n) for kind in PAIRED_KINDS]
    held = [sizes.part(kind, "test", 2 * config.n_test) for kind in PAIRED_KINDS]
    centres = [part.first(config.n_centres) for part in asked]
    test = [part.first(config.n_test) for part in held]
    fitted = Work.total(sizes.read(part.with_ending(e)) for part in centres for e in COMPARED_ENDINGS)
    measured = Work.total(sizes.replies(part, config.max_new_tokens) for part in test) + fitted
    measured += Work.total(sizes.read(part.with_ending(e)) for part in test for e in COMPARED_ENDINGS)
    most = min(max(config.sizes), len(asked[0]))
    counts = {min(size, most) for size in config.sizes}
    trained = Work()
    for part in (asked[0], asked[1]):
        trained += sizes.supervised(stubs(part.texts, most), batch_size=config.batch_size, packed=False)
    refusals = [Example(text, REFUSALS[i % len(REFUSALS)]) for i, text in enumerate(asked[0].texts[:most])]
    trained += sizes.supervised(refusals, batch_size=config.batch_size, packed=False)
    before = Work.total(sizes.replies(part, config.max_new_tokens) for part in (*asked, *held))
    return {
        "before": before + fitted,
        "measure": measured * (1 + len(counts) + _CONTROLS),
        "fine-tune": trained,
    }
