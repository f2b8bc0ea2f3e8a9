"""DeepSpeed's ZeRO 1, 2 and 3, for sites that have it (``hansa[deepspeed]``).

The optimizer is spread over the ranks (1), the gradients too (2), the weights too (3);
Rajbhandari et al., arXiv 1910.02054. DeepSpeed spreads and moves the numbers; the
arithmetic is torch's fused AdamW, so no operator of DeepSpeed's has to be compiled. Its
own checkpoints are pickles; here they are in pieces, as those of all back ends.
"""

from __future__ import annotations

import io
import logging
import math
import os
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from hansa.core.errors import PluginError, SpecError, WorkerError
from hansa.worker.base import Array, Correction, TensorReader
from hansa.worker.engine.base import Parameters, Recipe
from hansa.worker.engine.fragments import (
    MOMENTS,
    Rows,
    fragment_of,
    moments_of,
)
from hansa.worker.engine.layers import checkpoint_activations
from hansa.worker.engine.pieces import by_rows, count, places
from hansa.worker.engine.state import STEP, WEIGHT, restore_state, save_state
from hansa.worker.engine.together import agreed, largest, summed
from hansa.worker.reading import read_rows
from hansa.worker.team import Team
from hansa.worker.trainers.empty import allocate_own

BUCKET: Final = 50_000_000
"""Most numbers that travel in one message."""

_NEEDS = 'pip install "hansa[deepspeed]", in the environment of the job'


