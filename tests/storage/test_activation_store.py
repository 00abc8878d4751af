"""The store on disk and on a server: several writers, kills, a full disk, damage; what is read is what was written."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from interp.storage.activation_store import ActivationStore, estimated_bytes
from interp.storage.store_cells import DTYPES, Place, TableKey, row_names
from interp.storage.store_slices import select
from interp.storage.vllm_files import read_vllm_states
from tests.storage.store_writer import LAYERS, WIDTH, held, key_of, places_of, vectors_of, write

pytest.importorskip("lance", reason="the extra scale is not installed")


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_written_is_read_and_nothing_else_is_there(tmp_path: Path, dtype: str) -> None:
    store = ActivationStore(tmp_path)
    write(store, range(5), dtype=dtype)
    write(store, range(8, 10), range(1, 3), dtype=dtype)  # some layers only
    fresh = ActivationStore(tmp_path)
    assert held(fresh, range(12), dtype=dtype) == [0, 1, 2, 3, 4]
    assert held(fresh, range(12), range(1, 3), dtype=dtype) == [0, 1, 2, 3, 4, 8, 9]
    write(fresh, range(8, 10), dtype=dtype)  # completed by a later append
    assert held(fresh, range(12), dtype=dtype) == [0, 1, 2, 3, 4, 8, 9]
    assert held(fresh, range(12), dtype=dtype, weights_hash="other") == []
    assert fresh.verify().damaged == () and fresh.verify().cells == 5 * 4 + 2 * 2 + 2 * 4
    fresh.compact()
    assert held(ActivationStore(tmp_path), range(12), dtype=dtype) == [0, 1, 2, 3, 4, 8, 9]


def test_position_scope_and_every_token_name_a_row() -> None:
    base = Place(tokens=(1, 2, 3), position=1)
    others = [
        Place(tokens=(1, 2, 4), position=1), Place(tokens=(1, 2), position=1), Place(tokens=(1, 2, 3), position=2),
        Place(tokens=(1, 2, 3), position=1, scope="[0]"), Place(tokens=(258, 3), position=1),
    ]  # fmt: skip
    assert len({base.row, *(place.row for place in others)}) == 1 + len(others)
    assert Place(tokens=(1, 2, 3), position=1, role="t_inst", text="hi").row == base.row  # names of nothing


def test_a_table_that_was_moved_is_refused(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path)
    write(store, range(3))
    (tmp_path / f"{key_of().id}.lance").rename(tmp_path / f"{key_of(weights_hash='v').id}.lance")
    with pytest.raises(ValueError, match="another key"):
        ActivationStore(tmp_path).table(key_of(weights_hash="v"))


def test_any_flipped_byte_is_found_or_harmless(tmp_path: Path) -> None:
    """Bytes all over a data file: every row is what was written, or is not served."""
    write(ActivationStore(tmp_path), range(40))
    (data,) = tmp_path.glob(f"{key_of().id}.lance/data/*")
    whole, found = data.read_bytes(), 0
    for place in range(0, len(whole), len(whole) // 40):
        data.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        table, rows = ActivationStore(tmp_path).table(key_of()), row_names(places_of(range(40)))
        addresses = table.addresses(rows, range(LAYERS))
        there = np.flatnonzero((addresses >= 0).all((1, 2)))
        values, sound = table.read([rows[n] for n in there], range(LAYERS), addresses[there])
        good = there[sound]
        assert (values[:, sound] == vectors_of(range(40))[:, good]).all()
        found += len(good) < 40
    assert found > 10  # the control: most bytes are those of vectors
    data.write_bytes(whole[: len(whole) // 2])  # torn
    assert held(ActivationStore(tmp_path), range(40)) == []
    assert ActivationStore(tmp_path).verify().damaged


def start(run: str, *arguments: object) -> "subprocess.Popen[str]":
    """A process that imports this file's functions without torch."""
    root = str(Path(__file__).parents[2])
    code = f"import sys; sys.path.insert(0, {root!r}); from tests.storage import store_writer; "
    code += f"store_writer.{run}(*sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_several_writers_and_one_that_is_killed(tmp_path: Path) -> None:
    store = tmp_path / "store"
    writers = [start("write_many", store, first, 6) for first in (0, 100)]
    victim = start("write_many", store, 200, 10_000)
    assert victim.stdout is not None
    if not victim.stdout.readline():  # it has written something and is writing more
        raise AssertionError(victim.communicate(timeout=120)[1])
    time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    for process in (*writers, victim):
        process.communicate(timeout=120)
    assert [w.returncode for w in writers] == [0, 0] and victim.returncode == -signal.SIGKILL
    opened = ActivationStore(store)
    rows = held(opened, range(1000))
    assert rows[:6] == list(range(6)) and set(range(100, 106)) <= set(rows) and 200 in rows
    assert opened.verify().damaged == ()
    assert len(list(opened.tables())) == 1
    write(opened, range(900, 901))  # what a killed writer left stops nobody
    opened.compact()
    assert set(held(ActivationStore(store), range(1000))) == {*rows, 900}


