"""A GPU at the size of a 7B model: correct first, then how long, against plain `transformers` calls.

    python -m benchmarks.gpu [--json FILE] [--tiny] [--device cpu]

Nothing is downloaded: the weights are random in the shape of Llama 2 7B, bfloat16, made on the device, and the
tokenizer is trained on the `builtin` prompts. Random weights say nothing of what a model does, and cost what trained
ones cost. Correctness is checked on a small model of the same kind, whose weights are also run in float32. `--tiny
--device cpu` runs the whole script in a minute anywhere.
"""

import argparse
import copy
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import interleaved_medians, write_section
from benchmarks.plain_calls import (
    plain_candidate,
    plain_generate,
    plain_log_probs,
    plain_means,
    plain_scores,
    plain_states,
    plain_steered,
)
from benchmarks.random_models import make_model, make_tokenizer
from interp.data.prompts import load_prompts
from interp.detectors.latent_guard import LatentGuard
from interp.engine.activations import collect, collect_means
from interp.engine.generation import generate
from interp.engine.interventions import Ablate, Add
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from interp.representations.beliefs import fit_centres
from interp.representations.sweeps import Sweep

LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
SMALL = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
TINY = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4}
REFUSAL_IDS = [5, 11]
"""Any tokens: the metric of a random model means nothing, its arithmetic is the same."""


def swept(
    model: ChatModel, directions: dict[Any, Tensor], harmful: ChatTokens, harmless: ChatTokens, *, fast: bool
) -> list[list[float]]:
    """The same scores of all candidates by the sweep."""
    sweep = Sweep(model, directions, harmful=harmful, harmless=harmless, refusal_ids=REFUSAL_IDS, fast=fast)
    found = [sweep.complete(place) for place in directions]
    return [[each.bypass, each.induce, each.kl] for each in found]


def make_guard(model: ChatModel, tokens: ChatTokens) -> LatentGuard:
    """Centres of two halves of these prompts, whatever they mean in a random model."""
    read = collect(model, tokens, sites=["resid_pre", "resid_post"], positions=["t_inst"])
    states = torch.cat([read["resid_pre"], read["resid_post"][:, -1:]], dim=1)[:, :, 0].float()
    half = len(states) // 2
    return LatentGuard(
        harm=fit_centres(states[:half], states[half:]),
        refusal=None,
        layers=tuple(range(model.n_layers)),
        threshold=0.0,
        ending="as-is",
        fitted_on={
            "model": model.name,
            "weights_hash": model.weights_hash,
            "template_hash": model.template_hash,
            "prompt_frame": None if model.prompt_frame is None else list(model.prompt_frame),
        },
    )


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest relative error of a layer."""
    found, expected = found.double(), expected.double()
    gaps = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    return gaps.max().item()


def checks(shape: dict[str, int], device: str, texts: list[str]) -> list[tuple[str, float, float]]:
    """(what, measured, limit) of every check on a small model; measured has to be at most the limit."""
    tokenizer = make_tokenizer(texts)
    exact = make_model(shape, tokenizer, device=device, dtype=torch.float32, name="small")
    half = ChatModel(copy.deepcopy(exact.hf).to(torch.bfloat16), tokenizer, name="small, bfloat16")
    tokens = tokenize(tokenizer, texts[:24])
    middle = exact.n_layers // 2
    rows: list[tuple[str, float, float]] = []
    read = partial(collect, sites="resid_pre", positions="post_inst")

    def states(model: ChatModel, **options: Any) -> Tensor:
        return read(model, tokens, **options)["resid_pre"].float().transpose(0, 1)

    # The engine against plain calls, and bfloat16 against float32.
    truth, fast = plain_means(exact, tokens, 24), states(exact)
    rows.append(
        ("float32: means of the engine against output_hidden_states", relative(fast.mean(1), truth), 1e-5)
    )
    rows.append(
        (
            "float32: states of the fast path against the plain one",
            relative(fast, states(exact, fast=False)),
            1e-5,
        )
    )
    error, plain_error = relative(states(half), fast), relative(states(half, fast=False), fast)
    rows.append(("bfloat16: error of the fast path against float32", error, 3e-2))
    rows.append(("bfloat16: that error over the plain path's", error / plain_error, 1.5))

    # Directions on the CPU, a model on the device: the theorem of each intervention.
    vector = 4 * torch.randn(exact.d_model, generator=torch.Generator().manual_seed(1))
    u = vector / vector.norm()
    for model, limit in ((exact, 1e-5), (half, 2e-2)):
        name = str(model.dtype).removeprefix("torch.")
        before, removed = states(model), states(model, interventions=[Ablate(vector)])
        left = (removed @ u).abs().max() / (before @ u).abs().max()
        rows.append((f"{name}: what ablation leaves of the component", left.item(), limit))
        moved = states(model, interventions=[Add(vector, layers=middle)])[middle] - before[middle]
        rows.append(
            (f"{name}: error of an addition", relative(moved[None], vector.expand_as(moved)[None]), limit)
        )
        rows.append((f"{name}: change once the interventions are gone", relative(states(model), before), 0.0))

    # Completions, against `hf.generate` and against hooks written here.
    arms: dict[str, tuple[list[Any], list[list[int]]]] = {
        "plain": ([], plain_generate(exact, tokens, 12)),
        "steered": ([Add(vector, layers=middle)], plain_steered(exact, tokens, 12, vector, middle)),
    }
    for name, (interventions, expected) in arms.items():
        found = generate(exact, tokens, max_new_tokens=12, interventions=interventions).ids
        differs = sum(list(a) != b[: len(a)] for a, b in zip(found, expected, strict=True))
        rows.append((f"float32: completions that differ from hf.generate, {name}", float(differs), 0.0))
    same = sum(a == b for a, b in zip(arms["plain"][1], arms["steered"][1], strict=True))
    rows.append(("control: completions that steering leaves as they were", same / len(tokens), 0.5))

    # Scores of a sweep and of a guard.
    harmful, harmless = tokens.take(range(12)), tokens.take(range(12, 24))
    base = plain_log_probs(exact, harmless, [])
    found = torch.tensor(swept(exact, {(-1, middle): vector}, harmful, harmless, fast=True))
    expected = torch.tensor([plain_candidate(exact, vector, middle, harmful, harmless, base, REFUSAL_IDS)])
    rows.append(
        ("float32: scores of the sweep against plain sweeps", (found - expected).abs().max().item(), 1e-3)
    )
    guard = make_guard(exact, tokens)
    scores = torch.tensor([score.harmfulness for score in guard.score(exact, texts[:24])])
    gap = (scores - torch.tensor(plain_scores(exact, guard, texts[:24], 8))).abs().max().item()
    rows.append(("float32: scores of the guard against output_hidden_states", gap, 1e-4))
    return rows


def timed(runs: dict[str, Callable[[], object]], device: str, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds and peak gigabytes of each run, the device's work included."""
    on_gpu = device.startswith("cuda")
    peaks: dict[str, float] = {}

    def run(name: str) -> None:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        runs[name]()
        if on_gpu:
            torch.cuda.synchronize()
            peaks[name] = torch.cuda.max_memory_allocated() / 1e9

    seconds = interleaved_medians({name: partial(run, name) for name in runs}, repeats=repeats)
    return {name: {"seconds": s, "peak_gb": peaks.get(name, 0.0)} for name, s in seconds.items()}