class DeepSpeed:
    """The `Engine` on `deepspeed.initialize`; AdamW, in float32 or "mixed".

    Attributes:
        module: DeepSpeed's engine, called like the model.
        steps: Optimizer steps done.

    Raises:
        PluginError: DeepSpeed is not installed, or does not work here.
        SpecError: The recipe asks for what this back end can't do.
        WorkerError: The stage in force is not the one that was asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        federated: Parameters,
        recipe: Recipe,
        team: Team,
        device: torch.device,
    ) -> None:
        refuse(recipe, model)
        self.recipe, self.team, self.device = recipe, team, device
        self.steps = 0
        self._places = places(model, federated)
        config = configuration(recipe, sum(p.numel() for p in model.parameters()))
        package = _deepspeed(device)
        self._linear = _Linear()
        _prepare(model, recipe, device, package.zero.Init, config)
        with redirect_stdout(io.StringIO()):  # where it prints what memory is left
            self.module: Any = package.initialize(
                model=model,
                model_parameters=list(self._trained().values()),
                config=config,
                optimizer=partial(_adamw, weight_decay=recipe.weight_decay),
            )[0]
        self._linear.take(self.module)
        # Hooks of DeepSpeed's keep it alive otherwise, with the model.
        weakref.finalize(self, _release, self.module).atexit = False
        _begin_state(self.module)
        self._fragments = {
            name: fragment_of(parameter, self.module, team.rank)
            for name, parameter in self._trained().items()
        }
        self._buffers = {
            name: buffer
            for name, buffer in model.state_dict(keep_vars=True).items()
            if not isinstance(buffer, nn.Parameter)
        }
        self._check(package)

    def words(self) -> Mapping[str, str]:
        """Return what is in force."""
        mixed = self.module.bfloat16_enabled()
        return {
            "sharding": f"deepspeed-{int(self.module.zero_optimization_stage())}",
            "wrapper": type(self.module).__name__,
            "partitioner": type(self.module.optimizer).__name__,
            "optimizer": type(self.module.basic_optimizer).__name__,
            "precision": "mixed" if mixed else "float32",
            "device": self.module.device.type,
        }

    def load(self, read: TensorReader) -> None:
        """Take all federated tensors from `read`; each rank reads what it holds.

        Raises:
            WorkerError: A tensor is missing or has another shape, or another rank
                failed to read.
        """
        with agreed(self.team, "Loading the model"), torch.no_grad():
            for name in self._places:
                tensor, fragment = self._tensor(name), self._fragments.get(name)
                shape = _shape(tensor)
                if fragment is not None:
                    rows = read_rows(read, name, shape, fragment.rows)
                    value = torch.from_numpy(rows).to(self.device)
                    fragment.values[WEIGHT].copy_(fragment.part(value))
                else:
                    rows = read_rows(read, name, shape, (0, count(shape)))
                    self._set(tensor, torch.from_numpy(rows))
        self._publish()

    def correct(self, correction: Correction) -> None:
        """Take up the correction, of which this back end knows the learning rate only.

        Raises:
            SpecError: There is a proximal term or a control variate.
        """
        if correction.proximal or correction.control is not None:
            raise SpecError(
                f"{self.recipe.sharding} can't add a proximal term or a control "
                "variate to the gradient.",
                hint="Set work.sharding: fsdp or zero1, or choose another strategy.",
            )

    def begin(self, *, last: bool) -> None:
        """Say that a pass with gradients follows."""
        self.module.set_gradient_accumulation_boundary(last)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of `loss`."""
        # The library averages over ranks; in float32 the factor costs no precision.
        with self._linear:
            self.module.backward(loss * self.team.world, scale_wrt_gas=False)

    def step(self, lr: float) -> float:
        """Clip, move the weights, forget the gradients; return the norm before that.

        It is infinite where the gradient is no number, and then nothing has moved.
        """
        for group in self.module.optimizer.param_groups:
            group["lr"] = lr
        self.module.step()
        if not self.module.was_step_applied():
            return math.inf
        for buffer in self._buffers.values():
            distributed.broadcast(buffer, src=0)
        self.steps += 1
        return float(self.module.get_global_grad_norm())

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Yield the federated tensors, float32, sorted by name, one at a time."""
        for name in self._places:
            fragment = self._fragments.get(name)
            with torch.no_grad():
                if fragment is not None:
                    value = fragment.whole(WEIGHT)
                else:
                    value = self._get(self._tensor(name))
            yield name, value.detach().to("cpu", torch.float32, copy=True).numpy()

    def save(self, directory: Path) -> None:
        """Write this rank's share of weights and optimizer, and its generators."""
        rows, states = self._rows(), self.module.basic_optimizer.state.values()
        done = max(float(state[STEP]) for state in states)
        for name in self._places:
            if name in self._fragments:
                rows.add_written(name, self._fragments[name], done)
            else:
                rows.add(name, self._get(self._tensor(name)))
        save_state(rows, directory)

    def restore(self, directory: Path, *, optimizer_only: bool = False) -> None:
        """Take what `save` wrote, on this number of ranks or another.

        Raises:
            WorkerError: It is of another model or optimizer, incomplete or damaged.
        """
        rows = self._rows()
        for name in self._places:
            if name in self._fragments:
                rows.add_empty(name, self._fragments[name])
            else:
                rows.add(name, self._get(self._tensor(name)))
        with agreed(self.team, "Restoring the training state"), torch.no_grad():
            restore_state(rows, directory, optimizer_only=optimizer_only)
            for piece in rows.pieces:
                self._take(rows, piece.name, piece.master, optimizer_only)
        done = largest(rows.step(), self.team)  # some rank may have only padding
        for state in self.module.basic_optimizer.state.values():
            state[STEP].fill_(done)
        self.steps = rows.steps
        self._publish()

    def _take(
        self, rows: Rows, name: str, weight: Tensor, optimizer_only: bool
    ) -> None:
        """Put one tensor's restored rows where they belong."""
        fragment = self._fragments.get(name)
        if fragment is None:
            if not optimizer_only:
                self._set(self._tensor(name), weight)
            return
        state = rows.moments[name]
        for kind in MOMENTS:
            fragment.values[kind].copy_(fragment.part(state[kind]))
        if not optimizer_only:
            fragment.values[WEIGHT].copy_(fragment.part(weight))

    def _rows(self) -> Rows:
        return Rows(
            recipe=self.recipe,
            team=self.team,
            device=self.device,
            steps=self.steps,
            other=self._buffers,
        )

    def _tensor(self, name: str) -> Tensor:
        module, attribute = self._places[name]
        found: Tensor = getattr(module, attribute)
        return found

    def _trained(self) -> dict[str, nn.Parameter]:
        """Return what is trained, by name."""
        found = {name: self._tensor(name) for name in self._places}
        return {
            name: tensor
            for name, tensor in found.items()
            if isinstance(tensor, nn.Parameter) and tensor.requires_grad
        }

    @torch.no_grad()
    def _publish(self) -> None:
        """Bring the weights that the optimizer moves to the model."""
        for name, parameter in self._trained().items():
            fragment = self._fragments[name]
            if _is_cut(parameter):
                self._set_part(parameter, fragment.values[WEIGHT])
            else:
                parameter.copy_(fragment.whole(WEIGHT))

    @torch.no_grad()
    def _set(self, tensor: Tensor, value: Tensor) -> None:
        """Give a tensor that is not trained its value."""
        if not _is_cut(tensor):
            tensor.copy_(value.reshape(tensor.shape))
            return
        size = tensor.ds_tensor.numel()  # type: ignore[attr-defined]
        start = self.team.rank * size
        self._set_part(tensor, value.reshape(-1)[start : start + size])

    def _set_part(self, tensor: Any, part: Tensor) -> None:
        """Give a tensor that is cut this rank's part of its value."""
        tensor.ds_tensor.view(-1)[: part.numel()].copy_(part)
        tensor.partition()  # where it is whole just now, that is its old value

    @torch.no_grad()
    def _get(self, tensor: Tensor) -> Tensor:
        """Return the whole of a tensor that is not trained."""
        if not _is_cut(tensor):
            return tensor.detach()
        gathered = import_module("deepspeed").zero.GatheredParameters
        with gathered([tensor]):
            return tensor.detach().clone()

    def _check(self, package: Any) -> None:
        """Make sure that what was asked for is in force, by looking at it."""
        words, engine = self.words(), self.module
        held = sum(f.stop - f.start for f in self._fragments.values())
        whole = sum(torch.Size(f.shape).numel() for f in self._fragments.values())
        found = summed([held], self.team)[0]
        why = None
        if not isinstance(engine, package.DeepSpeedEngine):
            why = f"the model is a {words['wrapper']}"
        elif words["sharding"] != self.recipe.sharding:
            why = f"it is {words['sharding']}"
        elif engine.dp_world_size != self.team.world:
            why = f"it is spread over {engine.dp_world_size} ranks"
        elif found != whole:
            why = f"the ranks move {found:.0f} numbers of {whole}"
        if why is not None:
            raise WorkerError(
                f"The sharding {self.recipe.sharding} is not in force: {why}.",
                hint="Report this with the versions of torch and deepspeed.",
            )


