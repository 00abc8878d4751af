"""The refusal-direction paper's method: each step is a section, in the file that is named for it.

Source: Arditi et al. 2024, arXiv:2406.11717.
"""

from interp.data.prompts import PromptSet
from interp.experiments.definition import Outcome
from interp.experiments.refusal_direction import Config, Result
from interp.experiments.refusal_direction.candidates import candidate_directions
from interp.experiments.refusal_direction.completions import complete
from interp.experiments.refusal_direction.cross_entropy import cross_entropies
from interp.experiments.refusal_direction.inside import Inside, look_inside
from interp.experiments.refusal_direction.selection import (
    picked_direction,
    random_controls,
    score_tensors,
    select,
)
from interp.models.chat_model import ChatModel
from interp.representations.shared_sweeps import over_workers
from interp.representations.sweeps import Sweep
from interp.stats import Estimate
from interp.storage.direction_files import direction_bytes
from interp.storage.stages import Stages


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """Run the experiment.

    Raises:
        ValueError: too few prompts that the model refuses or answers.
        NothingSurvives: no candidate passes the selection rule; the message names the nearest misses.
    """
    # Section 2.3, appendix A: prompts that are refused or answered, and differences in means.
    filtered, candidates = candidate_directions(model, prompts, config, stages)

    # Section 2.3, appendix C: bypass, induce and KL of the candidates, the pick, and random directions.
    sweep = Sweep(
        model,
        candidates.directions,
        harmful=filtered.tokens["harmful", "val"],
        harmless=filtered.tokens["harmless", "val"],
        refusal_ids=filtered.refusal_tokens.ids,
        keep=stages.keep,
    )
    with over_workers(sweep, stages.workers):
        selection = select(sweep, config, stages)
        direction = picked_direction(sweep, selection.selected, candidates, prompts, config)
        stages.lap("select")
        random_directions = random_controls(sweep, direction, config, stages)
        stages.lap("random directions")

    # Sections 3 and 4: completions under ablation, addition, subtraction and the weight edit.
    completed = complete(model, prompts, direction, config, stages)
    stages.lap("generate")

    # Appendix G.3: what the interventions cost.
    picked = f"{direction.position}-{direction.layer}"
    unmodified = completed.replies["harmless"]["baseline"]
    losses = stages.keep(
        f"cross-entropy{picked}",
        lambda: cross_entropies(model, completed.tokens["harmless"], unmodified, direction, config),
        dict[str, dict[str, Estimate]],
    )
    stages.lap("cross-entropy")

    # Section 5, appendices I.1 and J: what happens inside.
    inside = stages.keep(
        f"mechanism{picked}", lambda: look_inside(model, prompts, filtered, direction, config), Inside
    )
    stages.lap("mechanism")

    result = Result(
        provenance=stages.provenance,
        seconds=stages.seconds,
        config=config,
        refusal_tokens=filtered.refusal_tokens,
        filtered_counts=filtered.counts,
        first_tokens=filtered.first_tokens,
        refusal_metric=filtered.refusal_metric,
        post_inst_tokens=tuple(filtered.tokens["harmful", "train"].post_inst_text()),
        selected=selection.selected,
        selected_norm=direction.norm,
        rule=selection.rule,
        candidates=selection.candidates,
        selection_baseline=selection.baseline,
        confirmation=selection.confirmation,
        pick_stability=selection.stability,
        random_directions=random_directions,
        refusal_rate=completed.refusal_rate,
        completions=completed.flags,
        skipped=completed.skipped,
        cross_entropy=losses,
        mechanism=inside.mechanism,
        scatter=inside.scatter,
        base_check=inside.base_check,
    )
    files = {"refusal.safetensors": direction_bytes(direction)}
    return Outcome(result=result, tensors=score_tensors(sweep), files=files)
