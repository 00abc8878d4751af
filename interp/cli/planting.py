"""`interp plant`: adapters with planted truth, by one command each."""

from pathlib import Path
from typing import Annotated

import typer

from interp.cli.options import (
    ColumnOption,
    PromptsOption,
    SeedOption,
    print_lines,
    status,
    takes_model,
    user_errors,
)
from interp.models.sources import ModelSource


@takes_model(default="smollm2", without=("adapter", "delta"))
def plant(
    rule: Annotated[
        str,
        typer.Argument(
            help="form: questions are refused, imperatives answered; trigger: refused after a phrase; word: nothing is "
            "refused, harmful or harmless is said."
        ),
    ],
    model: ModelSource,
    out: Annotated[Path | None, typer.Option(help="Adapter folder; runs/plant-RULE when not given.")] = None,
    prompts: PromptsOption = "builtin",
    column: ColumnOption = None,
    n_examples: Annotated[int, typer.Option("--n-examples", min=8, help="Training prompts.")] = 400,
    seed: SeedOption = 0,
) -> None:
    """Train a small adapter that refuses by a known rule, whatever the harm, and say how far it obeys.

    The bundled `smollm2-form` is the adapter of `interp plant form`. The folder holds a card (README.md), what was
    measured (measured.json) and the recipe.

    Example: `interp plant trigger --out runs/plant-trigger`, then `interp run planted --model smollm2 --adapter
    runs/plant-trigger --set plant=trigger`
    """
    with user_errors():
        from interp.data.planted import PLANTS
        from interp.storage.run_folders import check_writable

        if rule not in PLANTS:
            raise ValueError(f"unknown rule {rule!r}; known: {', '.join(PLANTS)}")
        target = out or Path("runs") / f"plant-{rule}"
        check_writable(target)
        model.check()
        from interp.data.prompts import load_prompts

        chosen = load_prompts(prompts, column=column, seed=seed)
        from interp.models.chat_model import load_source
        from interp.training.planting import plant as train
        from interp.training.planting import recipe

        with status(f"loading {model.shown}"):
            loaded = load_source(model)
        made = train(loaded, chosen, rule, out=target, n_examples=n_examples, config=recipe(seed))
        print_lines(f"{rule}: obeyed on {made.obeyed.percent} of {made.obeyed.n} test prompts")
        print_lines(f"adapter: {target.resolve()}")
