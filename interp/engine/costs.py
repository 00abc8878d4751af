"""What work costs on a machine: tokens that run → seconds and bytes, from a model's size and three measured speeds.

    seconds of reading  = read tokens x 2 active weights / reading speed
    seconds of decoding = (share x full rows x steps + (1 - share) x decoded tokens) x 2 weights / decoding speed
    seconds of training = gradient tokens x 3 x 2 active weights / training speed

A decoding step reads all weights however few rows it has, which takes the share `_STEP_SHARE` of a step of a full
batch. The speeds are floating-point operations a second as the engine and a trainer of adapters get them, packing and
attention included: measured once on this machine (`interp.engine.machine_speed`), or assumed (`MachineSpeed.assumed`).
Not counted: loading, tokenising, statistics and drawing, which take seconds. Imports no torch.

    work = Work(read_tokens=10**6, decoded_tokens=10**5, decoding_steps=2_000)
    work.seconds(size, speed)
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

from interp.models.model_sizes import ModelSize

DECODE_ROWS = 128
"""Completions that a CPU decodes together (`PassBudget.decode_rows`)."""
PACKED_PROMPTS = 32
"""Prompts from which on a CPU runs those that decode together packed (`interp.engine.packed_prefill`)."""
_STEP_SHARE = 0.12
"""Share of the time of a full step that one row takes: 0.10 s of 0.8 s for smollm2 on an Intel core."""
_SWEPT = 0.5
"""Time of a token in a long sweep: weights stay packed from candidate to candidate (refusal-direction, 180 of them)."""
_BACKWARD = 3
"""A pass with gradients costs as much as three without: one forward, and products for inputs and for weights."""
_PROCESS_BYTES = 700_000_000
"""Resident memory of Python with torch and transformers, before a model."""


@dataclass(frozen=True, kw_only=True)
class MachineSpeed:
    """What the engine gets out of a device."""

    reading: float
    """Floating-point operations a second of packed passes over prompts."""
    decoding: float
    """Floating-point operations a second of decoding steps with a full batch."""
    rows: int = DECODE_ROWS
    """Rows of a full batch."""
    training: float | None = None
    """Floating-point operations a second of forward and backward passes; None is the speed of reading."""

    @classmethod
    def assumed(
        cls, *, peak: float | int, reading_share: float | int, decoding_share: float | int, rows: int
    ) -> "MachineSpeed":
        """Speeds of a device that was not measured: its peak, and the shares of it that passes are assumed to get."""
        return cls(reading=peak * reading_share, decoding=peak * decoding_share, rows=rows)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Work of a stage or of a whole run; everything is at most, since replies may end early."""

    read_tokens: int = 0
    """Tokens that run through all blocks in packed or prefilling passes."""
    swept_tokens: int = 0
    """Tokens that run in the passes of a long sweep."""
    unembedded: int = 0
    """Positions whose logits are computed, beside those of decoded tokens."""
    decoded_tokens: int = 0
    """Tokens of completions."""
    decoding_steps: int = 0
    """Passes of one token for every row of a batch."""
    gradient_tokens: int = 0
    """Tokens that run forward and backward, padding included."""
    gradient_passes: int = 0
    """Passes forward and backward that these tokens take, such as the steps of a training."""
    gradient_unembedded: int = 0
    """Positions whose logits are computed forward and backward."""
    held_numbers: int = 0
    """Activations that are in memory at once, in numbers of the model's dtype; of stages in turn, the largest."""
    cached_tokens: int = 0
    """Tokens whose keys and values are in memory at once; likewise."""
    stored_bytes: int = 0
    """Bytes that the run leaves on disk."""

    def __add__(self, other: "Work") -> "Work":
        largest = ("held_numbers", "cached_tokens")
        mine = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return Work(**{name: max(pair) if name in largest else sum(pair) for name, pair in mine.items()})

    def __mul__(self, times: int) -> "Work":
        held = {"held_numbers": self.held_numbers, "cached_tokens": self.cached_tokens}
        counts = {field.name: getattr(self, field.name) * times for field in fields(self)}
        return Work(**{**counts, **held})

    @classmethod
    def total(cls, parts: "Iterable[Work]") -> "Work":
        """The sum of several, one after the other."""
        return sum(parts, cls())

    @property
    def run_tokens(self) -> int:
        """Tokens that run through all blocks in passes over prompts, forward only or with gradients."""
        return self.read_tokens + self.swept_tokens + self.gradient_tokens

    def seconds(self, size: ModelSize, speed: MachineSpeed) -> float:
        """Seconds on an otherwise idle machine."""
        block, logits = size.flops_per_token, size.flops_per_unembedding
        reading = (self.read_tokens + _SWEPT * self.swept_tokens) * block + self.unembedded * logits
        training = _BACKWARD * (self.gradient_tokens * block + self.gradient_unembedded * logits)
        rows = _STEP_SHARE * speed.rows * self.decoding_steps + (1 - _STEP_SHARE) * self.decoded_tokens
        return (
            reading / speed.reading
            + training / (speed.training or speed.reading)
            + rows * (block + logits) / speed.decoding
        )

    def memory_bytes(self, size: ModelSize, *, itemsize: int, prepacked: bool) -> int:
        """Resident memory at its largest.

        Args:
            prepacked: whether the weights of the blocks are also held in oneDNN's layout, as in float32 on a CPU.
        """
        packed = size.n_layers * size.active_weights * itemsize if prepacked else 0
        held = self.held_numbers * itemsize + size.cached_bytes(self.cached_tokens, itemsize)
        return _PROCESS_BYTES + size.weights * itemsize + packed + held