class _Linear:
    """Confines ZeRO 3's linear layers to its own passes.

    DeepSpeed replaces torch's function, for all of the process, by one that keeps no
    whole weight until the backward pass. That rounds bfloat16 differently, so other
    back ends in the same process should not have it.
    """

    def __init__(self) -> None:
        self._torch = functional.linear

    def take(self, module: nn.Module) -> None:
        """Have the function that is in force now in forward passes of `module` only."""
        self._own = functional.linear
        functional.linear = self._torch
        module.register_forward_pre_hook(lambda *_: self.__enter__())
        module.register_forward_hook(lambda *_: self.__exit__(), always_call=True)

    def __enter__(self) -> None:
        functional.linear = self._own

    def __exit__(self, *_: object) -> None:
        functional.linear = self._torch


def refuse(recipe: Recipe, model: nn.Module) -> None:
    """Raise SpecError if DeepSpeed can't do what a recipe asks with a model."""
    wrong = None
    single = [name for name, p in model.named_parameters() if not p.dim()]
    if recipe.optimizer != "adamw" or not recipe.fused:
        wrong = "work.optimizer: sgd" if recipe.optimizer == "sgd" else "this trainer"
    elif recipe.precision == "bfloat16":
        wrong = "precision bfloat16 without float32 weights in the optimizer"
    elif recipe.adapter_rank is not None:
        wrong = "work.lora_rank"
    elif recipe.cpu_offload:
        wrong = "work.cpu_offload"
    elif single:  # it sends them as bytes, which torch can't view them as
        wrong = f"a parameter that is a single number ({single[0]})"
    if wrong is not None:
        raise SpecError(
            f"{recipe.sharding} does not go with {wrong}.",
            hint="It does AdamW with precision float32 or mixed; for anything else "
            "set work.sharding: ddp, zero1 or fsdp.",
        )


