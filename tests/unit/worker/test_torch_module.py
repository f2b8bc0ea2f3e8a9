"""A user's torch model: allowed by name, trained, saved and continued bit by bit."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from hansa.core.errors import PolicyError, SpecError, WorkerError
from hansa.worker.base import Correction, Example, PlainSteps, TrainerContext
from hansa.worker.options import TorchModuleModelOptions, TorchModuleWorkOptions
from hansa.worker.trainers.torch_module import TorchModule, TorchParts

SOURCE = "hansa_test_net:build"
LINE = "hansa_test_net:line"


class Net(nn.Module):
    """Has all that must survive: dropout (generator), batch norm (buffers)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(4, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(hidden, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(torch.relu(self.norm(self.first(x)))))


def mean_square(model: nn.Module, batch: Sequence[Example]) -> torch.Tensor:
    x = torch.tensor(np.stack([e.input for e in batch]))
    y = torch.tensor([[float(e.output)] for e in batch])
    return nn.functional.mse_loss(model(x), y)


@pytest.fixture(autouse=True)
def module() -> Iterator[ModuleType]:
    found = ModuleType("hansa_test_net")

    def build(seed: int, options: dict[str, int]) -> TorchParts:
        torch.manual_seed(seed)
        return TorchParts(model=Net(**options), loss=mean_square)

    def line(seed: int, options: dict[str, int]) -> TorchParts:
        return TorchParts(model=nn.Linear(2, 1, bias=False), loss=mean_square)

    found.line = line  # type: ignore[attr-defined]
    found.build = build  # type: ignore[attr-defined]
    found.nothing = lambda seed, options: None  # type: ignore[attr-defined]
    sys.modules["hansa_test_net"] = found
    with torch.random.fork_rng():
        yield found
    del sys.modules["hansa_test_net"]


def context(
    source: str = SOURCE, modules: tuple[str, ...] = (SOURCE,), **work: object
) -> TrainerContext:
    return TrainerContext(
        source=source,
        dtype="float32",
        model_options=TorchModuleModelOptions(arguments={"hidden": 8}),
        work=TorchModuleWorkOptions.model_validate({"batch": 4, "lr": 0.05, **work}),
        seed=11,
        modules=modules,
    )


def batches(count: int) -> list[list[Example]]:
    generator = np.random.default_rng(4)
    return [
        [Example("t", x, x.sum()) for x in generator.normal(size=(4, 4)).astype("f4")]
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    "work",
    [
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"optimizer": "sgd", "momentum": 0.9},
        {"optimizer": "sgd"},
    ],
)
def test_resume_is_bit_identical(tmp_path: Path, work: dict[str, object]) -> None:
    data = batches(8)
    whole = TorchModule(context(**work))
    losses = [whole.step(batch) for batch in data]

    first = TorchModule(context(**work))
    for batch in data[:4]:
        first.step(batch)
    first.save(tmp_path)
    torch.manual_seed(999)
    second = TorchModule(context(**work))
    second.restore(tmp_path)
    assert [second.step(batch) for batch in data[4:]] == losses[4:]
    for (name, expected), (_, value) in zip(
        whole.tensors(), second.tensors(), strict=True
    ):
        assert expected.tobytes() == value.tobytes(), name


def test_tensors_are_sorted_and_floating() -> None:
    names = [name for name, _ in TorchModule(context()).tensors()]
    assert names == sorted(names)
    assert "norm.running_mean" in names
    assert "norm.num_batches_tracked" not in names


def test_load_gives_the_values_in_any_dtype() -> None:
    source = TorchModule(context())
    values = {n: t.astype(ml_dtypes.bfloat16) for n, t in source.tensors()}
    target = TorchModule(context())
    target.step(batches(1)[0])
    target.load(values.__getitem__)
    for name, tensor in target.tensors():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, values[name].astype(np.float32))


def test_load_refuses_another_shape() -> None:
    with pytest.raises(WorkerError, match=r"is \[3\], the model's is"):
        TorchModule(context()).load(lambda name: np.zeros(3, np.float32))


def test_evaluation_is_the_mean_by_task_and_moves_nothing() -> None:
    model = TorchModule(context())
    before = {n: t.copy() for n, t in model.tensors()}
    data = [e for batch in batches(3) for e in batch]
    mixed = [Example("ab"[i % 2], e.input, e.output) for i, e in enumerate(data)]
    losses = model.evaluate(iter(mixed))
    one = model.evaluate(iter([e for e in mixed if e.task == "a"]))
    assert losses["a"] == pytest.approx(one["a"], rel=1e-6)
    whole = model.evaluate(iter(data))["t"]
    assert whole == pytest.approx((losses["a"] + losses["b"]) / 2, rel=1e-6)
    for name, tensor in model.tensors():
        np.testing.assert_array_equal(tensor, before[name])


def test_function_that_the_facility_does_not_allow() -> None:
    with pytest.raises(PolicyError, match="does not allow the model") as info:
        TorchModule(context(modules=("other:function",)))
    assert "other:function" in str(info.value.hint)


@pytest.mark.parametrize("source", ["hansa_test_net:missing", "hansa_no_such:f", "x"])
def test_function_that_can_not_be_imported(source: str) -> None:
    with pytest.raises(SpecError, match="can't be imported"):
        TorchModule(context(source, (source,)))


def test_function_that_returns_something_else() -> None:
    source = "hansa_test_net:nothing"
    with pytest.raises(SpecError, match="returned NoneType, not TorchParts"):
        TorchModule(context(source, (source,)))


def test_state_of_another_model_is_refused(tmp_path: Path) -> None:
    large, small = TorchModule(context()), TorchModule(context(LINE, (LINE,)))
    large.save(tmp_path)
    with pytest.raises(WorkerError, match="is only in one of them"):
        small.restore(tmp_path)


