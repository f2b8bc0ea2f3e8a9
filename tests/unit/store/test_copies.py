"""A run that begins from another run's version has the very same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hansa.core.commands import Term
from hansa.core.errors import StoreError
from hansa.store.copies import begin_from
from hansa.store.update import Measured, write_update
from hansa.store.versions import Store


def run_with_two_versions(root: Path) -> Store:
    store, draft = Store(root / "run", "bfloat16"), root / "draft"
    draft.mkdir()
    save_file({"w": np.linspace(0, 1, 6, dtype=np.float32)}, draft / "m.safetensors")
    (draft / "config.json").write_text("{}")
    store.import_initial(draft)
    for number in (1, 2):
        name = f"train-{number:04d}-anvil-1"
        write_update(
            store.update_dir(name),
            {"w": (6,)},
            [("w", np.full(6, 0.1, np.float32))],
            Measured(assignment=name, facility="anvil", base=number - 1),
        )
        refs = (f"version/{number - 1}", f"update/{name}")
        store.aggregate(number, [Term(ref=ref, coefficient=1.0) for ref in refs])
    return store


def test_a_version_becomes_another_runs_first(tmp_path: Path) -> None:
    store = run_with_two_versions(tmp_path)
    there = store.manifest(2)
    for _ in range(2):  # doing it twice does it once
        assert begin_from(tmp_path / "other", store.root, 2) == there.sha256
    other = Store(tmp_path / "other", "bfloat16")
    assert (other.newest(), other.manifest(0).terms) == (0, ())
    assert other.verify_version(0).assets == there.assets
    same = (store.version_dir(2), other.version_dir(0))
    names = sorted(path.name for path in same[0].iterdir())
    assert names == sorted(path.name for path in same[1].iterdir())
    for name in set(names) - {"manifest.json"}:
        assert (same[0] / name).read_bytes() == (same[1] / name).read_bytes()
    # It may go on: sums read the float32 master, which came along.
    assert other.master_dir(0).is_dir()
    with pytest.raises(StoreError, match="another model than version 1"):
        begin_from(tmp_path / "other", store.root, 1)
    with pytest.raises(StoreError, match="no manifest"):
        begin_from(tmp_path / "third", store.root, 7)