def test_tables_that_are_listed_at_once_in_a_new_store_are_all_listed(tmp_path: Path) -> None:
    for attempt in range(5):
        store = tmp_path / str(attempt)
        keys = [key_of(weights_hash=f"{number:064x}") for number in range(8)]
        begin = Barrier(len(keys))

        def listed(key: TableKey, store: Path = store, begin: Barrier = begin) -> None:
            opened = ActivationStore(store)
            begin.wait()
            opened.register(key, {"model": "tiny"})

        with ThreadPoolExecutor(len(keys)) as pool:
            list(pool.map(listed, keys))
        assert set(ActivationStore(store).keys()) == {key.id for key in keys}


def test_a_table_whose_making_was_killed_is_made_again(tmp_path: Path) -> None:
    table = tmp_path / f"{key_of().id}.lance"
    for part in ("_versions", "_transactions", "data"):  # what stands there before the first version does
        (table / part).mkdir(parents=True)
    (table / "_versions" / ".tmp_1.manifest_0").write_bytes(b"half")
    store = ActivationStore(tmp_path)
    assert not store.table(key_of()).exists
    write(store, range(3))
    assert held(ActivationStore(tmp_path), range(5)) == [0, 1, 2]
    for version in (table / "_versions").glob("*.manifest"):  # the control: rows without a version are damage
        version.unlink()
    with pytest.raises(ValueError, match="cannot be opened"):
        ActivationStore(tmp_path).table(key_of())


