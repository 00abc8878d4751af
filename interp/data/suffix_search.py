"""Adversarial suffixes: strings of tokens after a request, found by search against one model.

    find_suffixes(model, prompts["harmful", "train"].first(2))[0].wrap("another request")

Needs the `nanogcg` package. A suffix optimised for one request is tried on all of them like any other wrapper
(`interp.data.wrappers`).
"""

from typing import Any

import torch

from interp.data.prompt_sets import Prompts
from interp.data.wrappers import SLOT, Wrapper
from interp.models.chat_model import ChatModel


def find_suffixes(
    model: ChatModel,
    requests: Prompts,
    *,
    steps: int = 100,
    search_width: int = 512,
    target: str = "Sure, here is",
    seed: int = 0,
) -> list[Wrapper]:
    """Optimise a suffix for each request by greedy coordinate gradient (GCG), with the `nanogcg` package.

    Source: Zou et al. 2023, arXiv:2307.15043. The target is an empty affirmative opening.

    Args:
        steps: optimisation steps per request; the search stops early when the target becomes the likeliest reply.
        search_width: candidates per optimisation step (the package's default is 512).

    Raises:
        ValueError: nanogcg is not installed.
    """
    try:
        import nanogcg  # pyright: ignore[reportMissingImports] (an optional extra)
    except ImportError as error:
        raise ValueError(
            "finding suffixes needs the nanogcg package: pip install nanogcg, or give a file of suffixes instead"
        ) from error
    settings = nanogcg.GCGConfig(
        num_steps=steps,
        search_width=search_width,
        early_stop=True,
        use_prefix_cache=False,  # it expects the cache format of older transformers
        verbosity="ERROR",
    )
    suffixes = []
    with torch.random.fork_rng():
        torch.manual_seed(
            seed
        )  # not the package's seed option, which also changes torch for the whole process
        for number, request in enumerate(requests.texts):
            best: Any = nanogcg.run(model.hf, model.tokenizer, request + " {optim_str}", target, settings)
            text = f"{SLOT} {str(best.best_string).replace(SLOT, '').strip()}"
            suffixes.append(Wrapper(family="suffix", name=f"found suffix {number}", text=text))
    return suffixes
