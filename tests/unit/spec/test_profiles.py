from __future__ import annotations

from pathlib import Path

import pytest

from hansa.core.errors import SpecError
from hansa.spec import load_profile, profile_names, profiles


def test_all_profiles_load() -> None:
    assert profile_names() == [
        "alcf/aurora",
        "alcf/polaris",
        "local",
        "nersc/perlmutter",
        "olcf/frontier",
    ]
    for name in profile_names():
        assert load_profile(name).title


@pytest.mark.parametrize(
    ("name", "scheduler", "gpus", "ranks", "memory"),
    [
        ("alcf/polaris", "pbs", 4, 4, 40_000_000_000),
        ("alcf/aurora", "pbs", 6, 12, 64_000_000_000),
        ("nersc/perlmutter", "slurm", 4, 4, 40_000_000_000),
        ("olcf/frontier", "slurm", 4, 8, 64_000_000_000),
        ("local", "local", 0, 1, None),
    ],
)
def test_facts(
    name: str, scheduler: str, gpus: int, ranks: int, memory: int | None
) -> None:
    profile = load_profile(name)
    assert profile.scheduler == scheduler
    assert (profile.node.gpus, profile.node.ranks) == (gpus, ranks)
    assert profile.node.gpu_memory == memory


@pytest.mark.parametrize("name", ["alcf/polari", "../local", "", "alcf-polaris"])
def test_an_unknown_profile(name: str) -> None:
    with pytest.raises(SpecError, match="There is no profile") as error:
        load_profile(name)
    assert "alcf/polaris" in str(error.value.hint)


def test_a_bad_profile_names_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alcf-x.yaml").write_text(
        "title: X\nscheduler: pbs\nnode: {gpus: 4, rank: 4}\n"
    )
    monkeypatch.setattr(profiles, "_FOLDER", tmp_path)
    with pytest.raises(SpecError, match=r"alcf-x\.yaml:3: unknown key 'rank' in node"):
        load_profile("alcf/x")
