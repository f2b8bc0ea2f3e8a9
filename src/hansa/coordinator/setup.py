"""From a plan to the parts that carry it out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hansa.coordinator.ahead import AheadSettings
from hansa.coordinator.contact import Contact
from hansa.coordinator.core import Coordinator
from hansa.coordinator.delivery import Delivery
from hansa.coordinator.lane import Lane
from hansa.coordinator.plan import Plan, Stop
from hansa.coordinator.rehearsal import check_adapters, check_control
from hansa.coordinator.runtime import Runtime
from hansa.coordinator.settings import LaneSettings
from hansa.coordinator.transfers import JournaledTransfers
from hansa.coordinator.trouble import When
from hansa.core import plugins
from hansa.core.commands import Assign, WorkOrder
from hansa.core.errors import LoginError
from hansa.core.events import VersionPublished
from hansa.core.ids import assignment_id
from hansa.gateway.base import Gateway
from hansa.mover.base import Mover, Place, Progress, TransferLog
from hansa.site import rpc
from hansa.spec.federation import FacilitySpec, FederationSpec
from hansa.store.versions import Store
from hansa.strategy.base import Strategy, StrategyContext

CACHE = Path("~/.cache/hansa")
"""Where tasks keep what they built on this server."""


def make_plan(spec: FederationSpec) -> Plan:
    """Return what the core needs of a federation."""
    target = spec.stop.target
    return Plan(
        facilities=tuple(spec.facilities),
        stop=Stop(
            rounds=spec.stop.rounds,
            updates=spec.stop.updates,
            wall_clock=spec.stop.wall_clock,
            node_hours=spec.stop.node_hours,
            target_metric=target.metric if target else "eval_loss",
            target_below=target.below if target else None,
        ),
        evaluators=spec.evaluation.on or tuple(spec.facilities),
        evaluate_every=spec.evaluation.every,
    )


def strategy_options(spec: FederationSpec) -> BaseModel:
    """Return the strategy's keys, with their defaults."""
    kind = plugins.find(plugins.STRATEGIES, spec.strategy.name)
    options: BaseModel = kind.Options.model_validate(spec.strategy.options)
    return options


def make_strategy(spec: FederationSpec) -> Strategy:
    """Return a fresh strategy.

    Raises:
        SpecError: Its options can't work with these facilities.
    """
    kind = plugins.find(plugins.STRATEGIES, spec.strategy.name)
    strategy: Strategy = kind(
        strategy_options(spec),
        StrategyContext(
            facilities=tuple(spec.facilities),
            steps={name: one.work.steps for name, one in spec.facilities.items()},
            walltimes={name: one.job.time for name, one in spec.facilities.items()},
            seconds_per_step={
                name: one.seconds_per_step
                for name, one in spec.facilities.items()
                if one.seconds_per_step is not None
            },
        ),
    )
    return strategy


def make_coordinator(spec: FederationSpec) -> Coordinator:
    """Return a fresh core.

    Raises:
        SpecError: The strategy can't work with these facilities, not with their
            optimizers, or not with `aggregation.adapters`.
    """
    check_adapters(spec, make_strategy(spec))
    check_control(spec, make_strategy(spec))
    return Coordinator(make_plan(spec), make_strategy(spec))


def first_order(spec: FederationSpec, name: str) -> WorkOrder:
    """Return the first training order of a facility, as the strategy gives it."""
    strategy, initial = (
        make_strategy(spec),
        VersionPublished(at=0.0, version=0, sha256="", bytes=0, seconds=0.0, terms=()),
    )
    for command in strategy.handle(initial):
        if isinstance(command, Assign) and command.facility == name:
            return command.order
    return WorkOrder(assignment=assignment_id("train", 1, name), kind="train", round=1)


def make_gateway(facility: FacilitySpec) -> Gateway:
    """Return the control plane to a facility."""
    kind = plugins.find(plugins.GATEWAYS, facility.gateway.type)
    gateway: Gateway = kind(kind.Options.model_validate(facility.gateway.options))
    return gateway


def make_mover(facility: FacilitySpec, place: Place) -> Mover:
    """Return the data plane to a facility whose site agent named its mailbox."""
    kind = plugins.find(plugins.MOVERS, facility.mover.type)
    mover: Mover = kind(kind.Options.model_validate(facility.mover.options), place)
    return mover


def _connect(
    contact: Contact,
    facility: FacilitySpec,
    log: TransferLog,
    watch: Callable[[Progress], None],
) -> Callable[[], Awaitable[Mover]]:
    async def connect() -> Mover:
        health = await contact.call(rpc.probe())
        place = Place(
            mailbox=Path(str(health["mailbox"])),
            facility=contact.facility,
            log=log,
            ask=contact.call,
            watch=watch,
        )
        return make_mover(facility, place)

    return connect


