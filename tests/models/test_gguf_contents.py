"""What a GGUF file holds is what the model has: the same logits, or a refusal that names what would be left out."""

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from interp.models.loading import load_checkpoint
from tests.conftest import tiny_config
from tests.families import COMMON, GEMMA, HEAD, build
from tests.models.gguf_files import BOOL, F32, TEXT, U32, Key, copy_gguf, write_model

pytestmark = pytest.mark.usefixtures("cache")

IDS = torch.arange(5, 45)[None] * 5 % 250
ARRAY = gguf.GGUFValueType.ARRAY


def logits(model: torch.nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def llama(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(**changes), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as one file."""
    return write_model(tmp_path_factory.mktemp("gguf") / "tiny.gguf", "llama", llama())


def assert_same(path: Path, expected: PreTrainedModel) -> None:
    """The file's model computes what the model does that it was written of."""
    # The same float32 numbers; sums may run in another order.
    torch.testing.assert_close(logits(load_checkpoint(str(path)).hf), logits(expected), rtol=1e-5, atol=1e-5)


def refused(path: Path, match: str, cache: Path) -> None:
    with pytest.raises(ValueError, match=match):
        load_checkpoint(str(path))
    assert not cache.exists() or not any(cache.iterdir())  # nothing is kept of a file that is refused


# Right values

SCALED = {
    "linear": (
        {"rope_type": "linear", "factor": 4.0},
        {"scaling.type": ("linear", TEXT), "scaling.factor": (4.0, F32)},
    ),
    "linear, type left out": ({"rope_type": "linear", "factor": 4.0}, {"scaling.factor": (4.0, F32)}),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {
            "scaling.type": ("yarn", TEXT),
            "scaling.factor": (4.0, F32),
            "scaling.original_context_length": (16, U32),
        },
    ),
    "another base": ({"rope_type": "default", "rope_theta": 500.0}, {"freq_base": (500.0, F32)}),
    "none": ({"rope_type": "default"}, {"scaling.type": ("none", TEXT)}),
}


@pytest.mark.parametrize("case", SCALED)
def test_rope_scaling_is_that_of_the_file(case: str, tmp_path: Path) -> None:
    rope, keys = SCALED[case]
    hf = llama(rope_parameters={"rope_theta": 10000.0, **rope})
    if case != "none":
        assert (logits(hf) - logits(llama())).abs().max() > 1e-3  # control: the scaling does something
    path = write_model(
        tmp_path / "m.gguf", "llama", hf, {f"rope.{key}": value for key, value in keys.items()}
    )
    assert_same(path, hf)


def test_factors_of_llama_3_are_read(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    hf = llama(head_dim=64, rope_parameters={**scaling, "rope_theta": 500000.0})
    inverse, _ = ROPE_INIT_FUNCTIONS["llama3"](hf.config, torch.device("cpu"))
    plain = 1.0 / 500000.0 ** (torch.arange(0, 64, 2) / 64)
    factors = (plain / inverse).float().numpy()
    assert factors.max() == pytest.approx(8.0) and factors.min() == pytest.approx(
        1.0
    )  # as in the published files
    path = write_model(tmp_path / "plain.gguf", "llama", hf, {"rope.freq_base": (500000.0, F32)})
    with_factors = copy_gguf(path, tmp_path / "scaled.gguf", tensors={"rope_freqs.weight": factors})
    loaded = load_checkpoint(str(with_factors)).hf
    assert loaded.config.rope_parameters == hf.config.rope_parameters
    assert_same(with_factors, hf)
    # control: without the factors it is another model
    assert not torch.allclose(
        loaded.model.rotary_emb.inv_freq, load_checkpoint(str(path)).hf.model.rotary_emb.inv_freq, rtol=1e-3
    )


def test_factors_that_change_nothing_are_accepted_and_others_refused(
    whole: Path, tmp_path: Path, cache: Path
) -> None:
    odd = copy_gguf(
        whole, tmp_path / "odd.gguf", tensors={"rope_freqs.weight": np.array([1, 2, 3, 9], np.float32)}
    )
    refused(odd, r"rope_freqs\.weight divides .* by 1 to 9, which is not the scaling of Llama 3\.1", cache)
    ones = copy_gguf(whole, tmp_path / "ones.gguf", tensors={"rope_freqs.weight": np.ones(4, np.float32)})
    assert_same(ones, llama())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_biases_and_output_projection(tied: bool, biased: bool, tmp_path: Path) -> None:
    hf = llama(tie_word_embeddings=tied, attention_bias=biased, mlp_bias=biased)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.5)
    path = write_model(tmp_path / "m.gguf", "llama", hf)
    assert_same(path, hf)
    assert load_checkpoint(str(path)).hf.config.tie_word_embeddings == tied


FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Key]]] = {
    "qwen2": ("Qwen2Config", {**COMMON, "max_position_embeddings": 64}, {}),
    "qwen3": ("Qwen3Config", {**HEAD, "max_position_embeddings": 64}, {}),
    "gemma3": (
        "Gemma3TextConfig",
        {**GEMMA, "sliding_window": 8, "max_position_embeddings": 64, "num_hidden_layers": 6},
        {"attention.sliding_window": (8, U32), "rope.freq_base": (1e6, F32)},
    ),
    "gemma3, another pattern and scale": (
        "Gemma3TextConfig",
        {
            **GEMMA,
            "sliding_window": 8,
            "max_position_embeddings": 64,
            "query_pre_attn_scalar": 16,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "final_logit_softcapping": 2.0,
        },
        {
            "attention.sliding_window": (8, U32),
            "rope.freq_base": (1e6, F32),
            "attention.scale": (0.25, F32),
            "attention.sliding_window_pattern": ([False, True, True], ARRAY),
            "final_logit_softcapping": (2.0, F32),
        },
    ),
    "gemma2": (
        "Gemma2Config",
        {**GEMMA, "sliding_window": 8, "max_position_embeddings": 64, "attn_logit_softcapping": 3.0},
        {
            "attention.sliding_window": (8, U32),
            "rope.freq_base": (1e4, F32),
            "attn_logit_softcapping": (3.0, F32),
            "final_logit_softcapping": (30.0, F32),
        },
    ),
}


