"""The toy: a two-layer transformer over eight letters, fine-tuned on answers of mixed quality, and a computed reward.

A prompt is three letters; a good answer holds the motif, uses `a` and `b` evenly, and ends in time. One in ten of the
fine-tuning answers has the motif. All arms start from that model, train adapters of one rank, and get equal numbers of
tokens: as many as PPO's rollouts hold.
"""

import functools
import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from interp.data.examples import Example, Preference
from interp.engine.generation import generate
from interp.engine.log_probs import completion_log_probs
from interp.experiments.dataset_reset.results import Curve, ToyRow
from interp.models.adapted_models import with_adapter
from interp.models.chat_model import ChatModel, load
from interp.models.tokens import ChatTokens, tokenize
from interp.training.config import TrainConfig, plain_adapter
from interp.training.finetune import fine_tune, preference_tune
from interp.training.group_optimisation import optimise_groups
from interp.training.policy_config import OptimisedPolicy, PolicyConfig
from interp.training.policy_optimisation import optimise_policy

LETTERS, MOTIF, LONGEST = "abcdefgh", "cab", 12
_ROWS = 64
"""Rows of the embedding; as few as there are tokens would pass for a table of positions."""
_SPECIAL = ("<|pad|>", "<|user|>", "<|bot|>", "<|end|>")
_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}<|bot|>"
    "{% else %}{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
)


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter, and a chat template."""
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(LETTERS)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=_SPECIAL[-1],
        pad_token=_SPECIAL[0],
        additional_special_tokens=list(_SPECIAL),
    )
    made.chat_template = _TEMPLATE
    with tempfile.TemporaryDirectory() as folder:  # as saved and loaded, special tokens have their final ids
        made.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)


def toy_model(seed: int) -> ChatModel:
    """Two layers of width 64 with random weights."""
    tokenizer = letter_tokenizer()
    end, padding = (tokenizer.convert_tokens_to_ids(text) for text in (_SPECIAL[-1], _SPECIAL[0]))
    assert isinstance(end, int) and isinstance(padding, int)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=_ROWS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=padding,
    )
    return ChatModel(LlamaForCausalLM(config).float(), tokenizer, name=f"toy-{seed}")


def toy_prompts(n: int, generator: torch.Generator) -> list[str]:
    """Random prompts of three letters."""
    ids = torch.randint(len(LETTERS), (n, 3), generator=generator).tolist()
    return ["".join(LETTERS[i] for i in row) for row in ids]


def toy_answers(n: int, generator: torch.Generator, *, good: float) -> list[str]:
    """Random answers of 5 to 9 letters, of which a share holds the motif at a random place."""
    found = []
    for _ in range(n):
        length = int(torch.randint(5, 10, (1,), generator=generator))
        letters = [LETTERS[i] for i in torch.randint(len(LETTERS), (length,), generator=generator).tolist()]
        if float(torch.rand(1, generator=generator)) < good:
            place = int(torch.randint(0, length - len(MOTIF) + 1, (1,), generator=generator))
            letters[place : place + len(MOTIF)] = MOTIF
        found.append("".join(letters))
    return found


def toy_score(answer: str) -> float:
    """1 for the motif, and up to 0.5 for as many `a` as `b` among those two; 0 for an empty answer."""
    if not answer:
        return 0.0
    a, b = answer.count("a"), answer.count("b")
    even = 0.5 * (1 - abs(a - b) / (a + b)) if a + b else 0.0
    return float(MOTIF in answer) + even


def score_answers(model: ChatModel, _: ChatTokens, answers: Sequence[Sequence[int]]) -> Tensor:
    """The score of token ids, as policy optimisation asks for it."""
    texts = model.tokenizer.batch_decode([list(ids) for ids in answers], skip_special_tokens=True)
    return torch.tensor([toy_score(text) for text in texts])


def fine_tuned(folder: Path, *, examples: int, seed: int) -> ChatModel:
    """The model that all arms start from."""
    generator = torch.Generator().manual_seed(seed)
    prompts, answers = toy_prompts(examples, generator), toy_answers(examples, generator, good=0.1)
    config = TrainConfig(
        method="full", epochs=4.0, batch_size=32, learning_rate=3e-3, warmup_steps=4, dropout=0.0, seed=seed
    )
    fine_tune(
        toy_model(seed),
        [Example(*pair) for pair in zip(prompts, answers, strict=True)],
        out=folder,
        config=config,
    )
    return load(str(folder))


def toy_config(
    *, updates: int, rollouts: int, learning_rate: float | int, kl: float | int, seed: int
) -> PolicyConfig:
    """Settings that all arms with rollouts share."""
    return PolicyConfig(
        updates=updates,
        rollouts=rollouts,
        epochs=2,
        micro_batch=rollouts,
        learning_rate=learning_rate,
        kl_coefficient=kl,
        max_new_tokens=LONGEST,
        temperature=1.0,
        missing_end_score=-1.0,
        save_every=1000,
        seed=seed,
    )


def toy_arms(
    base: ChatModel,
    folder: Path,
    config: PolicyConfig,
    *,
    betas: Sequence[float | int],
    grpo: bool,
) -> tuple[list[ToyRow], list[Curve]]:
    """Train every arm from one model and measure it on held-out prompts."""
    generator = torch.Generator().manual_seed(500 + config.seed)
    prompts, held_out = toy_prompts(256, generator), toy_prompts(128, generator)
    # References are what people wrote: better than the fine-tuning answers.
    references = toy_answers(256, generator, good=0.8)
    reward = functools.partial(score_answers, base)
    rows = [_measured(base, None, held_out, "SFT", math.nan, config.seed, 0)]
    curves: list[Curve] = []
    for beta in betas:
        done = optimise_policy(
            base,
            prompts,
            reward,
            out=folder / f"beta-{beta}",
            config=_with(config, beta),
            references=references,
        )
        name = f"DR-PO, beta {beta:g}" if beta else "PPO"
        rows.append(_of(done, base, held_out, name, beta, config.seed))
        curves.append(
            Curve(
                beta=beta,
                seed=config.seed,
                reward=tuple(r.reward for r in done.records),
                kl=tuple(r.kl for r in done.records),
                entropy=tuple(r.entropy for r in done.records),
                clip_share=tuple(r.clip_share for r in done.records),
                length=tuple(r.length for r in done.records),
            )
        )
    for beta in (0.0, 1.0) if grpo else ():
        done = optimise_groups(
            base,
            prompts,
            reward,
            out=folder / f"grpo-{beta}",
            config=_with(config, beta),
            references=references,
        )
        name = "GRPO, resets" if beta else "GRPO"
        rows.append(_of(done, base, held_out, name, beta, config.seed))
    rows.append(_dpo(base, prompts, held_out, folder / "dpo", config))
    return rows, curves


def _with(config: PolicyConfig, beta: float | int) -> PolicyConfig:
    return replace(config, beta=float(beta))


def _of(
    done: OptimisedPolicy, base: ChatModel, held_out: Sequence[str], arm: str, beta: float | int, seed: int
) -> ToyRow:
    tokens = done.records[-1].tokens
    return _measured(base, done.folder, held_out, arm, float(beta), seed, tokens, done.collapsed)


def _dpo(
    base: ChatModel, prompts: Sequence[str], held_out: Sequence[str], folder: Path, config: PolicyConfig
) -> ToyRow:
    """DPO on pairs of the model's own answers, as many tokens as the rollouts of the other arms."""
    n = config.updates * config.rollouts // 2
    asked = [prompts[i % len(prompts)] for i in range(n)]
    sides = [
        generate(base, asked, max_new_tokens=LONGEST, temperature=1.0, seed=config.seed + i) for i in range(2)
    ]
    pairs = []
    for prompt, one, two in zip(asked, sides[0].texts, sides[1].texts, strict=True):
        scores = toy_score(one), toy_score(two)
        if one and two and scores[0] != scores[1]:
            pairs.append(Preference(prompt, *((one, two) if scores[0] > scores[1] else (two, one))))
    train = plain_adapter(
        epochs=1.0,
        batch_size=16,
        learning_rate=float(config.learning_rate),
        rank=config.rank,
        max_completion_tokens=LONGEST,
        seed=config.seed,
    )
    preference_tune(base, pairs, out=folder, config=train)
    tokens = sum(len(ids) for side in sides for ids in side.ids)
    return _measured(base, folder, held_out, "DPO", math.nan, config.seed, tokens)


