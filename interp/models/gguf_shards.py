"""Split GGUF files: all shards found, checked and joined into one file.

llama.cpp splits a model into NAME-00001-of-00003.gguf and so on; the first shard holds the metadata, every shard a part
of the tensors. Each shard says which it is, so the order of the names does not matter.
"""

from pathlib import Path
from typing import Any

import gguf

_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


def split_count(reader: gguf.GGUFReader) -> int:
    """Number of files that the model of this file is split into; 1 for a whole one."""
    return int(_value(reader, _COUNT, 1)) or 1


def join_shards(readers: dict[Path, gguf.GGUFReader], target: Path) -> None:
    """Write the metadata of the first shard and the tensors of all of them into one file.

    Raises:
        ValueError: the files are not the shards of one model, each once.
    """
    count = len(readers)
    numbered: dict[int, Path] = {}
    for path, reader in readers.items():
        number, says = int(_value(reader, _NUMBER, -1)), split_count(reader)
        if says != count or not 0 <= number < count:
            raise ValueError(
                f"{path} says that it is shard {number + 1} of {says}, and there are {count} files; they do not belong "
                "together, download them again"
            )
        if number in numbered:
            raise ValueError(
                f"{numbered[number]} and {path} both hold shard {number + 1} of {count}; download them again"
            )
        numbered[number] = path
    ordered = [readers[numbered[number]] for number in range(count)]
    expected = int(_value(ordered[0], _TENSORS, -1))
    owner: dict[str, Path] = {}
    for number, reader in enumerate(ordered):
        for tensor in reader.tensors:
            if tensor.name in owner:
                raise ValueError(
                    f"tensor {tensor.name} is in {owner[tensor.name]} and in {numbered[number]}; the files do not "
                    "belong together"
                )
            owner[tensor.name] = numbered[number]
        if int(_value(reader, _TENSORS, expected)) != expected:
            raise ValueError(f"{numbered[number]} belongs to another model than {numbered[0]}")
    if expected not in (-1, len(owner)):
        raise ValueError(
            f"the shards of {numbered[0]} hold {len(owner)} tensors together, and the model has {expected}; download "
            "them again"
        )
    _write(ordered, target)


def _write(ordered: list[gguf.GGUFReader], target: Path) -> None:
    first = ordered[0]
    writer = gguf.GGUFWriter(str(target), str(_value(first, "general.architecture", "")))
    writer.data_alignment = first.alignment  # the key general.alignment, copied below, does not set it
    for name, field in first.fields.items():
        if name.startswith(("GGUF.", "split.")) or name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    for reader in ordered:
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _value(reader: gguf.GGUFReader, key: str, default: Any) -> Any:
    field = reader.get_field(key)
    return default if field is None else field.contents()
