"""Step 3 of the study: machine-written texts that were changed, or written in another way."""

from collections.abc import Callable
from functools import partial

from interp.detectors.machine_text.attacks import mix_sentences, paraphrase, swap_words
from interp.experiments.machine_text import MIXED, ORDER, OTHER, PARAPHRASED, SWAPPED, UNCHANGED
from interp.experiments.machine_text.estimates import area, area_difference, share_above
from interp.experiments.machine_text.results import Attack
from interp.experiments.machine_text.study import Study
from interp.experiments.machine_text.texts import Twins, Written, twins, written
from interp.models.chat_model import ChatModel
from interp.stats import Estimate
from interp.storage.stages import Stages, stage_name

Make = Callable[[], Written]


def attack_all(study: Study, generator: ChatModel | None, stages: Stages) -> dict[str, Attack]:
    """Every attack, beside the unchanged texts."""
    found = {UNCHANGED: _measured(study, study.pairs, dropped=0)}
    for name, make in stages.progress(_attacks(study, generator).items(), "attacks"):
        found[name] = stages.keep(f"attack-{stage_name(name)}", partial(_attacked, study, make), Attack)
        stages.lap("attacks")
    return found


def attack_by(study: Study, texts: Written) -> Attack:
    """Texts that were written elsewhere in the study, as an attack."""
    changed = study.changed(texts.ids, texts.machine)
    return _measured(study, changed, dropped=len(texts.ids) - len(changed))


def _attacks(study: Study, generator: ChatModel | None) -> dict[str, Make]:
    config, n = study.config, study.config.n_attacked
    human = study.first(n)
    own = Written(ids=study.own.ids[:n], machine=study.own.machine[:n], lengths=study.own.lengths[:n])

    def of(texts: list[str]) -> Written:
        return Written(ids=own.ids, machine=tuple(texts), lengths=own.lengths)

    made: dict[str, Make] = {
        SWAPPED: lambda: of(swap_words(own.machine, share=config.swap_share, seed=config.seed)),
        MIXED: lambda: of(
            mix_sentences(own.machine, study.cut[:n], share=config.mix_share, seed=config.seed)
        ),
        PARAPHRASED: lambda: of(
            paraphrase(
                study.model,
                own.machine,
                max_new_tokens=config.length,
                seed=config.seed,
                show_progress=study.show_progress,
            )
        ),
    }
    for temperature, top_p in config.decodings:
        name = f"temperature {temperature:g}, top-p {top_p:g}"
        made[name] = partial(
            written,
            study.model,
            human,
            config,
            temperature=temperature,
            top_p=top_p,
            show_progress=study.show_progress,
        )
    if generator is not None:
        made[OTHER] = partial(written, generator, human, config, show_progress=study.show_progress)
    return made


def _attacked(study: Study, make: Make) -> Attack:
    return attack_by(study, make())


def _measured(study: Study, changed: Twins, *, dropped: int) -> Attack:
    """Detectors on changed texts; the texts that they are compared with are cut to the same lengths."""
    config = study.config
    limited = {name: study.machines[name] for name in changed.ids}
    before = twins(study.humans, limited, limits=changed.limits)
    return Attack(
        n=len(changed),
        dropped=dropped,
        auroc={title: area(*changed.column(title), seed=config.seed) for title in changed.detectors},
        found={
            title: share_above(changed.column(title)[0], limit) for title, limit in study.thresholds.items()
        },
        change={title: _change(changed, before, title, seed=config.seed) for title in ORDER},
    )


def _change(changed: Twins, before: Twins, title: str, *, seed: int) -> Estimate:
    """AUROC less that of the unchanged texts of the same pairs."""
    rows = [changed.ids.index(name) for name in before.ids]
    columns = [[side[row] for row in rows] for side in changed.column(title)]
    return area_difference((columns[0], columns[1]), before.column(title), seed=seed)
