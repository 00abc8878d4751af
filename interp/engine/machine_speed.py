"""The three speeds that plans need, measured once on this machine and kept in the cache folder.

A random model of the bundled one's width, twelve blocks deep, reads and decodes through the engine, so that packing,
attention and what lies between matrix products count as they do in a run; then an adapter on it takes the forward and
backward pass of a training step. On a CPU the time is the process's own divided by its threads, which other processes
hardly change. It takes ten seconds; what was measured is kept by processor, threads, torch version and dtype.
"""

import json
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from interp.engine.costs import DECODE_ROWS, MachineSpeed, Work
from interp.models.gguf import cache_folder
from interp.models.model_sizes import ModelSize
from interp.storage.atomic_files import write_file
from interp.storage.typed_json import read_json

_FILE = "machine-speed.json"
_NAMES = ("reading", "decoding", "training")
_STEPS = (2, 10)
"""Decoding steps of the two batches whose difference is measured."""
_LAYERS = 12
_TRAINED = (4, 80)
"""Rows and tokens of the training step that is measured."""
_ADAPTED = ["q_proj", "v_proj", "o_proj", "down_proj"]
"""Modules with an adapter, as fine-tuning has them (`TrainConfig.target_modules`)."""


def machine_speed(*, dtype: str = "float32", device: str = "cpu", again: bool = False) -> MachineSpeed:
    """The speeds of this machine: from the cache folder, else measured now and kept there.

    Args:
        again: measure although there is a measurement.
    """
    key, path = _key(dtype, device), cache_folder() / _FILE
    kept = _kept(path)
    if key in kept and not again:
        reading, decoding, training = (kept[key][name] for name in _NAMES)
        return MachineSpeed(reading=reading, decoding=decoding, training=training)
    measured = measure_speed(dtype=dtype, device=device)
    found = {name: getattr(measured, name) for name in _NAMES}
    # Read again: another process may have measured another dtype meanwhile.
    write_file(path, json.dumps(_kept(path) | {key: found}, indent=1).encode())
    return measured


def is_measured(*, dtype: str, device: str) -> bool:
    """Whether this machine's speeds are in the cache folder."""
    return _key(dtype, device) in _kept(cache_folder() / _FILE)


def measure_speed(*, dtype: str = "float32", device: str = "cpu") -> MachineSpeed:
    """Run the random model."""
    import torch

    from interp.engine.activations import collect
    from interp.engine.generation import generate
    from interp.models.tokens import tokenize

    model, size = _random_model(dtype, device)
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(97, 123, (DECODE_ROWS, 40), generator=generator)
    prompts = [bytes(row).decode() for row in letters.tolist()]
    tokens = tokenize(model.tokenizer, prompts)
    distinct = len({ids[:end] for ids in tokens.ids for end in range(1, len(ids) + 1)})
    elapsed = _clock(device)
    collect(model, tokens.take([0, 1]))  # the self-test of the first use
    reading = elapsed(lambda: collect(model, tokens))
    short = tokenize(model.tokenizer, [text[:6] for text in prompts])
    generate(model, short, max_new_tokens=1)
    decoded: list[int] = []

    def decode(max_new_tokens: int) -> float:
        def work() -> None:
            done = generate(model, short, max_new_tokens=max_new_tokens)
            decoded.append(sum(map(len, done.ids)))

        return elapsed(work)

    few, many = map(decode, _STEPS)
    work = (decoded[1] - decoded[0]) * (size.flops_per_token + size.flops_per_unembedding)
    return MachineSpeed(
        reading=distinct * size.flops_per_token / reading,
        decoding=work / max(many - few, 1e-6),
        training=_training_speed(model, size, elapsed),
    )


def _training_speed(model: Any, size: ModelSize, elapsed: Callable[[Callable[[], Any]], float]) -> float:
    """Floating-point operations a second of the forward and backward pass of a step that trains an adapter."""
    import torch
    from peft import LoraConfig, get_peft_model

    rows, tokens = _TRAINED
    adapted: Any = get_peft_model(
        model.hf, LoraConfig(r=8, lora_alpha=16, target_modules=_ADAPTED, lora_dropout=0.0)
    )
    ids = torch.randint(97, 123, (rows, tokens), generator=torch.Generator().manual_seed(0)).to(model.device)
    logits = 8

    def step() -> None:
        out = adapted(input_ids=ids, labels=None, logits_to_keep=logits, use_cache=False).logits
        out.float().log_softmax(-1).mean().backward()
        adapted.zero_grad()

    step()  # the first one allocates
    seconds = min(elapsed(step) for _ in range(2))
    work = Work(gradient_tokens=rows * tokens, gradient_unembedded=rows * logits)
    return work.seconds(size, MachineSpeed(reading=1.0, decoding=1.0)) / seconds


def _clock(device: str) -> Callable[[Callable[[], Any]], float]:
    import torch

    def elapsed(work: Callable[[], Any]) -> float:
        read = time.perf_counter if device.startswith("cuda") else time.process_time
        begun = read()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
            return read() - begun
        return (read() - begun) / torch.get_num_threads()

    return elapsed


def _random_model(dtype: str, device: str) -> tuple[Any, ModelSize]:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    from interp.models.chat_model import ChatModel

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<pad>")
    tokenizer.chat_template = "User: {{ messages[-1]['content'] }}\nAssistant:"
    end: Any = tokenizer.eos_token_id
    pad: Any = tokenizer.pad_token_id
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=_LAYERS,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=8192,
        tie_word_embeddings=True,
        eos_token_id=end,
        pad_token_id=pad,
        bos_token_id=end,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf: Any = AutoModelForCausalLM.from_config(config)
    hf = hf.eval().to(device=device, dtype=getattr(torch, dtype))
    return ChatModel(hf, tokenizer, name="random"), ModelSize.from_config(config.to_dict())


def _key(dtype: str, device: str) -> str:
    """What the speeds depend on; found without torch."""
    if device.startswith("cuda"):
        import torch

        return f"{torch.cuda.get_device_name(device)}, torch {version('torch')}, {dtype}"
    threads = os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count())
    return f"{_processor()}, {threads} threads, torch {version('torch')}, {dtype}"


def _processor() -> str:
    import platform

    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _kept(path: Path) -> dict[str, dict[str, float]]:
    if not path.is_file():
        return {}
    try:
        found: dict[str, dict[str, float]] = read_json(
            path, dict[str, dict[str, float]], remedy="measuring again"
        )
    except ValueError:  # damaged: measured again
        return {}
    return {key: speeds for key, speeds in found.items() if set(_NAMES) <= speeds.keys()}
