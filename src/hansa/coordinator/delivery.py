"""Versions out, updates in: one facility's traffic with the server's store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hansa.core.commands import WorkOrder
from hansa.core.errors import StorageFull, TransferError, UpdateRejected
from hansa.core.events import EvaluationReported, ModelStaged, UpdateArrived
from hansa.mover.base import Mover
from hansa.store.manifest import UpdateManifest, checked
from hansa.store.update import verify_update
from hansa.store.versions import Store


class Delivery:
    """Stages versions in a facility's mailbox and collects verified updates.

    Args:
        run: Id of the run.
        facility: Name of the facility.
        connect: Gives the data plane to its mailbox; called once, when first needed.
        store: The server's versions and updates.
        newest: Returns the number of the newest version.
        keep: Returns the versions that must stay in the mailbox.
        settled: Returns the assignments whose files the mailbox may forget.
    """

    def __init__(
        self,
        run: str,
        facility: str,
        connect: Callable[[], Awaitable[Mover]],
        store: Store,
        *,
        newest: Callable[[], int],
        keep: Callable[[], set[int]],
        settled: Callable[[], list[str]],
    ) -> None:
        self._run = run
        self._facility = facility
        self._connect = connect
        self._mover: Mover | None = None
        self._store = store
        self.newest = newest
        self.keep = keep
        self.settled = settled
        self._staging = asyncio.Lock()
        self._staged: set[int] = set()

    async def stage(self, version: int | None) -> ModelStaged | None:
        """Put a version (None: the newest) into the mailbox.

        Returns:
            What was moved; None if it was all there already.

        Raises:
            TransferError: It did not arrive whole, or the facility's disk is full.
        """
        async with self._staging:
            number = self.newest() if version is None else version
            if number in self._staged:
                return None
            files = self._store.manifest(number).files
            mover = await self._connected()
            try:
                moved = await mover.put(
                    self._store.version_dir(number),
                    f"{self._run}/versions/{number}",
                    files,
                )
            except StorageFull as error:
                raise TransferError(
                    f"The mailbox of {self._facility} is full: {error.message}",
                    hint=error.hint,
                    transient=False,
                ) from error
            self._staged.add(number)
        if moved.bytes == 0:
            return None
        return ModelStaged(
            at=0.0,
            facility=self._facility,
            version=number,
            bytes=moved.bytes,
            seconds=moved.seconds,
        )

    async def collect(
        self, order: WorkOrder, base: int | None, data: dict[str, Any]
    ) -> UpdateArrived | EvaluationReported:
        """Pull a finished update and verify it; or read an evaluation.

        Args:
            order: The order that it answers.
            base: The version that the job was seen to bind; None if that was missed.
            data: The manifest, as the site agent read it.

        Raises:
            UpdateRejected: It answers another order, or must not enter a model.
            TransferError: It did not arrive whole.
            StorageFull: The server's disk is full.
        """
        manifest = checked(UpdateManifest, data)
        self._check(order, manifest)
        if manifest.kind == "evaluation":
            return self._evaluation(order, manifest)
        target = self._store.update_dir(order.assignment)
        mover = await self._connected()
        moved = await mover.get(
            f"{self._run}/updates/{order.assignment}", target, manifest.files
        )
        expected = manifest.base if base is None else base
        if expected > self.newest():
            raise UpdateRejected(
                f"The update of {order.assignment} says that it was trained from "
                f"version {expected}, which does not exist yet."
            )
        await asyncio.to_thread(
            verify_update, target, self._store.manifest(expected), expected
        )
        timings = {**manifest.timings, "transfer_s": moved.seconds}
        return UpdateArrived(
            at=0.0,
            facility=self._facility,
            assignment=order.assignment,
            base=manifest.base,
            steps=manifest.steps,
            samples=manifest.samples,
            partial=manifest.partial,
            bytes=manifest.bytes,
            metrics=manifest.metrics,
            losses=manifest.losses,
            timings=timings,
        )

    def check_again(self) -> None:
        """Look at what lies in the mailbox before trusting it: it was damaged."""
        self._staged.clear()

    async def close(self) -> None:
        """Close the mover."""
        if self._mover is not None:
            await self._mover.close()

    async def _connected(self) -> Mover:
        if self._mover is None:
            self._mover = await self._connect()
        return self._mover

    def _check(self, order: WorkOrder, manifest: UpdateManifest) -> None:
        kind = "update" if order.kind == "train" else "evaluation"
        expected = (kind, order.assignment, self._facility)
        if (manifest.kind, manifest.assignment, manifest.facility) != expected:
            raise UpdateRejected(
                f"{self._facility} delivered a {manifest.kind} for "
                f"{manifest.assignment}; a {kind} for {order.assignment} was ordered."
            )
        if kind == "update" and (manifest.steps < 1 or manifest.samples < 1):
            raise UpdateRejected(
                f"The update of {order.assignment} comes from {manifest.steps} steps "
                f"over {manifest.samples} samples: there is nothing in it."
            )

    def _evaluation(
        self, order: WorkOrder, manifest: UpdateManifest
    ) -> EvaluationReported:
        if manifest.base != order.version or "eval_loss" not in manifest.metrics:
            raise UpdateRejected(
                f"The evaluation of {order.assignment} is of version {manifest.base}, "
                f"not {order.version}, or has no eval_loss."
            )
        if manifest.base_sha256 not in {
            None,
            self._store.manifest(manifest.base).sha256,
        }:
            raise UpdateRejected(
                f"The evaluation of {order.assignment} is of another version "
                f"{manifest.base} than this run's."
            )
        return EvaluationReported(
            at=0.0,
            facility=self._facility,
            assignment=order.assignment,
            version=manifest.base,
            loss=manifest.metrics["eval_loss"],
            losses=manifest.losses,
            metrics=manifest.metrics,
        )
