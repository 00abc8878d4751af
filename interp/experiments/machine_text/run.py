"""The study of machine-written text.

1. Pairs: human texts, and the model's continuations of their beginnings; everything is scored by the model itself.
2. Detectors: AUROC, rate found at the false-positive rate, the published order by paired differences, lengths, human
   texts of one source against a threshold from the others; methods of many versions on a few pairs.
3. Attacks: the same texts changed, or written in another way; thresholds are those of step 2.
4. Inside: AUROC by depth through the logit lens; the machine-text direction by layer, beside refusal and harmfulness.
5. Writing under interventions, on the half of the texts that the direction was not fitted on.
6. The watermark: z without the mark, also with many keys, with it, and with another key.

Controls: a random direction of equal norm beside every intervention, shuffled labels beside every direction, another
key beside the watermark, and the prefix, which both texts of a pair share, as the length at which nothing can be told.
"""

from dataclasses import replace
from functools import partial

from torch import Tensor

from interp.data.human_texts import bundled_passages, read_human_texts
from interp.data.prompts import PromptSet
from interp.detectors.machine_text.gltr import gltr
from interp.detectors.machine_text.reading import check_shared_vocabulary
from interp.detectors.machine_text.watermark import Watermark
from interp.experiments.definition import Outcome
from interp.experiments.machine_text import HUMAN, UNMARKED, Config, Result
from interp.experiments.machine_text.arms import (
    Directions,
    arm_twins,
    compare_arms,
    effects,
    interventions,
)
from interp.experiments.machine_text.attacking import attack_all, attack_by
from interp.experiments.machine_text.inside import (
    SafetyDirections,
    by_depth,
    directions_by_layer,
    mean_states,
    safety_directions,
)
from interp.experiments.machine_text.marks import KEY, evidence, marked, over_keys, token_counts, unmarked
from interp.experiments.machine_text.results import (
    Arm,
    Attack,
    Effects,
    Marked,
    OverKeys,
    ReadExample,
    Watermarks,
)
from interp.experiments.machine_text.study import (
    Study,
    by_length,
    detect,
    false_positives_by_source,
    prepare,
    published_order,
)
from interp.experiments.machine_text.texts import Twins, Written, written
from interp.models.chat_model import ChatModel, load
from interp.stats import Estimate
from interp.storage.stages import Stages, stage_name


