"""`hansa plan --memory`: what fits where, how it is spread, and what a round costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hansa.cli.output import show_json, show_table
from hansa.core.errors import UsageError

if TYPE_CHECKING:
    from hansa.coordinator.memory import MemoryPlan, NodeMemory
    from hansa.planner.fitting import Wants
    from hansa.planner.shape import ModelShape
    from hansa.planner.speed import Pace
    from hansa.spec.federation import FederationSpec

MEMORY = typer.Option(
    False,
    "--memory",
    help="Say what fits, how the model is spread and what a round costs.",
)
MODEL = typer.Option(
    None,
    "--model",
    help="With --memory and no file: a known name, a model's folder or config.json.",
)
GPU_MEMORY = typer.Option(None, "--gpu-memory", help="Of each rank, as 40GB.")
RANKS = typer.Option(None, "--ranks", help="Ranks that train together.", min=1)
PROFILES = typer.Option(
    None, "--profile", help="A known machine in place of the two; repeat it."
)
NODES = typer.Option(2, "--nodes", help="Nodes of that machine.", min=1)
WORK = typer.Option(
    None,
    "--work",
    metavar="KEY=VALUE",
    help="A key of `work`, as micro_batch=8 or precision=mixed; repeat it.",
)
LORA = typer.Option(
    None,
    "--lora",
    help="Rank of LoRA adapters, beside q_proj and v_proj or what is like them.",
    min=1,
)

_WIDTH = 60
_BLOCKS = {
    "weights": "█",
    "gradients": "▓",
    "optimizer": "▒",
    "activations": "░",
    "logits": "◆",
    "buffers": "◇",
    "base": "·",
}
_COLUMNS = (
    "",
    "ranks",
    "memory",
    "sharding",
    "pass",
    "passes",
    "takes",
    "step",
    "samples/s",
    "node-h/round",
    "moves/round",
)
_FREE, _LIMIT, _END = " ", "┊", "│"
_DEFAULTS = {
    "precision": "mixed",
    "sequence_length": "512",
    "micro_batch": "8",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the answer.

    Attributes:
        name: The facility, or the machine.
        memory: What fits.
        pace: How long a round takes; None: not measured.
        round_bytes: What a round moves; None: not known.
        problems: What else is wrong, each with its remedy.
    """

    name: str
    memory: MemoryPlan | None
    pace: Pace | None = None
    round_bytes: int | None = None
    problems: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain JSON data."""
        return {
            "memory": self.memory.to_json() if self.memory else None,
            "ranks": self.memory.node.ranks if self.memory else None,
            "pace": asdict(self.pace) if self.pace else None,
            "transfer_bytes": self.round_bytes,
            "problems": [{"what": w, "hint": h} for w, h in self.problems],
        }


def of_federation(spec: FederationSpec, runs: Path) -> list[Row]:
    """Return the rows of a federation's facilities."""
    import asyncio

    from hansa.coordinator.planning import plan_all

    return [
        Row(
            name=one.facility,
            memory=one.memory,
            pace=one.pace,
            round_bytes=one.sizes.round_trip,
            problems=tuple(one.problems),
        )
        for one in asyncio.run(plan_all(spec, spec.name, runs))
    ]


def of_model(
    model: str,
    *,
    machines: Mapping[str, NodeMemory],
    work: Sequence[str],
    lora: int | None,
) -> list[Row]:
    """Return the rows of one model on some machines.

    Args:
        model: A known name, or a path.
        machines: By name.
        work: ``key=value`` texts.
        lora: Rank of adapters.
    """
    from hansa.coordinator.memory import plan_memory

    shape = _shape(model, lora)
    rows = []
    for name, node in machines.items():
        memory = plan_memory(shape, _wants(work, node.ranks), node)
        problems = (memory.problem,) if memory.problem else ()
        rows.append(Row(name=name, memory=memory, problems=problems))
    return rows


def _shape(model: str, lora: int | None) -> ModelShape:
    from hansa.coordinator.memory import read_config
    from hansa.planner.known import must_know
    from hansa.planner.remedies import adapters_for
    from hansa.planner.shape import from_config

    path = Path(model).expanduser()
    config = read_config(path / "config.json" if path.is_dir() else path)
    shape = from_config(config) if config else must_know(model)
    return shape.with_adapters(adapters_for(shape, lora)) if lora else shape


def machines(
    profiles: Sequence[str], nodes: int, gpu_memory: str | None, ranks: int | None
) -> dict[str, NodeMemory]:
    """Return what there is to train on, from the options.

    Raises:
        UsageError: Neither a profile nor memory and ranks are named.
    """
    from hansa.coordinator.memory import NodeMemory, profile_memory
    from hansa.core.units import format_size, parse_size

    if profiles:
        return {name: profile_memory(name, nodes) for name in profiles}
    if gpu_memory is None or ranks is None:
        raise UsageError(
            "What there is to train on is not said.",
            hint="Say --gpu-memory 40GB --ranks 8, or "
            "--profile alcf/polaris --nodes 2.",
        )
    try:
        size = parse_size(gpu_memory)
    except ValueError as error:
        raise UsageError(f"--gpu-memory: {error}.") from None
    name = f"{ranks} x {format_size(size)}"
    node = NodeMemory(
        nodes=1, ranks_per_node=ranks, host=False, device_bytes=size, host_bytes=None
    )
    return {name: node}