def configuration(recipe: Recipe, numbers: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration.

    Args:
        recipe: What to do.
        numbers: How many the model has; a message need not be larger.
    """
    bucket = min(BUCKET, numbers + numbers % 2)
    return {
        "train_micro_batch_size_per_gpu": 1,  # it is never asked for batches
        "gradient_clipping": recipe.clip or 0.0,
        "zero_optimization": {
            "stage": int(recipe.sharding.removeprefix("deepspeed-")),
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "bf16": {"enabled": recipe.precision == "mixed"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": None,
    }


def _deepspeed(device: torch.device) -> Any:
    """Import the package, so that it works on this device and says little.

    Raises:
        PluginError: It is not installed, or does not work here.
    """
    os.environ["LOCAL_RANK"] = str(device.index or 0)  # which device, to DeepSpeed
    os.environ.pop("OMPI_COMM_WORLD_LOCAL_RANK", None)  # it would have to be the same
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        package = import_module("deepspeed")
        operators = import_module("deepspeed.ops")
    except ImportError as error:
        raise PluginError(
            f"DeepSpeed can't be imported: {error}.", hint=f"Run: {_NEEDS}."
        ) from error
    if device.type == "cpu":
        # Else it compiles one for inference, which takes minutes.
        vars(operators)["__compatible_ops__"] = {}
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings(
        "ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning
    )
    return package


def _adamw(tensors: Iterable[Tensor], *, weight_decay: float) -> torch.optim.Optimizer:
    """Return torch's AdamW; each step brings its own learning rate."""
    return torch.optim.AdamW(tensors, lr=0.0, weight_decay=weight_decay, fused=True)


@torch.no_grad()
def _prepare(
    model: nn.Module, recipe: Recipe, device: torch.device, cut: Any, config: Any
) -> None:
    """Give all parameters their dtype; and memory, where they are on the meta device.

    With ZeRO 3 that is done module by module, and each rank keeps its part only.
    """
    dtype = torch.bfloat16 if recipe.precision == "mixed" else torch.float32
    if recipe.activation_checkpointing:
        checkpoint_activations(model)
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in reversed(list(model.modules())):  # those within others first
        empty = allocate_own(module, device, dtype, made)
        if empty and recipe.sharding == "deepspeed-3":
            cut(module=module, config_dict_or_path=config)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def _begin_state(engine: Any) -> None:
    """Make AdamW's state, which else is made in the first step."""
    optimizer = engine.optimizer
    for name in (
        "fp32_partitioned_groups_flat",  # ZeRO 3
        "single_partition_of_fp32_groups",  # ZeRO 1 and 2
        "fp32_groups_flat_partition",  # ZeRO 1 with bfloat16
    ):
        if hasattr(optimizer, name):
            flats = getattr(optimizer, name)
            for flat, state in zip(flats, moments_of(flats), strict=True):
                engine.basic_optimizer.state[flat] = state


def _release(engine: Any) -> None:
    """Free the memory of an engine that nobody uses any more."""
    optimizer = engine.optimizer
    engine.destroy()
    for parameter in engine.module.parameters():
        if _is_cut(parameter):
            parameter.ds_tensor = None
    engine.basic_optimizer.state.clear()
    vars(optimizer).clear()


def _is_cut(tensor: Any) -> bool:
    """Tell whether each rank has a part of a tensor only, as with ZeRO 3."""
    return hasattr(tensor, "ds_id")


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.ds_shape if _is_cut(tensor) else by_rows(tensor).shape)