def run(model: ChatModel, prompts: PromptSet, config: Config, stages: Stages) -> Outcome[Result]:
    """Run the experiment.

    Raises:
        ValueError: no human text that is long enough, a reference with another tokenizer, or a layer out of range.
    """
    layer = model.layer(3 * model.n_layers // 5 if config.layer is None else config.layer)
    reference, generator = _others(model, config)
    human = bundled_passages() if not config.human else read_human_texts(config.human)

    # 1. Pairs. 2. Detectors.
    study = prepare(model, reference, human.first(config.n_pairs), config, stages)
    detectors = detect(study, stages)
    stages.lap("versions")
    lengths = by_length(study)

    # 3. Attacks.
    attacks = attack_all(study, generator, stages)

    # 4. Inside.
    lens = stages.keep("lens", partial(_lens, study, stages.show_progress), dict[int, dict[str, Estimate]])
    stages.lap("lens")
    states = stages.keep("states", partial(_states, study))
    safety = SafetyDirections(
        **stages.keep("safety-directions", lambda: vars(safety_directions(model, prompts, config)))
    )
    directions, vectors = directions_by_layer(states["machine"], states["human"], safety, config)
    stages.lap("directions")

    # 5. Writing under interventions.
    acting = Directions(layer=layer, machine=vectors[layer], refusal=safety.refusal[layer])
    arms, contrasts = _written_under(study, acting, prompts, stages)

    # 6. The watermark.
    watermarks, marked_texts = _watermarks(study, stages)
    for delta, texts in marked_texts.items():
        name = f"watermarked, delta {delta}"
        attacks[name] = stages.keep(f"attack-{stage_name(name)}", partial(attack_by, study, texts), Attack)
    stages.lap("watermark")

    result = Result(
        provenance=stages.provenance,
        seconds=stages.seconds,
        config=config,
        human=human.source,
        dropped=study.dropped,
        detectors=detectors,
        differences=published_order(study.pairs, seed=config.seed),
        lengths=lengths.areas,
        lengths_found=lengths.found,
        longer=lengths.longer,
        sources=false_positives_by_source(study),
        attacks=attacks,
        lens=lens,
        directions=tuple(directions),
        layer=layer,
        arms=arms,
        effects=contrasts,
        watermarks=watermarks,
        examples=_examples(study),
    )
    return Outcome(result=result, tensors={"machine_text": vectors, "refusal": safety.refusal})


def _others(model: ChatModel, config: Config) -> tuple[ChatModel | None, ChatModel | None]:
    """The reference and the other generator, each loaded once."""
    dtype = str(model.dtype).removeprefix("torch.")
    loaded = {name: load(name, dtype=dtype) for name in {config.reference, config.generator} - {""}}
    reference, generator = loaded.get(config.reference), loaded.get(config.generator)
    if reference is not None:
        check_shared_vocabulary(model, reference)
    return reference, generator


def _lens(study: Study, show_progress: bool) -> dict[int, dict[str, Estimate]]:
    n, model, config = study.config.n_lens, study.model, study.config
    return by_depth(model, study.own.machine[:n], study.cut[:n], config, show_progress=show_progress)


def _states(study: Study) -> dict[str, Tensor]:
    """Mean states of both texts of every pair."""
    sides = {
        "machine": study.own.machine,
        "human": study.cut,
    }
    return {
        name: mean_states(study.model, texts, study.config, show_progress=study.show_progress)
        for name, texts in sides.items()
    }


def _written_under(
    study: Study, directions: Directions, prompts: PromptSet, stages: Stages
) -> tuple[dict[str, Arm], Effects]:
    """Texts written under each intervention, and what it changes."""
    model, config = study.model, study.config
    half = len(study.human) // 2  # the direction was fitted on those before
    beginnings = study.human.take(list(range(half, len(study.human)))).first(config.n_steered)
    acting = interventions(directions, config)
    by_arm: dict[str, Twins] = {}
    for name, active in stages.progress(acting.items(), "interventions"):
        label = stage_name(name)
        texts = stages.keep(
            f"arm-{label}",
            partial(
                written, model, beginnings, config, interventions=active, show_progress=stages.show_progress
            ),
            Written,
        )
        by_arm[name] = arm_twins(study, texts, stages, f"read-arm-{label}")
        stages.lap("interventions")
    arms = compare_arms(by_arm, study.thresholds, config)
    requests = prompts["harmful", "test"].first(config.n_refusals)
    contrasts = stages.keep(
        "effects", lambda: effects(model, requests, arms, by_arm, acting, config), Effects
    )
    stages.lap("interventions")
    return arms, contrasts


def _watermarks(study: Study, stages: Stages) -> tuple[Watermarks, dict[str, Written]]:
    """z of marked and unmarked texts, and the marked texts by delta."""
    model, config = study.model, study.config
    watermark = Watermark.of_model(model, key=KEY, gamma=config.gamma)
    plain = {HUMAN: study.cut, UNMARKED: study.own.machine}
    texts: dict[str, Written] = {}
    found: dict[str, Marked] = {}
    for delta in stages.progress(config.deltas, "watermarks"):
        name, own = f"{delta:g}", Watermark.of_model(model, key=KEY, gamma=config.gamma, delta=delta)
        write = partial(
            written,
            model,
            study.first(config.n_marked),
            config,
            processors=[own],
            show_progress=stages.show_progress,
        )
        texts[name] = stages.keep(f"marked-texts-{name}", write, Written)
        found[name] = stages.keep(
            f"marked-{name}", partial(marked, model, texts[name].machine, own, config), Marked
        )
    keys = stages.keep("unmarked-by-keys", partial(over_keys, model, plain, config), dict[str, OverKeys])
    return (
        Watermarks(
            tokens=token_counts(config),
            unmarked={
                name: replace(unmarked(evidence(model, own, watermark, config), config), keys=keys[name])
                for name, own in plain.items()
            },
            marked=found,
        ),
        texts,
    )


def _examples(study: Study) -> dict[str, ReadExample]:
    """The first pair as the model sees it."""
    examples: dict[str, ReadExample] = {}
    for name, text in ((HUMAN, study.cut[0]), (study.model.name, study.own.machine[0])):
        view = gltr(study.model, text)
        examples[name] = ReadExample(
            context=view.context,
            tokens=view.tokens,
            ranks=tuple(view.ranks.tolist()),
            probabilities=tuple(view.probabilities.tolist()),
        )
    return examples
