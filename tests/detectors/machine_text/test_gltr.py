"""The GLTR view holds the ranks, ratios and entropies of plain logits, and shows them."""

import pytest
import torch

from interp.detectors.machine_text.gltr import GltrView, gltr
from interp.detectors.machine_text.rank_strips import BUCKET_NAMES
from interp.models.chat_model import ChatModel

TEXT = "The <river> rose."


def test_ranks_ratios_and_entropies_are_those_of_plain_logits(tiny: ChatModel) -> None:
    view = gltr(tiny, TEXT)
    ids = torch.tensor(tiny.tokenizer(TEXT)["input_ids"])
    with torch.no_grad():
        p = tiny.hf(ids[None]).logits[0, :-1, :259].softmax(-1)
    own = p.gather(1, ids[1:, None])
    assert view.ranks.tolist() == (1 + (p > own).sum(1)).tolist()
    torch.testing.assert_close(view.ratios, (own / p.amax(1, keepdim=True))[:, 0], rtol=1e-4, atol=1e-6)
    top = p.topk(10).values
    top = top / top.sum(1, keepdim=True)
    torch.testing.assert_close(view.top_entropies, -(top * top.log()).sum(1), rtol=1e-4, atol=1e-5)
    assert view.context + "".join(view.tokens) == TEXT
    with pytest.raises(ValueError, match="text 0 has 0 tokens"):
        gltr(tiny, "")


def view_of(ranks: list[int]) -> GltrView:
    n = len(ranks)
    return GltrView(
        model="planted",
        tokens=tuple(f"t{rank} " for rank in ranks),
        context="<b>",
        ranks=torch.tensor(ranks),
        probabilities=torch.full((n,), 0.5),
        ratios=torch.linspace(0.05, 1, n),
        top_entropies=torch.full((n,), 1.0),
    )


def test_buckets_end_at_ten_a_hundred_and_a_thousand() -> None:
    view = view_of([1, 10, 11, 100, 101, 1000, 1001, 50_000])
    assert view.buckets.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert view.shares == (0.25,) * 4
    assert all(name in repr(view) for name in BUCKET_NAMES)


def test_a_notebook_shows_each_token_on_its_colour_with_its_rank() -> None:
    shown = view_of([1, 50_000])._repr_html_()
    assert "#C8E6C9" in shown and "#D1B3E0" in shown and "#FFF59D" not in shown
    assert 'title="rank 50,000, probability 0.5"' in shown
    assert "&lt;b&gt;" in shown and "<b>t" not in shown  # text is escaped
    long = view_of([5] * 500)._repr_html_()
    assert "and 100 more tokens" in long
