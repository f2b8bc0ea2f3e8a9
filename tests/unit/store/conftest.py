from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from hansa.store import Measured, Store, reader, write_update

Arrays = Mapping[str, np.ndarray]

BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model in two files, with an integer tensor and assets."""
    path = tmp_path / "initial"
    path.mkdir()
    one = {
        "b": np.array([1.0, 2.0, 3.0], np.float32),
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    }
    two = {"n": np.array([7, 8], np.int64), "s": np.array(0.5, np.float32)}
    save_file(one, path / "model-1.safetensors")
    save_file(two, path / "model-2.safetensors")
    (path / "config.json").write_text('{"layers": 1}')
    (path / "chat_template.jinja").write_text("{{ x }}")
    (path / "run.py").write_text("raise SystemExit")
    return path


@pytest.fixture
def deliver() -> Callable[..., Path]:
    """Write an update of a version into a store."""

    def write(
        store: Store,
        assignment: str,
        values: Arrays,
        base: int = 0,
        dtype: str = "float32",
    ) -> Path:
        with reader(store.version_dir(base)) as version:
            shapes = version.shapes()
        directory = store.update_dir(assignment)
        measured = Measured(assignment=assignment, facility="polaris", base=base)
        arrays = [(name, np.asarray(values[name], np.float32)) for name in shapes]
        write_update(directory, shapes, arrays, measured, dtype=dtype)
        return directory

    return write
