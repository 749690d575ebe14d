# SPDX-License-Identifier: Apache-2.0
"""Plans: what creating, starting, stopping, renaming and deleting an instance does, as data; pure.

The actions behind the step names are in `actions.py`. Arguments carry what a restarted daemon needs to go on.
"""

from typing import Any

from flexd.instances.record import InstanceRecord
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


def start_plan(record: InstanceRecord, devices: list[str]) -> Plan:
    """Root and devices on the host, then the container. A restarted daemon finishes what was asked for."""
    steps = [Step("instances.mount", _where(record))]
    steps += [Step("instances.device", _where(record, device=device)) for device in devices]
    steps.append(Step("instances.launch", _where(record)))
    return Plan(f'start instance "{record.name}"', tuple(steps), on_crash="finish")


def cleanup_plan(record: InstanceRecord, devices: list[str]) -> Plan:
    """After the container has ended: take down what its start set up, last first."""
    steps = [Step("instances.release_device", _where(record, device=device)) for device in reversed(devices)]
    steps.append(Step("instances.unmount", _where(record)))
    return Plan(f'clean up after instance "{record.name}"', tuple(steps), on_crash="finish")


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


def rename_plan(record: InstanceRecord, new_name: str, new_storage_name: str) -> Plan:
    """Volume, logs, then the record in one transaction; a crash before that takes the volume back."""
    return Plan(
        f'rename instance "{record.name}" to "{new_name}"',
        (
            Step(
                "instances.rename_volume",
                {"pool": record.pool, "old": record.storage_name, "new": new_storage_name},
            ),
            Step("instances.rename_runtime", {"old": record.storage_name, "new": new_storage_name}),
            Step("instances.rename_record", _where(record, new_name=new_name)),
        ),
    )
