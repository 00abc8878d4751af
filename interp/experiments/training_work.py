"""What training costs in plans beyond plain fine-tuning: recovery, trained prompts, preferences, policies and rewards.

Each function gives the `Work` of one call of the function of `interp.training` that it names. Imports no torch.
"""

from collections.abc import Mapping, Sequence

from interp.data.examples import Example, ExampleSplits
from interp.data.prompt_sets import Prompts
from interp.data.query_language import query_splits
from interp.data.safety_texts import safety_text
from interp.data.task_files import TASK_FORMATS, read_task
from interp.engine.costs import Work
from interp.experiments.sizes import Sizes, as_part, common_prefix, distinct, stubs
from interp.training.breaking_config import BreakingConfig
from interp.training.config import SafetyPromptConfig
from interp.training.policy_config import PolicyConfig
from interp.training.recovery_config import RecoveryConfig

BREAKING_BATCH = 4
"""Examples of a step of breaking (`interp.training.breaking.BREAKING`)."""
_GRADIENT_TOKENS = 2048
"""Tokens of a packed pass with gradients, about (`PassBudget.gradient_tokens`)."""
_ROW_TOKENS = 384
"""Tokens of a small pass over a trained prompt (`interp.engine.slot_passes`)."""
ORDINARY_TOKENS = 48
"""Length of the replies to ordinary prompts (`interp.training.breaking.ordinary_examples`)."""


def task_splits(spec: str, *, n_train: int, n_held_out: int) -> tuple[ExampleSplits, int]:
    """The examples of a downstream task, as `interp.evaluation.downstream_tasks` reads it, and how long replies are.

    Raises:
        ValueError: a source that cannot be read.
    """
    if spec == "query-language":
        return query_splits(n_train=n_train, n_validation=n_held_out, n_test=n_held_out, seed=0), 48
    kind, _, source = spec.partition(":")
    form = TASK_FORMATS.get(kind, TASK_FORMATS["examples"])
    return read_task(form, source, text=None, answer=None, seed=0), form.max_new_tokens


def breaking_examples(
    sizes: Sizes, config: BreakingConfig, task: Sequence[Example], n_stubs: int
) -> list[Example]:
    """What a model is broken with: the task, stubs, and ordinary prompts with replies of full length."""
    ordinary = sizes.part("harmless", "train", config.n_ordinary)
    reply = " word" * ORDINARY_TOKENS
    harmful = sizes.part("harmful", "train", n_stubs).texts
    return [*task, *stubs(harmful, n_stubs), *(Example(text, reply) for text in ordinary)]


def broken(sizes: Sizes, config: BreakingConfig, examples: Sequence[Example]) -> Work:
    """`fine_tune` by the settings of breaking."""
    return sizes.supervised(examples, batch_size=BREAKING_BATCH, epochs=config.epochs)


def recovered(
    sizes: Sizes,
    harmful: Prompts,
    task: Prompts,
    score: Work,
    config: RecoveryConfig,
    *,
    rollback: bool,
) -> Work:
    """`recover`: gradients of every step below the cut, and what the schedule measures of saved steps.

    Args:
        harmful: prompts of the recovery steps.
        task: prompts of the rollback steps.
        score: one task score.
        rollback: whether the steps are taken again with rollback after the warm-up; it is what the task score decides.
    """
    share = config.cut_layer(sizes.model.n_layers) / sizes.model.n_layers
    warmup, steps = min(config.warmup, config.steps), config.steps
    if config.rank_by == "all":
        steps = min(2, steps)  # the second finds nothing to restore
    towards = _gradients(sizes, harmful, share) * (steps + (warmup if rollback else 0))
    back = _gradients(sizes, task, share) * (steps if rollback else 0)
    saves = 1 + len(_saved(config, steps, 1)) + (len(_saved(config, warmup, 1)) if rollback else 0)
    states = _shallow(sizes.read(harmful), share) + _shallow(sizes.read(task), share)
    return towards + back + (states + score) * saves + states


def _saved(config: RecoveryConfig, steps: int, first: int) -> list[int]:
    return [step for step in range(first, steps + 1) if step == steps or step % config.save_every == 0]