@pytest.mark.parametrize("case", FAMILIES)
def test_windows_caps_and_scales_of_other_families(case: str, tmp_path: Path) -> None:
    kind, settings, keys = FAMILIES[case]
    hf = build(kind, settings)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.5)
    assert_same(write_model(tmp_path / "m.gguf", case.partition(",")[0], hf, keys), hf)


def test_layers_of_different_shapes_are_refused(whole: Path, tmp_path: Path, cache: Path) -> None:
    keys: dict[str, Key | None] = {"llama.feed_forward_length": ([64, 32, 64], ARRAY)}
    path = copy_gguf(whole, tmp_path / "m.gguf", keys=keys)
    refused(path, r"m\.gguf: .*intermediate_size.*\[64, 32, 64\]", cache)


def test_default_of_the_format_is_not_that_of_transformers(whole: Path, tmp_path: Path, cache: Path) -> None:
    # Without the key there are as many key-value heads as heads, and this file's tensors are of fewer.
    path = copy_gguf(whole, tmp_path / "m.gguf", keys={"llama.attention.head_count_kv": None})
    refused(path, r"cannot convert .*m\.gguf", cache)


# Refusals

KEYS: dict[str, tuple[Key | None, str]] = {
    "llama.attention.layer_norm_rms_epsilon": (
        None,
        r"key llama\.attention\.layer_norm_rms_epsilon is missing",
    ),
    "llama.attention.head_count": (None, r"key llama\.attention\.head_count is missing"),
    "llama.embedding_length": (None, r"key llama\.embedding_length is missing"),
    "llama.block_count": (None, r"key llama\.block_count is missing"),
    "llama.context_length": (None, r"key llama\.context_length is missing"),
    "llama.attention.sliding_window": ((16, U32), r"sliding_window is 16, and the model's window is None"),
    "llama.attn_logit_softcapping": ((50.0, F32), r"attn_logit_softcapping is 50\.0, which LlamaConfig"),
    "llama.final_logit_softcapping": ((30.0, F32), r"final_logit_softcapping is 30\.0, which LlamaConfig"),
    "llama.attention.scale": ((0.1, F32), r"attention is scaled by 0\.1 in the file, and by 0\.353553"),
    "llama.logit_scale": ((0.5, F32), r"logit_scale is 0\.5, which LlamaConfig cannot express"),
    "llama.embedding_scale": ((12.0, F32), r"embedding_scale is 12\.0, which LlamaConfig cannot express"),
    "llama.residual_scale": ((0.2, F32), r"residual_scale is 0\.2"),
    "llama.expert_count": ((8, U32), r"expert_count is 8, which LlamaConfig cannot express"),
    "llama.rope.dimension_count": ((4, U32), r"rope\.dimension_count is 4, and the model rotates 8"),
    "llama.rope.scaling.type": (
        ("longrope", TEXT),
        r"rope\.scaling\.type is 'longrope', which is not read",
    ),
    "llama.rope.scaling.attn_factor": ((1.2, F32), r"rope\.scaling\.attn_factor is 1\.2"),
    "llama.rope.freq_base_swa": ((100.0, F32), r"rope\.freq_base_swa is 100\.0, which the model ignores"),
    "llama.attention.value_length": ((16, U32), r"attention\.value_length is 16, and head_dim is 8"),
    "llama.attention.clamp_kqv": ((8.0, F32), r"attention\.clamp_kqv is 8\.0"),
    "llama.attention.causal": ((False, BOOL), r"attention\.causal is False"),
    "llama.use_parallel_residual": ((True, BOOL), r"use_parallel_residual is True"),
    "llama.a_new_key": ((3, U32), r"llama\.a_new_key \(3\) is not a key that is read"),
    "general.type": (("adapter", TEXT), r"general\.type is 'adapter', not 'model'"),
    "tokenizer.ggml.pre": (("viking", TEXT), r"pre is 'viking', rules of splitting text that are not known"),
}