def _measured(
    base: ChatModel,
    adapter: Path | None,
    held_out: Sequence[str],
    arm: str,
    beta: float,
    seed: int,
    tokens: int,
    collapsed: str | None = None,
) -> ToyRow:
    """Two sampled answers to every held-out prompt, their scores, and KL to the base by their log-probabilities."""
    asked = [*held_out, *held_out]
    prompts = tokenize(base.tokenizer, asked)
    if adapter is None:
        found = generate(base, prompts, max_new_tokens=LONGEST, temperature=1.0, seed=seed)
        kl = 0.0
    else:
        with with_adapter(base, str(adapter)) as model:
            found = generate(model, prompts, max_new_tokens=LONGEST, temperature=1.0, seed=seed)
            own = completion_log_probs(model, prompts, found.ids)
        before = completion_log_probs(base, prompts, found.ids)
        kl = sum(float((a - b).sum()) for a, b in zip(own, before, strict=True)) / len(own)
    scores = [
        toy_score(text) if finished else -1.0
        for text, finished in zip(found.texts, found.finished, strict=True)
    ]
    return ToyRow(
        arm=arm,
        beta=beta,
        seed=seed,
        tokens=tokens,
        reward=sum(scores) / len(scores),
        kl=kl,
        motif=sum(MOTIF in text for text in found.texts) / len(asked),
        finished=sum(found.finished) / len(asked),
        collapsed=collapsed,
    )