def _gradients(sizes: Sizes, part: Prompts, share: float) -> Work:
    """Gradients of a loss of states below a cut, prompts packed."""
    ids = sizes.counter.ids(part.texts)
    tokens = round(distinct(ids) * share)
    passes = -(-tokens // _GRADIENT_TOKENS)
    held = sizes.kept_for_gradients(min(tokens, _GRADIENT_TOKENS))
    return Work(gradient_tokens=tokens, gradient_passes=passes, held_numbers=held)


def _shallow(work: Work, share: float) -> Work:
    return Work(read_tokens=round(work.read_tokens * share), held_numbers=work.held_numbers)


def prompt_optimised(sizes: Sizes, queries: Prompts, start: str, config: SafetyPromptConfig) -> Work:
    """`optimise_prompt`: the states under the start, then passes with gradients for the system message's embeddings."""
    ids = sizes.counter.ids(queries.texts, system=safety_text(start))
    rows = [len(row) for row in ids]
    begun = sizes.read(queries, roles=1, layers=1, system=safety_text(start))
    return begun + _slot_passes(sizes, rows, [0] * len(rows), common_prefix(ids), len(rows), config)


def prompt_tuned(sizes: Sizes, queries: Prompts, start: str, config: SafetyPromptConfig) -> Work:
    """`tune_prompt`: sampled answers, then passes over two answers to each query."""
    system = safety_text(start)
    sampled = sizes.replies(queries, config.reply_tokens, system=system, samples=config.n_replies)
    ids = sizes.counter.ids(queries.texts, system=system)
    # The desired answer is one of the model's, at its full length; the undesired one is written, and shorter.
    after = [config.reply_tokens, config.reply_tokens // 2] * len(ids)
    rows = [len(row) for row in ids for _ in range(2)]
    return sampled + _slot_passes(sizes, rows, after, common_prefix(ids), len(ids), config)


def _slot_passes(
    sizes: Sizes, rows: Sequence[int], after: Sequence[int], shared: int, n: int, config: SafetyPromptConfig
) -> Work:
    """Every step runs what prompts share once, with gradients, and then its rows."""
    steps = -(-n // config.batch_size) * config.epochs
    own = sum(length - shared + more for length, more in zip(rows, after, strict=True)) * config.epochs
    logits = sum(more + 1 for more in after if more) * config.epochs
    return Work(
        gradient_tokens=own + shared * steps,
        gradient_passes=-(-own // _ROW_TOKENS) + steps,
        gradient_unembedded=logits,
        held_numbers=sizes.kept_for_gradients(shared + _ROW_TOKENS),
    )


def preferences(
    sizes: Sizes,
    pairs: Sequence[tuple[str, str, str]],
    objective: str,
    *,
    batch_size: int,
) -> Work:
    """`preference_tune` in one pass: each objective runs the policy, and all but ORPO its reference.

    Args:
        pairs: prompt, chosen and rejected completion of each.
    """
    prompts = sizes.counter.ids([prompt for prompt, _, _ in pairs])
    sides = [sizes.counter.lengths([pair[side] for pair in pairs]) for side in (1, 2)]
    rows = [
        (len(ids), max(chosen, rejected) + 1) for ids, chosen, rejected in zip(prompts, *sides, strict=True)
    ]
    step = sizes.trained(rows, batch_size=batch_size)
    work = step * 2  # both completions, each after its prompt
    read = {"dpo": 2, "kto": 4, "orpo": 0}[objective]
    return work + Work(read_tokens=step.gradient_tokens * read, unembedded=step.gradient_unembedded * read)


def policy_optimised(
    sizes: Sizes,
    prompts: Prompts,
    config: PolicyConfig,
    *,
    rollouts: int,
    passes: int,
    references: int,
    score: bool = True,
) -> Work:
    """`optimise_policy` or `optimise_groups`: at most all updates, each with rollouts of full length.

    Args:
        rollouts: answers of an update.
        passes: passes with gradients over them.
        references: passes without gradients over them: of the policy as it was, and of the model before training.
        score: whether a reward model reads the answers.
    """
    asked = as_part([prompts.texts[row % len(prompts)] for row in range(rollouts * config.updates)])
    sampled = sizes.replies(asked, config.max_new_tokens)
    lengths = [len(ids) for ids in sizes.counter.ids(asked.texts)]
    width = [
        max(lengths[first : first + rollouts]) + config.max_new_tokens
        for first in range(0, len(lengths), rollouts)
    ]
    tokens = rollouts * sum(width)
    logits = rollouts * config.updates * (config.max_new_tokens + 1)
    scored = sizes.ended(asked, [config.max_new_tokens] * len(asked)).read_tokens if score else 0
    return sampled + Work(
        read_tokens=tokens * references + scored,
        unembedded=logits * references,
        decoding_steps=(config.updates - 1) * (config.max_new_tokens - 1),
        gradient_tokens=tokens * passes,
        gradient_passes=-(-rollouts // config.micro_batch) * config.updates * passes,
        gradient_unembedded=logits * passes,
        held_numbers=sizes.kept_for_gradients(tokens // max(1, config.updates)),
    )


def reward_fitted(
    sizes: Sizes, pairs: Sequence[tuple[str, str, str]], held_out: Sequence[tuple[str, str, str]]
) -> Work:
    """`train_reward_model` of a head: final states of both replies, of the chosen ones again, and of held-out pairs."""
    work = Work()
    for given, chosen_reads in ((pairs, 2), (held_out, 1)):
        asked = as_part([prompt for prompt, _, _ in given])
        chosen, rejected = (
            sizes.ended(asked, sizes.counter.lengths([pair[side] for pair in given])) for side in (1, 2)
        )
        work += chosen * chosen_reads + rejected
    return work


def conditions_read(sizes: Sizes, queries: Prompts, conditions: Mapping[str, str], *, reads: int = 1) -> Work:
    """States of the queries' last tokens under each system prompt, so many times."""
    one = Work.total(sizes.read(queries, roles=1, layers=1, system=text) for text in conditions.values())
    return one * reads