def _wants(work: Sequence[str], ranks: int) -> Wants:
    """Return what `work` asks for: each rank has one full pass, unless it is said."""
    from pydantic import ValidationError

    from hansa.worker.llm_options import CausalLMWorkOptions

    said = dict(_DEFAULTS)
    for text in work:
        key, _, value = text.partition("=")
        said[key] = value
    try:
        options = CausalLMWorkOptions.model_validate_strings(said)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"--work {where}: {first['msg']}.") from None
    if "batch" not in said:
        options = options.model_copy(update={"batch": ranks * options.micro_batch})
    return options.wants("bfloat16")


def show(title: str, rows: Sequence[Row], *, as_json: bool) -> int:
    """Print rows and return the exit code: 3 if anything does not fit."""
    code = 3 if any(row.problems for row in rows) else 0
    if as_json:
        from hansa.planner.choice import MARGIN

        show_json(
            {"margin": MARGIN, "plans": {r.name: r.to_json() for r in rows}}, code
        )
        return code
    _table(title, rows)
    for line in (*_bars(rows), *_words(rows)):
        print(line)
    return code


def _table(title: str, rows: Sequence[Row]) -> None:
    from hansa.report.tables import Table

    show_table(
        Table(
            title=title,
            columns=_COLUMNS,
            rows=tuple(_cells(row) for row in rows),
            left=frozenset({"", "sharding"}),
        )
    )


def _cells(row: Row) -> tuple[str, ...]:
    from hansa.core.units import format_size, short_duration
    from hansa.report.tables import NONE, hours

    def size(number: int | None) -> str:
        return NONE if number is None else format_size(number)

    pace, memory = row.pace, row.memory
    time = (
        (
            short_duration(pace.step_s),
            f"{pace.samples_per_s:.3g}",
            hours(pace.node_hours),
        )
        if pace
        else (NONE, NONE, NONE)
    )
    tail = (*time, size(row.round_bytes))
    if memory is None:
        return (row.name, *[NONE] * 6, *tail)
    choice = memory.choice
    how = (
        (_way(memory), str(choice.micro_batch), str(choice.accumulation))
        if choice
        else ("does not fit", NONE, NONE)
    )
    takes, there = size(memory.parts.total), size(memory.node.device_bytes)
    return (row.name, str(memory.node.ranks), there, *how, takes, *tail)


def _way(memory: MemoryPlan) -> str:
    choice = memory.choice
    if choice is None:
        return ""
    more = ["checkpointing"] if choice.activation_checkpointing else []
    more += ["offload"] if choice.cpu_offload else []
    return " + ".join([choice.sharding, *more])


def sentence(memory: MemoryPlan) -> str:
    """Return how a model is trained and what that takes, in one line."""
    from hansa.core.units import format_size

    size = memory.node.device_bytes
    there = f" of {format_size(size)}" if size is not None else ""
    takes = f"{format_size(memory.parts.total)}{there} a rank"
    if memory.choice is None:
        return f"does not fit: {takes}"
    passes = f"passes of {memory.choice.micro_batch} examples"
    return f"{_way(memory)}, {passes}, {takes}"


def _bars(rows: Sequence[Row]) -> list[str]:
    """Return a bar for each row: the parts, the limit and the end of the memory."""
    known = [(row.name, row.memory) for row in rows if row.memory]
    if not known:
        return []
    widest = max(max(m.parts.total, m.node.device_bytes or 0) for _, m in known)
    left = max(len(name) for name, _ in known)
    legend = [f"{block} {name}" for name, block in _BLOCKS.items()]
    legend += [f"{_LIMIT} may be used", f"{_END} there is"]
    lines = [f"{name:{left}}  {bar(memory, widest)}" for name, memory in known]
    return [*lines, f"{'':{left}}  {'  '.join(legend)}", ""]


def bar(memory: MemoryPlan, widest: int) -> str:
    """Return the parts as a bar, in which `widest` bytes are 60 signs long."""
    from hansa.planner.choice import MARGIN

    ends, total, line = memory.parts.to_json(), 0, ""
    for name, size in ends.items():
        total += size
        line += _BLOCKS[name] * (round(total * _WIDTH / widest) - len(line))
    signs = list(line.ljust(_WIDTH + 1, _FREE))
    if memory.node.device_bytes is not None:
        end = memory.node.device_bytes * _WIDTH / widest
        signs[round(end * (1 - MARGIN))] = _LIMIT
        signs[round(end)] = _END
    return "".join(signs).rstrip()


def _words(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        if row.memory is None:
            lines.append(f"{row.name}: the model's sizes are not known here.")
        elif not row.memory.problem:
            lines.append(f"{row.name}: {row.memory.found.why}")
            lines += [f"  note: {note}" for note in row.memory.notes]
        for what, hint in row.problems:
            lines.append(f"{row.name}: {what}")
            lines += [f"  help: {hint}"] if hint else []
    return lines
