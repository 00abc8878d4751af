"""A slice of an activation store: rows of one table at some layers and roles, for other tools.

    slice = select(store, site="resid_pre", layers=[12], roles=["t_post_inst"])
    slice.values()                                   # numpy, [row, layer, d_model]
    slice.to_safetensors("layer12.safetensors")      # also to_pandas(), to_datasets(), torch_dataset()

Every vector is checked against its hash as it is read; damaged ones raise. Where a row was written twice it is there
once.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.storage.activation_store import ActivationStore, matching
from interp.storage.completion_tables import COMPLETIONS
from interp.storage.paths import expanded
from interp.storage.store_cells import Place, row_names
from interp.storage.store_tables import StoreTable

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset as HubDataset


@dataclass(frozen=True, eq=False, kw_only=True)
class StoreSlice:
    """Rows of one table at some layers; vectors are read when they are asked for."""

    table: StoreTable
    """The table."""
    places: tuple[Place, ...]
    """Token, prompt and role of each row."""
    layers: tuple[int, ...]
    """What the layer axis counts."""

    def __len__(self) -> int:
        return len(self.places)

    def values(self, rows: Sequence[int] | None = None) -> np.ndarray:
        """Vectors [row, layer, d_model]; bfloat16 as float32, which holds it exactly.

        Args:
            rows: which rows, in this order; None is all.

        Raises:
            ValueError: a vector is not what was written.
        """
        read = self._read(range(len(self)) if rows is None else rows)
        if self.table.key.dtype == "bfloat16":
            read = (read.astype(np.uint32) << 16).view(np.float32)
        return read

    def _read(self, rows: Sequence[int]) -> np.ndarray:
        names = row_names([self.places[row] for row in rows])
        addresses = self.table.addresses(names, self.layers)
        there = (addresses >= 0).all((1, 2))
        values, sound = self.table.read(names, self.layers, addresses) if there.all() else (None, there)
        if values is None or not sound.all():
            raise ValueError(
                f"{self.table.url}: {int((~sound).sum())} of {len(rows)} rows are damaged; `interp store verify` says "
                "which, and collecting them again replaces them"
            )
        return values.transpose(1, 0, 2)

    def to_safetensors(self, path: str | Path) -> Path:
        """Write `values` [row, layer, d_model] in the table's own dtype, with rows, layers and key as metadata."""
        import torch
        from safetensors.torch import save

        from interp.storage.atomic_files import write_file

        values = torch.from_numpy(np.ascontiguousarray(self._read(range(len(self)))))
        if self.table.key.dtype == "bfloat16":
            values = values.view(torch.bfloat16)
        about = {
            "axes": "row layer d_model",
            "layers": json.dumps(self.layers),
            "rows": json.dumps(self._facts(), ensure_ascii=False),
            "key": self.table.key.text,
        }
        write_file(expanded(path), save({"values": values}, metadata=about))
        return expanded(path)

    def to_pandas(self) -> "pd.DataFrame":
        """A row for each token, with prompt, role, position and a column of vectors for each layer."""
        import pandas as pd

        values = self.values()
        frame = pd.DataFrame(self._facts())
        for k, layer in enumerate(self.layers):
            frame[f"layer_{layer}"] = list(values[:, k])
        return frame

    def to_datasets(self) -> "HubDataset":
        """A data set of the `datasets` library (extra `train`), columns as those of `to_pandas`."""
        from datasets import Dataset as HubDataset
        from datasets import Features, List, Value

        values, dtype = self.values(), "float16" if self.table.key.dtype == "float16" else "float32"
        facts = self._facts()
        columns = {name: [row[name] for row in facts] for name in facts[0]} if facts else {}
        columns |= {f"layer_{layer}": list(values[:, k]) for k, layer in enumerate(self.layers)}
        vector = List(Value(dtype), length=self.table.key.d_model)
        kinds = {"text": Value("string"), "role": Value("string"), "position": Value("int64")}
        kinds |= {"tokens": List(Value("int64")), **{f"layer_{layer}": vector for layer in self.layers}}
        return HubDataset.from_dict(columns, features=Features(kinds))

    def torch_dataset(self) -> Any:
        """A map-style `torch.utils.data.Dataset` of tensors [layer, d_model] that reads what is asked for.

        Batches of a `DataLoader` are read together. Lance does not survive a fork: take `num_workers=0`, or
        `multiprocessing_context="spawn"`.
        """
        from torch.utils.data import Dataset

        part = self

        class StoredActivations(Dataset):
            def __len__(self) -> int:
                return len(part)

            def __getitem__(self, row: int) -> Any:
                return self.__getitems__([row])[0]

            def __getitems__(self, rows: Sequence[int]) -> list[Any]:
                import torch

                return list(torch.from_numpy(np.ascontiguousarray(part.values(rows))))

        return StoredActivations()

    def _facts(self) -> list[dict[str, Any]]:
        return [
            {"text": p.text, "role": p.role, "position": p.position, "tokens": list(p.tokens)}
            for p in self.places
        ]


def select(
    store: ActivationStore,
    *,
    table: str = "",
    model: str | None = None,
    site: str | None = None,
    layers: Sequence[int] | None = None,
    roles: Sequence[str] | None = None,
) -> StoreSlice:
    """Rows of the one table that fits.

    Args:
        table: name of the table or its beginning, as `interp store ls` shows it.
        model: name of the model that it was made with.
        site: site, such as `resid_pre`.
        layers: only rows that have all of these; all of the model's when None.
        roles: only rows that were read as one of these; all when None.

    Raises:
        ValueError: no table fits, or several do; or no row does.
    """
    fitting = [
        stored
        for stored in matching(list(store.tables(table)), site=site)
        if stored.content.key.site != COMPLETIONS
    ]
    if model is not None:
        fitting = [stored for stored in fitting if stored.about.get("model") == model]
    if len(fitting) != 1:
        shown = ", ".join(f"{s.id[:8]} ({s.about.get('model')}, {s.content.key.site})" for s in fitting)
        raise ValueError(
            f"{len(fitting)} tables of {store.url} fit{': ' + shown if shown else ''}; `interp store ls` lists them, "
            "and table= takes the beginning of a name"
        )
    found = store.table(fitting[0].content.key)
    chosen = tuple(range(found.key.n_layers) if layers is None else layers)
    if bad := [layer for layer in chosen if not 0 <= layer < found.key.n_layers]:
        raise ValueError(f"layer must be in 0..{found.key.n_layers - 1}, got {bad[0]}")
    places: dict[bytes, Place] = {}
    for _, some, rows, _ in found.places():
        places |= {row: p for row, p in zip(rows, some, strict=True) if roles is None or p.role in roles}
    whole = np.asarray((found.addresses(list(places), chosen) >= 0).all((1, 2))).tolist()
    kept = tuple(place for place, there in zip(places.values(), whole, strict=True) if there)
    if not kept:
        raise ValueError(f"no row of {fitting[0].id} has layers {list(chosen)} at roles {roles or 'any'}")
    return StoreSlice(table=found, places=kept, layers=chosen)
