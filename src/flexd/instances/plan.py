# SPDX-License-Identifier: Apache-2.0
"""Plans: what creating, starting, stopping, renaming and deleting an instance does, as data; pure.

The actions behind the step names are in `actions.py`. Arguments carry what a restarted daemon needs to go on.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from flexd.instances.record import Attached, Config, InstanceRecord
from flexd.operations.contract import Plan, Step


def _where(record: InstanceRecord, **more: Any) -> dict[str, Any]:
    return {"project": record.project, "name": record.name, **more}


def create_plan(record: InstanceRecord, encoded: str, *, fingerprint: str | None, size_bytes: int) -> Plan:
    """Record first, so that the name is taken; undone as a whole if the volume cannot be made."""
    return Plan(
        f'create instance "{record.name}"',
        (
            Step("instances.record", _where(record, document=encoded)),
            Step(
                "instances.volume",
                _where(
                    record,
                    pool=record.pool,
                    volume=record.storage_name,
                    fingerprint=fingerprint,
                    size_bytes=size_bytes,
                ),
            ),
        ),
    )


def copy_plan(record: InstanceRecord, encoded: str, volumes: dict[str, Any], snapshots: list[str]) -> Plan:
    """As creating, with the volume (and its snapshots) of another instance. `snapshots`: the documents to write."""
    return Plan(
        f'copy instance "{record.name}"',
        (
            Step("instances.record", _where(record, document=encoded)),
            Step("copies.volume", _where(record, **volumes)),
            Step("copies.snapshots", _where(record, documents=snapshots)),
        ),
    )


def _device(record: InstanceRecord, device: str, attached: Attached) -> dict[str, Any]:
    return _where(record, device=device, entry=attached.entry, volatile=attached.volatile)


def start_plan(record: InstanceRecord, images: str = "") -> Plan:
    """Root and devices on the host, then the container, from its saved state in `images` if there is one. A restarted
    daemon finishes what was asked for."""
    steps = [Step("instances.mount", _where(record))]
    steps += [Step("instances.device", _device(record, *each)) for each in record.attached.items()]
    steps.append(
        Step("instances.resume", _where(record, images=images)) if images else Step("instances.launch", _where(record))
    )
    steps.append(Step("instances.activate", _where(record)))
    return Plan(f'start instance "{record.name}"', tuple(steps), on_crash="finish")


def cleanup_plan(record: InstanceRecord) -> Plan:
    """After the container has ended: take down what its start and later edits set up, last first."""
    devices = reversed(record.attached.items())
    steps = [Step("instances.release_device", _device(record, *each)) for each in devices]
    steps.append(Step("instances.unmount", _where(record)))
    return Plan(f'clean up after instance "{record.name}"', tuple(steps), on_crash="finish")


class DeviceChange(Struct, frozen=True):
    """What an edit does to one device of a running instance; `in_place`: without unplugging it."""

    device: str
    old: Attached | None
    new: Attached | None
    in_place: bool = False


def change_steps(record: InstanceRecord, changes: Sequence[DeviceChange]) -> list[Step]:
    """Unplug what goes, then plug in what comes; each step's undo is the opposite one."""
    steps = []
    for change in reversed(changes):
        if change.old is not None and not change.in_place:
            old = _device(record, change.device, change.old)
            steps += [Step("instances.unplug", old), Step("instances.remove_device", old)]
    for change in changes:
        if change.new is None:
            continue
        new = _device(record, change.device, change.new)
        if change.in_place and change.old is not None:
            steps.append(Step("instances.update_device", {**new, "old_entry": change.old.entry}))
        else:
            steps += [Step("instances.device", new), Step("instances.plug", new)]
    return steps


def confine_step(record: InstanceRecord, before: Config, after: Config) -> Step:
    """Values of `security.LIVE`."""
    return Step("instances.confine", _where(record, before=dict(before), after=dict(after)))


def resize_step(record: InstanceRecord, old_bytes: int, new_bytes: int) -> Step:
    """Another size for the root volume."""
    where = {"pool": record.pool, "volume": record.storage_name}
    return Step("instances.resize", {**where, "old_bytes": old_bytes, "size_bytes": new_bytes})


class Write(Struct, frozen=True):
    """A document of `folder` ("instances", "profiles") and what it becomes, encoded."""

    folder: str
    path: tuple[str, str]
    old: str
    new: str


def write_step(writes: Sequence[Write]) -> Step:
    """All documents in one transaction; last in a plan, so that what they say is true."""
    return Step("instances.write", {"writes": [msgspec.structs.asdict(write) for write in writes]})


def delete_plan(record: InstanceRecord) -> Plan:
    """Forward only: once begun, a deletion is finished. The record goes last, so that nothing is lost from sight."""
    volume = {"pool": record.pool, "volume": record.storage_name}
    return Plan(
        f'delete instance "{record.name}"',
        (
            Step("instances.forget_runtime", _where(record, runtime_name=record.storage_name)),
            Step("instances.delete_volume", _where(record, **volume)),
            Step("instances.delete_record", _where(record)),
        ),
        on_crash="finish",
    )


def rename_plan(record: InstanceRecord, new: InstanceRecord) -> Plan:
    """Another name or project: volume, logs, then the record in one transaction; a crash before that takes the volume
    back."""
    new_storage_name = new.storage_name
    return Plan(
        f'rename instance "{record.name}" of project "{record.project}" to "{new.name}" of "{new.project}"',
        (
            Step(
                "instances.rename_volume",
                {
                    "pool": record.pool,
                    "old": record.storage_name,
                    "new": new_storage_name,
                    "project": record.project,
                    "new_project": new.project,
                },
            ),
            Step("instances.rename_runtime", {"old": record.storage_name, "new": new_storage_name}),
            Step("instances.rename_record", _where(record, new_name=new.name, new_project=new.project)),
        ),
    )
