"""What the safety-prompt study costs, by stage (`interp.experiments.plans`)."""

from collections.abc import Mapping

from interp.data.prompt_sets import COMPARED_ENDINGS, PAIRED_KINDS, Prompts
from interp.data.safety_texts import safety_text
from interp.engine.costs import Work
from interp.experiments.safety_prompts import NEUTRAL, NEUTRAL_TEXT, NONE, SAFETY, TUNED, Config
from interp.experiments.sizes import Sizes, as_part
from interp.experiments.tracked import with_borderline
from interp.experiments.training_work import conditions_read, prompt_optimised, prompt_tuned
from interp.training.config import SafetyPromptConfig

BOUNDS = "replies and sampled answers at full length"


def plan(config: Config, sizes: Sizes) -> dict[str, Work]:
    """Work by stage."""
    sizes = with_borderline(sizes)
    train, test = (
        as_part([text for kind in PAIRED_KINDS for text in sizes.part(kind, split, n).texts])  # pyright: ignore[reportArgumentType]
        for split, n in (("train", config.n_train), ("test", config.n_test))
    )
    texts = {NONE: "", **{name: safety_text(name) for name in SAFETY}}
    start = safety_text(config.start)
    settings = SafetyPromptConfig(
        batch_size=config.batch_size, epochs=config.epochs, reply_tokens=config.reply_tokens
    )
    states, geometry = Work(), Work()
    for ending in COMPARED_ENDINGS:
        fitted, held_out = train.with_ending(ending), test.with_ending(ending)
        states += conditions_read(sizes, fitted, texts)
        if config.refusal == "sampled":
            states += _sampled(sizes, fitted, texts, config.refusal_samples, config.refusal_tokens)
        geometry += conditions_read(sizes, held_out, {**texts, NEUTRAL: NEUTRAL_TEXT})
        # Refusal probabilities, then all layers of held-out and of training queries, these also at `t_inst`.
        geometry += conditions_read(sizes, held_out, texts, reads=2) + conditions_read(sizes, fitted, texts)
        geometry += sizes.read(fitted)
    trained = Work.total(
        (prompt_tuned if name == TUNED else prompt_optimised)(sizes, train, config.start, settings)
        for name in config.trained
    )
    asked = {NONE: "", NEUTRAL: NEUTRAL_TEXT, "start": start, **dict.fromkeys(config.trained, start)}
    asked["random"] = start
    return {
        "states": states,
        "geometry": geometry,
        "train": trained,
        "held-out queries": _held_out(sizes, config, test, asked),
    }


def _sampled(sizes: Sizes, part: Prompts, under: Mapping[str, str], n: int, length: int) -> Work:
    return Work.total(sizes.replies(part, length, system=text, samples=n) for text in under.values())


def _held_out(sizes: Sizes, config: Config, test: Prompts, asked: Mapping[str, str]) -> Work:
    """Every system prompt on held-out queries, and KL on the model's own replies to the harmless ones."""
    kinds = [
        *(sizes.part(kind, "test", config.n_test) for kind in PAIRED_KINDS),
        sizes.part("borderline", "test", config.n_borderline),
    ]
    harmless, tokens = kinds[1], len(kinds[1]) * config.max_new_tokens
    work = sizes.replies(harmless, config.max_new_tokens) + sizes.scored(harmless, tokens)
    work += conditions_read(sizes, test, asked)
    for text in asked.values():
        for part in kinds:
            work += sizes.replies(part, config.max_new_tokens, system=text)
            work += sizes.first_tokens(part, system=text)
        if config.n_samples:
            for part in kinds:
                work += _sampled(sizes, part, {"": text}, config.n_samples, config.sample_tokens)
        own = sizes.read(harmless, roles=0, system=text)
        work += own + Work(read_tokens=tokens, unembedded=tokens)
    return work