def measurements(
    model: ChatModel, texts: list[str], sizes: dict[str, int], repeats: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds of every task by arm; the first arm is the plain one that ratios are against."""
    device = str(model.device)
    tokens = tokenize(model.tokenizer, texts[: sizes["collect"]])
    asked, alone = tokens.take(range(sizes["generate"])), tokens.take([0])
    middle, new = model.n_layers // 2, sizes["new_tokens"]
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(1))
    harmful, harmless = (tokens.take(range(k * sizes["sweep"], (k + 1) * sizes["sweep"])) for k in (0, 1))
    # Candidates of one layer: every template token, as a real sweep has them.
    places = {(-1 - k, middle): (1 + k) * vector for k in range(tokens.n_post)}

    def plainly_swept() -> None:
        base = plain_log_probs(model, harmless, [])
        for each in places.values():
            plain_candidate(model, each, middle, harmful, harmless, base, REFUSAL_IDS)

    guard, scored = make_guard(model, tokens), texts[: sizes["guard"]]
    tasks: dict[str, dict[str, Callable[[], object]]] = {
        f"means of {len(tokens)} prompts": {
            "plain, batches of 32": lambda: plain_means(model, tokens, 32),
            "plain, one batch": lambda: plain_means(model, tokens, len(tokens)),
            "interp.collect_means": lambda: collect_means(model, tokens, positions="post_inst"),
        },
        f"states of {len(tokens)} prompts, to the CPU": {
            "plain, batches of 32": lambda: plain_states(model, tokens, 32),
            "interp.collect": lambda: collect(model, tokens, positions="post_inst"),
        },
        f"{len(asked)} completions of {new} tokens": {
            "hf.generate": lambda: plain_generate(model, asked, new),
            "interp.generate": lambda: generate(model, asked, max_new_tokens=new),
            "hf.generate, steered by a plain hook": lambda: plain_steered(model, asked, new, vector, middle),
            "interp.generate, addition at one layer": lambda: generate(
                model, asked, max_new_tokens=new, interventions=[Add(vector, layers=middle)]
            ),
            "interp.generate, ablation at every site": lambda: generate(
                model, asked, max_new_tokens=new, interventions=[Ablate(vector)]
            ),
        },
        f"1 completion of {new} tokens": {
            "hf.generate": lambda: plain_generate(model, alone, new),
            "interp.generate": lambda: generate(model, alone, max_new_tokens=new),
        },
        f"sweep of one layer, {len(places)} candidates, 2 x {len(harmful)} prompts": {
            "plain sweeps, batches of 32": plainly_swept,
            "interp, exhaustive": lambda: swept(model, places, harmful, harmless, fast=True),
        },
        f"guard, {len(scored)} prompts": {
            "plain, one prompt at a time": lambda: plain_scores(model, guard, scored, 1),
            "plain, batches of 32": lambda: plain_scores(model, guard, scored, 32),
            "guard.score": lambda: guard.score(model, scored),
        },
    }
    found = {}
    for task, runs in tasks.items():
        found[task] = timed(runs, device, repeats)
        for arm, value in found[task].items():
            print(f"{value['seconds']:8.3f} s  {task}: {arm}", flush=True)
    return found


def card_line(device: str) -> str:
    """The device by name, with the versions that matter there."""
    if not device.startswith("cuda"):
        return f"No card: device {device}"
    about = torch.cuda.get_device_properties(device)
    return (
        f"{about.name}, {about.total_memory / 2**30:.0f} GiB, {about.multi_processor_count} multiprocessors, "
        f"CUDA {torch.version.cuda}"
    )


def section(found: dict[str, Any]) -> str:
    """Markdown of all results."""
    checked = "\n".join(
        f"| {what} | {value:.1e} | {limit:.1e} | {'yes' if value <= limit else '**no**'} |"
        for what, value, limit in found["checks"]
    )
    rows = []
    for task, arms in found["tasks"].items():
        plain = next(iter(arms.values()))["seconds"]
        for arm, value in arms.items():
            ratio, peak = plain / value["seconds"], value["peak_gb"]
            rows.append(f"| {task} | {arm} | {value['seconds']:.3f} | {ratio:.2f}x | {peak:.1f} |")
            task = ""
    table = "\n".join(rows)
    return f"""{found["card"]}.
{found["model"]}, random weights;
{found["prompt_tokens"]:.0f} tokens a prompt, {found["n_post"]} of them template after the
instruction. Whole script: {found["seconds"]:.0f} s.

| correctness, on {found["small"]} | measured | limit | holds |
|---|---|---|---|
{checked}

| task | | seconds (median of {found["repeats"]}) | faster than the first by | peak memory, GB |
|---|---|---|---|---|
{table}"""


def main() -> None:
    """Check, measure, print the table and write the section."""
    begun = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="a small shape and few prompts, to try the script"
    )
    parser.add_argument("--json", type=Path, help="where to write all numbers")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    prompts = load_prompts("builtin")
    pool = [
        t for split in ("train", "val", "test") for k in ("harmful", "harmless") for t in prompts[k, split]
    ]
    sizes = {"collect": 512, "generate": 48, "new_tokens": 48, "sweep": 32, "guard": 256}
    if args.tiny:
        sizes = {"collect": 24, "generate": 6, "new_tokens": 8, "sweep": 8, "guard": 24}
    shape, small = (TINY, TINY) if args.tiny else (LLAMA_7B, SMALL)
    checked = checks(small, args.device, pool)
    for what, value, limit in checked:
        print(f"{'ok  ' if value <= limit else 'FAIL'} {value:9.2e} <= {limit:.0e}  {what}", flush=True)
    tokenizer = make_tokenizer(pool)
    model = make_model(shape, tokenizer, device=args.device, dtype=torch.bfloat16, name="7B")
    print(f"model ready after {time.perf_counter() - begun:.0f} s", flush=True)
    tokens = tokenize(tokenizer, pool[: sizes["collect"]])
    tasks = measurements(model, pool, sizes, args.repeats)
    parameters = sum(p.numel() for p in model.hf.parameters())
    found = {
        "card": card_line(args.device),
        "torch": torch.__version__,
        "model": f"Llama, {parameters / 1e9:.2f}B parameters, {model.n_layers} layers, width {model.d_model}, bfloat16",
        "small": f"{small['num_hidden_layers']} layers, width {small['hidden_size']}",
        "prompt_tokens": sum(map(len, tokens.ids)) / len(tokens),
        "n_post": tokens.n_post,
        "repeats": args.repeats,
        "checks": checked,
        "tasks": tasks,
        "seconds": time.perf_counter() - begun,
    }
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1))
    write_section("GPU", section(found))
    if failed := [what for what, value, limit in checked if not value <= limit]:
        raise SystemExit(f"does not hold: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
