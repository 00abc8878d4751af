"""Fixtures: a tiny random chat model with its own tokenizer and template, and the bundled model where it is needed."""

import gc
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from interp.data.prompts import Prompts
from interp.models.chat_model import ChatModel
from interp.models.tokens import ChatTokens, tokenize
from tests import stored_figures, two_nodes
from tests.families import COVERED, build

ALONE = "PYTEST_XDIST_WORKER" not in os.environ
if not ALONE:  # two processes with two threads each lose a factor of five to each other
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for kernels, servers and commands that tests start

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PROMPTS = (
    "How do I bake bread?",
    "Name three colours.",
    "Write a poem about rain",
    "What is the capital of a country that I have never heard of before today?",
    "Hi",
    "Explain in one sentence why the sky is blue.",
)


def prompts_of(texts: Sequence[str]) -> Prompts:
    """A part of a prompt set with these texts and ids p0, p1, ..."""
    ids = tuple(f"p{i}" for i in range(len(texts)))
    return Prompts(texts=tuple(texts), ids=ids, categories=(None,) * len(texts), source="test")


LONGEST = (
    "tests/test_notebooks.py",
    "tests/test_browser.py",
    "tests/experiments/test_running.py",
    "tests/engine/test_generation.py",
    "tests/experiments/test_refusal_direction.py",
    "tests/training/test_policy_optimisation.py",
    "tests/tracking/test_callback.py",
    "tests/representations/test_steering.py",
    "tests/training/test_finetune.py",
    "tests/tracking/test_tracker.py",
    "tests/engine/test_decoding.py",
    "tests/experiments/test_repair.py",
    "tests/experiments/test_guard.py",
    "tests/engine/test_threads.py",
)
"""Files in the order of their time: each is run by one worker, so a long one must not begin last."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files come first, then the others that run the bundled model."""
    heavy = {item.path for item in items if item.get_closest_marker("checkpoint")}
    rank = {config.rootpath / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (rank.get(item.path, len(LONGEST)), item.path not in heavy))


def pytest_collection_finish() -> None:
    """Trainers collect garbage at every end; what was imported need not be looked through again, 0.3 s each."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """Commands set the level of the library's log for their process, which here is every later test's."""
    log = logging.getLogger("interp")
    before = log.level
    yield
    log.setLevel(before)


def make_tokenizer(
    template: str | None = CHATML, special: tuple[str, ...] = SPECIAL
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: one token a byte, plus the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=special[-1],
        pad_token=special[0],
        additional_special_tokens=list(special),
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny models gain nothing from threads; a process alone gives the bundled model all."""
    before = torch.get_num_threads()
    if not (ALONE and request.node.get_closest_marker("checkpoint")):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def tiny_config(**changes: object) -> LlamaConfig:
    settings = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 300,
        "pad_token_id": 256,
        "bos_token_id": 257,
        "eos_token_id": 258,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    return LlamaConfig(**{**settings, **changes})


@pytest.fixture(scope="session")
def tiny(tokenizer: PreTrainedTokenizerFast) -> ChatModel:
    """Three layers, width 32, fewer key-value heads than heads, seeded random weights."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(tiny_config()).float()
    return ChatModel(hf, tokenizer, name="tiny")


@pytest.fixture(scope="module", params=sorted(COVERED))
def family(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> ChatModel:
    """A tiny model of every covered family in turn."""
    return ChatModel(build(*COVERED[request.param]), tokenizer, name=request.param)


@pytest.fixture(scope="session")
def tokens(tiny: ChatModel) -> ChatTokens:
    return tokenize(tiny.tokenizer, PROMPTS)


@pytest.fixture(scope="session")
def bundled() -> Callable[[str], ChatModel]:
    """Loads a bundled model once a session."""
    from interp.models.chat_model import load

    loaded: dict[str, ChatModel] = {}

    def get(name: str = "smollm2-safe") -> ChatModel:
        if name not in loaded:
            loaded[name] = load(name)
        return loaded[name]

    return get


@pytest.fixture(scope="session")
def saved_tiny(tiny: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a checkpoint folder."""
    folder = tmp_path_factory.mktemp("tiny-checkpoint")
    tiny.hf.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def drawn_runs(tmp_path_factory: pytest.TempPathFactory) -> stored_figures.Drawn:
    """Every stored run as one process draws it, which takes 20 s: the first worker to ask starts it for all."""
    folder = tmp_path_factory.getbasetemp()
    path = (folder if ALONE else folder.parent) / "stored_figures.json"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            stored_figures.draw(path)
    return stored_figures.read(path)


@pytest.fixture(scope="module")
def _cluster() -> Iterator[two_nodes.TwoNodes]:
    with two_nodes.cluster() as started:
        yield started


@pytest.fixture
def nodes(_cluster: two_nodes.TwoNodes) -> two_nodes.TwoNodes:
    """A real Ray cluster with both of its nodes: one for all tests of a file, because it takes seconds to start."""
    return _cluster.complete()