def make_lanes(
    spec: FederationSpec,
    run: str,
    core: Coordinator,
    store: Store,
    runtime: Runtime,
    adapt: Callable[[LaneSettings], LaneSettings] = lambda settings: settings,
) -> dict[str, Lane]:
    """Return one lane for each facility, emitting to the runtime.

    What `adapt` makes of a lane's settings goes before what the plan says.
    """
    lanes: dict[str, Lane] = {}

    def watch(name: str, progress: Progress) -> None:
        lanes[name].view.show_transfer(progress)

    def show_login(name: str, error: LoginError | None) -> None:
        lanes[name].view.show_login(error)

    for name, facility in spec.facilities.items():
        gateway = make_gateway(facility)
        contact = Contact(
            name, gateway, patience=spec.patience, show=partial(show_login, name)
        )
        delivery = Delivery(
            run,
            name,
            _connect(
                contact,
                facility,
                JournaledTransfers(name, core, runtime.noted),
                partial(watch, name),
            ),
            store,
            newest=lambda: core.newest,
            keep=core.needed_versions,
            settled=partial(core.settled, name),
            staged=partial(core.staged, name),
        )
        settings = LaneSettings(
            run=run,
            facility=name,
            order=order_form(
                spec, run, name, lambda: f"{core.began}", partial(_seen, core)
            ),
            job=job_request(facility, hold=spec.start_together or 0.0),
            ahead=_ahead(facility, name, core),
            when=When(**facility.when.model_dump()),
            retries=spec.retries,
            patience=spec.patience,
        )
        lanes[name] = Lane(
            adapt(settings), contact, delivery, emit=runtime.emit, fail=runtime.fail
        )
    return lanes


def _ahead(facility: FacilitySpec, name: str, core: Coordinator) -> AheadSettings:
    return AheadSettings(
        wait=facility.queue_ahead,
        nonce=lambda: f"{core.began}",
        last=lambda: core.last_ahead(name),
        due=lambda: core.calls_ahead(name) and core.more_to_come,
        newest=lambda: core.newest,
    )


def job_request(facility: FacilitySpec, *, hold: float = 0.0) -> dict[str, Any]:
    """Return what each batch job of a facility asks for, as the RPC has it.

    Args:
        facility: The facility, as the plan has it.
        hold: Seconds that training may wait for the word to begin.
    """
    job = facility.job
    return {
        "nodes": job.nodes,
        "ranks_per_node": job.ranks_per_node,
        "time": job.time,
        "queue": job.queue,
        "account": job.account,
        "reservation": job.reservation,
        "linger": facility.linger,
        "hold": hold,
    }


def order_form(
    spec: FederationSpec,
    run: str,
    name: str,
    nonce: Callable[[], str] = lambda: "",
    seen: Callable[[str], int] = lambda assignment: 0,
) -> Callable[[WorkOrder], dict[str, Any]]:
    """Return the function that writes an order for one facility out in full.

    Args:
        spec: The plan.
        run: Id of the run.
        name: Name of the facility.
        nonce: Tells this run from an older one of the same id, whose orders and
            results may still lie in the mailbox.
        seen: Tells where in the facility's stream of data an assignment begins.
    """
    facility = spec.facilities[name]

    def render(order: WorkOrder) -> dict[str, Any]:
        training = order.kind == "train"
        steps = order.steps if order.steps is not None else facility.work.steps
        data = list(facility.data) if facility.data is not None else None
        return {
            "schema": 1,
            "run": run,
            "assignment": order.assignment,
            "kind": order.kind,
            "facility": name,
            "round": order.round,
            "steps": steps if training else None,
            "version": order.version,
            "seed": spec.seed,
            "nonce": nonce(),
            "model": spec.model.model_dump(mode="json"),
            "task": {
                "name": spec.task.name,
                "data": data if training else None,
                "options": spec.task.options,
            },
            "work": facility.work.options,
            "update": spec.update.model_dump(mode="json"),
            "evaluate": training and spec.evaluation.local,
            "first": order.first,
            "seen": seen(order.assignment) if training else None,
            "lr_scale": order.lr_scale,
            "proximal": order.proximal,
            "control": order.control,
        }

    return render


def _seen(core: Coordinator, assignment: str) -> int:
    work = core.progress(assignment)
    return 0 if work is None else work.seen


def initial_request(spec: FederationSpec) -> Mapping[str, Any]:
    """Return what the worker needs to make the first version."""
    first = next(iter(spec.facilities.values()))
    return {
        "schema": 1,
        "model": spec.model.model_dump(mode="json"),
        "task": {
            "name": spec.task.name,
            "options": spec.task.options,
            "cache": str(CACHE.expanduser()),
        },
        "work": first.work.options,
        "seed": spec.seed,
    }