@pytest.mark.parametrize("key", KEYS)
def test_key_that_the_model_cannot_follow_is_refused(
    key: str, whole: Path, tmp_path: Path, cache: Path
) -> None:
    change, match = KEYS[key]
    refused(copy_gguf(whole, tmp_path / "m.gguf", keys={key: change}), rf"m\.gguf: .*{match}", cache)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.context_length", (0, U32)),
        ("llama.attention.layer_norm_rms_epsilon", (-1.0, F32)),
        ("llama.rope.freq_base", (0.0, F32)),
        ("llama.rope.scaling.factor", (float("inf"), F32)),
        ("llama.rope.scaling.factor", ("4", TEXT)),
    ],
)
def test_key_that_is_no_number_above_0_is_refused(
    key: str, value: Key, whole: Path, tmp_path: Path, cache: Path
) -> None:
    path = copy_gguf(whole, tmp_path / "m.gguf", keys={key: value})
    refused(path, rf"m\.gguf: {key} is .*, which is not a number above 0", cache)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.attention.sliding_window", (4096, U32)),
        ("llama.attn_logit_softcapping", (0.0, F32)),
        ("llama.logit_scale", (1.0, F32)),
        ("llama.expert_count", (0, U32)),
        ("llama.rope.scaling.finetuned", (True, BOOL)),
        ("llama.attention.causal", (True, BOOL)),
    ],
)
def test_key_that_changes_nothing_is_accepted(key: str, value: Key, whole: Path, tmp_path: Path) -> None:
    assert_same(copy_gguf(whole, tmp_path / "m.gguf", keys={key: value}), llama())


@pytest.mark.parametrize(
    "name", ["blk.1.attn_q.bias", "blk.0.attn_q_norm.weight", "blk.2.ffn_sub_norm.weight", "something.weight"]
)
def test_tensor_without_a_place_is_refused(name: str, whole: Path, tmp_path: Path, cache: Path) -> None:
    path = copy_gguf(whole, tmp_path / "m.gguf", tensors={name: np.ones(32, np.float32)})
    refused(path, "tensors of the model are missing|have no place in LlamaForCausalLM, first " + name, cache)


@pytest.mark.parametrize("name", ["blk.1.attn_q.weight", "output_norm.weight", "token_embd.weight"])
def test_missing_tensor_is_refused(name: str, whole: Path, tmp_path: Path, cache: Path) -> None:
    path = copy_gguf(whole, tmp_path / "m.gguf", keep=lambda tensor: tensor != name)
    refused(path, r"\d tensors of the model are missing, first .*random numbers", cache)