def test_a_full_disk_leaves_what_was_written(tmp_path: Path) -> None:
    write(ActivationStore(tmp_path), range(3))
    process = start("write_much", tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "could not be written to" in out
    opened = ActivationStore(tmp_path)
    assert held(opened, range(50)) == [0, 1, 2]
    assert opened.verify().damaged == ()
    write(opened, range(3, 5))
    assert held(opened, range(50)) == [0, 1, 2, 3, 4]


def test_on_an_object_server(monkeypatch: pytest.MonkeyPatch) -> None:
    server: Any = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        from urllib.request import Request, urlopen

        urlopen(
            Request(f"http://{host}:{port}/bucket", method="PUT")
        ).close()  # S3's own way to make a bucket
        options = {"aws_endpoint": f"http://{host}:{port}", "allow_http": "true", "aws_region": "us-east-1"}
        store = ActivationStore("s3://bucket/activations", options)
        with pytest.raises(ValueError, match="no activation store"):
            store.keys()
        write(store, range(5))
        write(ActivationStore("s3://bucket/activations", options), range(5, 9))
        fresh = ActivationStore("s3://bucket/activations", options)
        assert held(fresh, range(12)) == list(range(9))
        assert fresh.verify().cells == 9 * LAYERS and not fresh.verify().damaged
        assert [stored.about["model"] for stored in fresh.tables()] == ["tiny"]
    finally:
        server.stop()
    with pytest.raises((ValueError, OSError)):  # the server is away: no silent nothing
        ActivationStore(
            "s3://bucket/activations", {**options, "client_max_retries": "0", "timeout": "2s"}
        ).table(key_of())


@pytest.fixture
def filled(tmp_path: Path) -> Callable[[str], ActivationStore]:
    def fill(dtype: str) -> ActivationStore:
        store = ActivationStore(tmp_path / dtype)
        write(store, range(6), dtype=dtype)
        write(store, range(2), dtype=dtype)  # twice: a slice has each row once
        return store

    return fill


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_slice_is_the_same_in_every_format(
    filled: Callable[[str], ActivationStore], tmp_path: Path, dtype: str
) -> None:
    part = select(filled(dtype), layers=[3, 1], roles=["t_inst"])
    raw = vectors_of(range(6), dtype)[[3, 1]].transpose(1, 0, 2)
    if dtype == "bfloat16":
        expected = torch.from_numpy(np.ascontiguousarray(raw)).view(torch.bfloat16).float().numpy()
    else:
        expected = raw
    order = [int(place.text.split()[1]) for place in part.places]
    assert sorted(order) == list(range(6))
    expected = expected[order]
    assert (part.values() == expected).all()
    with safe_open(part.to_safetensors(tmp_path / "part.safetensors"), framework="pt") as stream:
        values = stream.get_tensor("values")
        assert str(values.dtype) == f"torch.{dtype}" and (values.float().numpy() == expected).all()
    frame = part.to_pandas()
    assert (np.stack(list(frame["layer_1"])) == expected[:, 1]).all() and frame["text"][
        0
    ] == f"prompt {order[0]}"
    hub = part.to_datasets()
    assert (
        hub.column_names[-2:] == ["layer_3", "layer_1"]
        and (np.array(hub["layer_3"][:]) == expected[:, 0]).all()
    )
    loaded = torch.cat(list(DataLoader(part.torch_dataset(), batch_size=4)))
    assert (loaded.numpy() == expected).all()


def test_selecting_says_what_there_is(filled: Callable[[str], ActivationStore]) -> None:
    store = filled("float32")
    with pytest.raises(ValueError, match=r"layer must be in 0\.\.3, got 4"):
        select(store, layers=[4])
    with pytest.raises(ValueError, match="0 tables"):
        select(store, site="mlp_out")
    with pytest.raises(ValueError, match="no row"):
        select(store, roles=["t_post_inst"])


def test_removing_a_table_leaves_the_others(filled: Callable[[str], ActivationStore]) -> None:
    store = filled("float32")
    write(store, range(2), site="mlp_out")
    store.remove(key_of().id)
    assert [stored.content.key.site for stored in store.tables()] == ["mlp_out"]
    assert held(store, range(6)) == [] and held(store, range(6), site="mlp_out") == [0, 1]
    with pytest.raises(ValueError, match="no table"):
        store.remove("0" * 32)


def test_the_estimate_is_what_a_store_takes(tmp_path: Path) -> None:
    store, key = ActivationStore(tmp_path), key_of(n_layers=8, d_model=256)
    values = np.random.default_rng(0).standard_normal((8, 400, 256)).astype(np.float32)
    store.table(key).append(
        [Place(tokens=(n, *range(59)), position=0, text="x" * 60) for n in range(400)], range(8), values
    )
    taken = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert 0.8 < taken / estimated_bytes(200, 8, 2, 256) < 1.25


def test_hidden_states_of_vllm(tmp_path: Path) -> None:
    states = torch.randn(5, 2, WIDTH).bfloat16()
    save_file({"hidden_states": states, "token_ids": torch.arange(5)}, tmp_path / "request.safetensors")
    read = read_vllm_states(tmp_path / "request.safetensors", layers=[1, 3])
    assert read.tokens == (0, 1, 2, 3, 4) and read.layers == (1, 3) and torch.equal(read.values, states)
    with pytest.raises(ValueError, match="layer ids"):
        read_vllm_states(tmp_path / "request.safetensors", layers=[1])
    with pytest.raises(ValueError, match="holds hidden_states"):
        save_file({"x": states}, tmp_path / "other.safetensors")
        read_vllm_states(tmp_path / "other.safetensors", layers=[1])