def test_state_has_no_pickle(tmp_path: Path) -> None:
    model = TorchModule(context())
    model.step(batches(1)[0])
    model.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}


def zeros(model: TorchModule) -> dict[str, np.ndarray]:
    return {name: np.zeros_like(tensor) for name, tensor in model.tensors()}


def weights(model: TorchModule) -> list[float]:
    return list(dict(model.tensors())["weight"].ravel().tolist())


def test_two_corrected_steps_by_hand() -> None:
    # (w x - 0)^2 at w = (1, 2), x = (1, 0) has the gradient (2 w1, 0); lr = 1/4 with
    # a factor of 2, mu = 1/2, control (1/2, -1). First: g = (2, 0) + (1/2, -1), so
    # w = (1 - 5/4, 2 + 1/2). Second: g = (-1/2, 0) + (w - base) / 2 + control
    # = (-1/2 - 5/8 + 1/2, 1/4 - 1) = (-5/8, -3/4), so w = (-1/4 + 5/16, 5/2 + 3/8).
    model = TorchModule(context(LINE, (LINE,), optimizer="sgd", lr=0.25))
    model.load({"weight": np.array([[1, 2]], np.float32)}.__getitem__)
    control = {"weight": np.array([[0.5, -1]], np.float32)}
    model.correct(Correction(lr_scale=2.0, proximal=0.5, control=control.__getitem__))
    batch = [Example("t", np.array([1, 0], np.float32), 0)]
    model.step(batch)
    assert weights(model) == [-0.25, 2.5]
    model.step(batch)
    assert weights(model) == [0.0625, 2.875]


@pytest.mark.parametrize(
    ("optimizer", "control"), [("adamw", False), ("sgd", False), ("sgd", True)]
)
def test_nothing_to_correct_is_the_plain_step_bit_for_bit(
    optimizer: str, control: bool
) -> None:
    models = []
    for corrected in (False, True):
        model = TorchModule(context(optimizer=optimizer))
        if corrected:
            read = zeros(model).__getitem__ if control else None
            model.correct(Correction(control=read))
        for batch in batches(4):
            model.step(batch)
        models.append({n: t.tobytes() for n, t in model.tensors()})
    assert models[0] == models[1]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_scaled_learning_rate_is_the_same_as_another_one(optimizer: str) -> None:
    one, other = (
        TorchModule(context(LINE, (LINE,), optimizer=optimizer, lr=lr))
        for lr in (0.5, 0.125)
    )
    one.correct(Correction(lr_scale=0.25))
    start = {"weight": np.array([[1, 2]], np.float32)}
    for model in (one, other):
        model.load(start.__getitem__)
        for _ in range(3):
            model.step([Example("t", np.array([1, 1], np.float32), 0)])
    assert weights(one) == weights(other) != [1, 2]


@pytest.mark.parametrize(
    "work",
    [
        {"optimizer": "sgd", "momentum": 0.9},
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"optimizer": "sgd", "weight_decay": 0.1},
    ],
)
def test_fedprox_stays_nearer_to_the_base(work: dict[str, object]) -> None:
    moved = []
    for proximal in (0.0, 0.3, 3.0):
        model = TorchModule(context(**work))
        base = {n: t.copy() for n, t in model.tensors()}
        model.correct(Correction(proximal=proximal))
        for batch in batches(20):
            model.step(batch)
        trained = [
            n for n, _ in dict(model._engine.module.model.named_parameters()).items()
        ]
        now = dict(model.tensors())
        moved.append(sum(float(np.sum((now[n] - base[n]) ** 2)) for n in trained))
    assert moved[0] > moved[1] > moved[2]


@pytest.mark.parametrize(
    "work", [{"optimizer": "adamw"}, {"optimizer": "sgd", "momentum": 0.5}]
)
def test_control_variate_needs_plain_sgd(work: dict[str, object]) -> None:
    model = TorchModule(context(**work))
    assert model.plain_rate is None
    with pytest.raises(SpecError, match="scaffold needs plain SGD") as info:
        model.correct(Correction(control=zeros(model).__getitem__))
    assert "work.optimizer: sgd, momentum: 0" in str(info.value.hint)


def test_rate_of_plain_steps() -> None:
    model = TorchModule(context(optimizer="sgd"))
    assert isinstance(model, PlainSteps)
    assert model.plain_rate == 0.05
    model.correct(Correction(lr_scale=3.0))
    assert model.plain_rate == pytest.approx(0.15)


@pytest.mark.parametrize("control", [False, True])
def test_resume_keeps_the_corrections_and_their_base(
    tmp_path: Path, control: bool
) -> None:
    data = batches(8)
    work = {"optimizer": "sgd"} if control else {"optimizer": "adamw"}
    first, whole, second = (TorchModule(context(**work)) for _ in range(3))
    drawn = np.random.default_rng(1)
    state = {n: drawn.normal(size=t.shape) for n, t in first.tensors()}
    for model in (first, whole, second):
        read = state.__getitem__ if control else None
        model.correct(Correction(lr_scale=0.5, proximal=0.2, control=read))
    torch.manual_seed(7)
    losses = [whole.step(batch) for batch in data]
    torch.manual_seed(7)
    for batch in data[:4]:
        first.step(batch)
    first.save(tmp_path)
    second.restore(tmp_path)
    assert [second.step(batch) for batch in data[4:]] == losses[4:]
    for (name, expected), (_, value) in zip(
        whole.tensors(), second.tensors(), strict=True
    ):
        assert expected.tobytes() == value.tobytes(), name
