"""What was measured (docs/planner.md) is what the planner foretells today."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hansa.planner.memory import predict

pytest.importorskip("torch")

ROOT = Path(__file__).parents[3]
MB = 1_000_000
ROW = re.compile(r"\| (.+) \| .+ M \| (.+) MB \| (.+) MB \| (.+) MB \| .+% \|")


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the program that measures."""
    path = ROOT / "tools" / "measure_memory.py"
    spec = importlib.util.spec_from_file_location("measure_memory", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_each_measured_peak_is_foretold_within_a_tenth(tool: ModuleType) -> None:
    text = (ROOT / "docs" / "planner.md").read_text(encoding="utf-8")
    cases = {case.name: case for case in tool.cases()}
    rows = {row[1]: row for row in ROW.finditer(text)}
    assert rows.keys() == cases.keys()
    for name, row in rows.items():
        base, measured, told = (
            float(one.replace(",", "")) for one in row.group(2, 3, 4)
        )
        setting = cases[name].setting(round(base * MB), host=True)
        foretold = predict(cases[name].shape, setting).total / MB
        assert foretold == pytest.approx(told, abs=2), name
        assert foretold == pytest.approx(measured, rel=0.1), name
