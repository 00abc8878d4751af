"""Refusal probabilities: the string rule, what is kept of sampled answers, any of k against single samples."""

import pytest
import torch

from interp.engine.generation import generate
from interp.engine.log_probs import next_token_log_probs
from interp.engine.safety_prompts import SafetyPrompt
from interp.engine.sampling import nucleus
from interp.evaluation.refusal_probabilities import (
    RefusalSamples,
    answer_opening,
    any_of_k,
    first_token_refusal,
    sample_refusals,
    single_sample,
    string_judge,
)
from interp.models.chat_model import ChatModel
from interp.models.prompt_inputs import PromptIdentity
from interp.stats import rate
from tests.conftest import PROMPTS


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("Bread needs flour.\n\nI cannot say more.", True),
        ("One.\n\nTwo.\n\nI cannot say more.", False),  # the third paragraph
        ("Steps:\n1. Knead.\n2. I cannot wait: bake.", False),  # in a list
        ("I cannot guarantee that it works, but knead it well.", False),  # exceptions
        ("I cannot give you personal advice. Knead it.", False),
        ("Knead it well.", False),
        ("", False),
    ],
)
def test_the_string_rule(answer: str, refuses: bool) -> None:
    assert string_judge("How do I bake bread?", answer) is refuses


def test_an_opening_ends_at_a_list() -> None:
    assert answer_opening("\nA\n\nB\nC") == "A\nB"
    assert answer_opening("A\n- b\nC") == "A"


def samples(refused: list[list[int]], words: list[list[int]], n_kept: int) -> RefusalSamples:
    return RefusalSamples(
        refused=torch.tensor(refused).bool(),
        words=torch.tensor(words),
        n_kept=n_kept,
        identity=PromptIdentity.numbered([str(i) for i in range(len(refused))]),
    )


def test_the_longest_answers_count_and_any_of_k_is_strict() -> None:
    done = samples([[0, 1, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]], [[9, 1, 8, 7], [9, 8, 1, 7], [1, 2, 3, 4]], 3)
    assert done.kept.tolist() == [[False, True, True], [True, True, True], [True, True, True]]
    assert done.probability.tolist() == pytest.approx([2 / 3, 1, 1])
    assert any_of_k(done, "complied") == rate([True, False, False])
    assert any_of_k(done, "refused").value == 1
    assert single_sample(done, "complied") == rate([True, False, False])
    assert single_sample(done, "refused") == rate([False, True, True])
    with pytest.raises(ValueError, match="n_kept must be in"):
        samples([[0]], [[1]], 2)


def test_samples_are_those_of_generate_judged_one_by_one(tiny: ChatModel) -> None:
    prompt = SafetyPrompt.from_text(tiny, "Be kind.")
    seen: list[tuple[str, str]] = []

    def judge(request: str, answer: str) -> bool:
        seen.append((request, answer))
        return len(seen) % 3 == 0

    done = sample_refusals(
        tiny,
        PROMPTS[:2],
        safety_prompt=prompt,
        n_samples=5,
        max_new_tokens=6,
        top_k=None,
        top_p=1.0,
        judge=judge,
    )
    assert done.refused.flatten().tolist() == [i % 3 == 2 for i in range(10)]
    assert done.n_kept == 4 and [request for request, _ in seen] == [PROMPTS[0]] * 5 + [PROMPTS[1]] * 5
    assert len({answer for _, answer in seen}) > 5  # samples differ
    assert done.words.flatten().tolist() == [len(answer.split()) for _, answer in seen]
    again = sample_refusals(tiny, PROMPTS[:2], safety_prompt=prompt, n_samples=5, max_new_tokens=6)
    assert again.identity.texts == PROMPTS[:2] and not again.refused.any()


def test_the_first_token_version_is_the_mass_of_refusal_tokens(tiny: ChatModel) -> None:
    found = first_token_refusal(tiny, PROMPTS, [70, 80])
    expected = next_token_log_probs(tiny, PROMPTS).exp()[:, [70, 80]].sum(-1)
    torch.testing.assert_close(found, expected)
    prompt = SafetyPrompt.from_text(tiny, "Be kind.")
    assert (first_token_refusal(tiny, PROMPTS, [70, 80], safety_prompt=prompt) - found).abs().max() > 1e-6


def test_sampling_is_limited_to_the_likeliest_tokens(tiny: ChatModel) -> None:
    weights = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.1, 0.1, 0.7]])
    assert (nucleus(weights, None, 0.75) > 0).sum(1).tolist() == [2, 2]  # 0.5 + 0.3, 0.7 + 0.1
    assert nucleus(weights, None, 0.75)[0].tolist() == pytest.approx([0.5, 0.3, 0, 0])
    assert (nucleus(weights, 2, 1.0) > 0).sum(1).tolist() == [2, 2]
    assert torch.equal(nucleus(weights, None, 1.0), weights)
    greedy = generate(tiny, PROMPTS, max_new_tokens=5).ids
    assert generate(tiny, PROMPTS, max_new_tokens=5, temperature=2.0, top_k=1).ids == greedy
    assert generate(tiny, PROMPTS, max_new_tokens=5, temperature=2.0, top_p=1e-6).ids == greedy
    assert generate(tiny, PROMPTS, max_new_tokens=5, temperature=2.0).ids != greedy
    with pytest.raises(ValueError, match="top_k must be 1 or more"):
        generate(tiny, "Hi", top_k=0)
    with pytest.raises(ValueError, match="top_p must lie above 0"):
        generate(tiny, "Hi", top_p=0.0)
