"""What preference data as trees and as chains costs (`interp.experiments.plans`): the part that a model generates."""

from interp.data.prompt_sets import Prompts
from interp.engine.costs import DECODE_ROWS, Work
from interp.experiments.reward_topology import Config
from interp.experiments.sizes import Sizes, as_part

BOUNDS = (
    "segments and answers at full length; graphs, regimes and fitted rewards run no model, take under a minute and are "
    "not counted"
)


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work of the generated pairs, of all seeds."""
    length = config.tree_depth * config.segment_tokens
    leaves = config.branching**config.tree_depth
    chains = max(leaves, -(-2 * max(config.labels) // config.n_prompts))
    tested = sizes.part("harmless", "test", config.n_test)
    asked = sizes.part("harmless", "train", config.n_prompts)

    def answers(part: Prompts, n_chains: int) -> Work:
        nodes = sum(config.branching**level for level in range(1, config.tree_depth + 1))
        grown = _written(sizes, part, nodes, config.segment_tokens, config.tree_depth)
        sampled = _written(sizes, part, n_chains, length, 1)
        # Every whole answer is read again, after its prompt.
        answered = as_part(part.texts * (n_chains + leaves))
        return grown + sampled + sizes.ended(answered, [length] * len(answered))

    return {"generated": answers(tested, max(config.best_of)) + answers(asked, chains) * config.runs}


def _written(sizes: Sizes, part: Prompts, pieces: int, tokens: int, levels: int) -> Work:
    """So many pieces of so many tokens after each prompt, which runs once."""
    if not len(part):
        return Work()
    rows = len(part) * pieces
    return sizes.read(part, roles=0) + Work(
        decoded_tokens=rows * tokens,
        decoding_steps=-(-rows // DECODE_ROWS) * tokens if levels == 1 else levels * tokens,
    )
