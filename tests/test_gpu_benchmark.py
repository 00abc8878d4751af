"""The checks of the GPU benchmark hold on the CPU, with models of three layers."""

from benchmarks.gpu import TINY, checks
from interp.data.prompts import load_prompts


def test_every_check_holds() -> None:
    prompts = load_prompts("builtin")
    rows = checks(TINY, "cpu", [*prompts["harmful", "val"].texts, *prompts["harmless", "val"].texts])
    assert len(rows) == 15
    assert not [row for row in rows if not row[1] <= row[2]]