def test_more_layers_than_tensors_are_refused_before_they_are_built(
    whole: Path, tmp_path: Path, cache: Path
) -> None:
    path = copy_gguf(whole, tmp_path / "m.gguf", keys={"llama.block_count": (4_000_000_000, U32)})
    refused(path, r"block_count is 4000000000, and the file holds 29 tensors", cache)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(
    value: float, whole: Path, tmp_path: Path, cache: Path
) -> None:
    norm = {"output_norm.weight": np.full(32, value, np.float32)}
    path = copy_gguf(whole, tmp_path / "m.gguf", keep=lambda name: name not in norm, tensors=norm)
    refused(path, r"m\.gguf: output_norm\.weight holds NaN or infinite values", cache)


# Split files


@pytest.fixture
def shards(whole: Path, tmp_path: Path) -> list[Path]:
    copy_gguf(whole, tmp_path / "m.gguf", split_max_tensors=8)
    return sorted(tmp_path.glob("m-*.gguf"))


def test_shards_are_joined_whichever_is_given(shards: list[Path], cache: Path) -> None:
    assert len(shards) > 2
    for shard in (shards[0], shards[-1]):
        assert_same(shard, llama())
    assert len(list(cache.iterdir())) == 1


def test_a_first_shard_that_is_aligned_otherwise_is_joined(shards: list[Path], tmp_path: Path) -> None:
    """llama.cpp's tool keeps the key in the first shard, and aligns the others by its default."""
    copy_gguf(shards[0], tmp_path / "aligned.gguf", alignment=256).rename(shards[0])
    assert_same(shards[0], llama())


def test_tensors_that_do_not_follow_each_other_are_refused(whole: Path, tmp_path: Path, cache: Path) -> None:
    """Shards aligned by 256 bytes of which only the first says so: later tensors would be read beside their place."""
    copy_gguf(whole, tmp_path / "m.gguf", split_max_tensors=8, alignment=256)
    refused(tmp_path / "m-00001-of-00004.gguf", r"m-00002-of-00004\.gguf: .*bytes between its tensors", cache)


def test_shards_under_swapped_names_are_joined_in_their_own_order(shards: list[Path], tmp_path: Path) -> None:
    shards[0].rename(tmp_path / "first")
    shards[1].rename(shards[0])
    (tmp_path / "first").rename(shards[1])
    assert_same(shards[0], llama())


def test_split_file_that_is_not_whole_is_refused(
    shards: list[Path], whole: Path, tmp_path: Path, cache: Path
) -> None:
    alone = tmp_path / "alone.gguf"
    shutil.copy(shards[0], alone)
    refused(alone, r"it is one of \d files of a model and has lost its name", cache)
    missing = shards[1].read_bytes()
    shards[1].unlink()
    refused(shards[0], rf"{shards[1].name} is missing from its folder", cache)
    shutil.copy(shards[2], shards[1])
    refused(shards[0], r"both hold shard 3 of \d", cache)
    shutil.copy(whole, shards[1])
    refused(shards[0], r"says that it is shard 0 of 1, and there are \d files", cache)
    shards[1].write_bytes(missing[: len(missing) // 2])
    refused(shards[0], r"truncated or damaged, download it again", cache)


def test_shard_of_another_split_is_refused(
    shards: list[Path], whole: Path, tmp_path: Path, cache: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    copy_gguf(
        whole, other / "m.gguf", split_max_tensors=8, tensors={"rope_freqs.weight": np.ones(4, np.float32)}
    )
    strangers = sorted(other.glob("m-*.gguf"))
    assert len(strangers) == len(shards)
    shutil.copy(strangers[1], shards[1])
    refused(shards[0], "belongs to another model", cache)


def test_digits_are_set_apart_where_the_file_says_so(whole: Path, tmp_path: Path) -> None:
    path = copy_gguf(whole, tmp_path / "m.gguf", keys={"tokenizer.ggml.pre": ("smollm", TEXT)})
    tokenizer: Any = load_checkpoint(str(path)).tokenizer
    splits = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")
    assert [text for text, _ in splits] == ["a", "ĠĠ", "1", "2"]
