# SPDX-License-Identifier: Apache-2.0
"""Starting, stopping, freezing; seeing containers end; bringing them back after a restart of daemon or host.

One watcher task per running container sees it end, for whatever reason, and is the only one that cleans up after it.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Literal

import msgspec

from flexd.api.errors import BadRequest, Fault, FlexdError, InvalidInput
from flexd.api.instance_state import InstanceStatePut
from flexd.api.times import now
from flexd.api.units import is_true
from flexd.devices.devices import Devices
from flexd.instances.actions import Actions
from flexd.instances.allocator import IdmapAllocator
from flexd.instances.check import new_volatile
from flexd.instances.fitness import STARTED
from flexd.instances.limiter import Limiter
from flexd.instances.plan import cleanup_plan, delete_plan, start_plan
from flexd.instances.ports import PortList
from flexd.instances.record import Config, Expanded, InstanceRecord, attached_devices
from flexd.instances.registry import Registry
from flexd.instances.saving import Saving
from flexd.instances.spec import is_application
from flexd.operations.events import Events
from flexd.operations.journal import Journal
from flexd.operations.locks import Locks
from flexd.operations.operations import Operation, Operations
from flexd.operations.undo import Undo
from flexd.runtime.contract import Dump, Ended, RunningContainer, Runtime

log = logging.getLogger(__name__)

Action = Literal["start", "stop", "restart", "freeze", "unfreeze"]
_TITLES: dict[str, str] = {
    "start": "Starting instance",
    "stop": "Stopping instance",
    "restart": "Restarting instance",
    "freeze": "Freezing instance",
    "unfreeze": "Unfreezing instance",
}
# boot.host_shutdown_timeout's default in LXD.
_HOST_SHUTDOWN_TIMEOUT_S = 30.0
# boot.autorestart, as Incus has it: ten times in a minute.
_TAIL_BYTES = 1000  # some lines of a console
_REVIVALS, _REVIVALS_S = 10, 60.0
_OF_ONE_RUN = ("volatile.last_state.ready", "volatile.last_state.exit_status")


class _Live:
    """A container that runs: what the runtime said, and the task that waits for its end."""

    def __init__(self, container: RunningContainer, frozen: bool = False) -> None:
        self.container = container
        self.frozen = frozen
        self.ended = asyncio.Event()  # everything is cleaned up
        self.asked: Literal["", "stop", "restart"] = ""  # by a request here, so not by the container itself
        self.task: asyncio.Task[None] | None = None


class Lifecycle:
    """Owns the set of running containers."""

    def __init__(
        self,
        *,
        registry: Registry,
        devices: Devices,
        actions: Actions,
        runtime: Runtime,
        ports: PortList,
        allocator: IdmapAllocator,
        limiter: Limiter,
        saving: Saving,
        fit: Callable[[Config], Awaitable[bool]],
        journal: Journal,
        operations: Operations,
        locks: Locks,
        events: Events,
    ) -> None:
        """`fit`: whether an instance of such settings is to be started so that its state can be saved."""
        self.saving = saving
        self._fit = fit
        self._registry = registry
        self._devices = devices
        self._actions = actions
        self._runtime = runtime
        self._ports = ports
        self._allocator = allocator
        self._limiter = limiter
        self._journal = journal
        self._operations = operations
        self._locks = locks
        self._events = events
        self._live: dict[str, _Live] = {}
        self._revivals: dict[str, list[float]] = {}
        self._host_goes_down = False
        self._before_start: list[Callable[[InstanceRecord], Awaitable[None]]] = []

    # --- what runs ---

    def running(self, record: InstanceRecord) -> RunningContainer | None:
        live = self._live.get(record.storage_name)
        return None if live is None else live.container

    def shown_status(self, record: InstanceRecord) -> str:
        """As `status`, but "Ready" for what runs and has said so itself (extension: instance_ready_state)."""
        status = self.status(record)
        ready = status == "Running" and is_true(record.config.get("volatile.last_state.ready"))
        return "Ready" if ready else status

    def status(self, record: InstanceRecord) -> str:
        live = self._live.get(record.storage_name)
        if live is None:
            return "Stopped"
        return "Frozen" if live.frozen else "Running"

    async def announce_ports(self, expanded: Expanded) -> None:
        """Tell the networks of an instance that its addresses or name may have changed. What was asked for is done by
        then: should a network fail, it is told again when the instance, or the daemon, next starts."""
        try:
            await self._ports.announce(expanded)
        except (FlexdError, OSError) as error:
            log.error("Failed telling the networks of an instance of its addresses: %s", error)

    async def rebalance(self) -> None:
        """Spread what runs over the CPUs, where `limits.cpu` asks for it."""
        running = {}
        for record in self._registry.all_instances():
            container = self.running(record)
            if container is not None:
                running[record.storage_name] = (container, self._setting(record, "limits.cpu"))
        await self._limiter.rebalance(running)

    # --- requests ---

    async def change_state(self, project: str, name: str, put: InstanceStatePut) -> Operation:
        """`PUT …/state`: check that the change makes sense now, then do it in the background."""
        record = self._registry.instance(project, name)
        action = self._check_action(record, put)
        return self._operations.start(
            kind="task",
            description=_TITLES[action],
            project=project,
            resources={"instances": [record.url]},
            run=lambda _operation: self._act(project, name, action, put),
        )

    async def change_states(self, project: str, put: InstanceStatePut) -> Operation:
        """`PUT /1.0/instances`: every instance that the action fits (extension: instance_bulk_state_change)."""
        if put.action not in _TITLES:
            raise BadRequest(f'Invalid action "{put.action}"')
        fitting = [record for record in self._registry.all_instances(project) if self._fits(record, put.action)]
        return self._operations.start(
            kind="task",
            description=_TITLES[put.action].replace("instance", "instances"),
            project=project,
            resources={"instances": [record.url for record in fitting]},
            run=lambda _operation: self._act_on_all(fitting, put),
        )

    async def _act_on_all(self, records: list[InstanceRecord], put: InstanceStatePut) -> None:
        action = self._check_name(put.action)
        results = await asyncio.gather(
            *(self._act(record.project, record.name, action, put) for record in records), return_exceptions=True
        )
        failed = [
            f"{record.name}: {result}"
            for record, result in zip(records, results, strict=True)
            if isinstance(result, Exception)
        ]
        if failed:
            raise FlexdError(f"Failed to {put.action} {len(failed)} of {len(records)} instances: " + "; ".join(failed))

    def _check_name(self, action: str) -> Action:
        if action not in _TITLES:
            raise BadRequest(f'Unknown action: "{action}" (expected one of {", ".join(_TITLES)})')
        return action  # type: ignore[return-value]  # narrowed by membership

    def _check_action(self, record: InstanceRecord, put: InstanceStatePut) -> Action:
        action = self._check_name(put.action)
        if put.stateful and action == "start" and not record.stateful and self.status(record) == "Stopped":
            raise BadRequest(f'Failed to start instance "{record.name}": Instance has no existing state to restore')
        if action == "start" and record.config.get("volatile.migration.handed_over"):
            raise BadRequest(
                f'Failed to start instance "{record.name}": it was moved to another server while it ran; delete it here'
            )
        if not self._fits(record, action):
            status = self.status(record)
            raise BadRequest(
                f"The instance is already {status.lower()}"
                if (action, status) in {("start", "Running"), ("stop", "Stopped"), ("freeze", "Frozen")}
                else f'Failed to {action} instance "{record.name}": The instance is {status.lower()}'
            )
        return action

    def _fits(self, record: InstanceRecord, action: str) -> bool:
        allowed = {
            "start": ("Stopped", "Frozen"),
            "stop": ("Running", "Frozen"),
            "restart": ("Running",),
            "freeze": ("Running",),
            "unfreeze": ("Frozen",),
        }
        return self.status(record) in allowed[action]

    async def _act(self, project: str, name: str, action: Action, put: InstanceStatePut) -> None:
        async with self._locks.try_hold(f"instance/{project}/{name}", action, subject="Instance"):
            record = self._registry.instance(project, name)
            self._check_action(record, put)
            if action == "start" and self.status(record) == "Frozen":
                action = "unfreeze"  # as LXD: starting a frozen instance thaws it
            if action == "start":
                await self._start(project, name, stateful=put.stateful)
            elif action == "stop" and put.stateful:
                await self._save_and_stop(record)
            elif action == "stop":
                await self._stop(record, put)
            elif action == "restart":
                await self._stop(record, put, restart=True)
                await self._start(project, name)
                self._events.lifecycle("instance-restarted", record.url, project)
            else:
                await self._set_frozen(record, action == "freeze")

    # --- start ---

    def before_start(self, hook: Callable[[InstanceRecord], Awaitable[None]]) -> None:
        """Have something done before each start, with the instance's lock held; it must not raise."""
        self._before_start.append(hook)

    async def arrive(self, project: str, name: str, decide: Callable[[], Awaitable[None]]) -> None:
        """Start from the state that another server has sent; `decide` is asked when all of it is there and waits. The
        lock is held."""
        running_name = self._registry.instance(project, name).storage_name
        self._actions.deciding[running_name] = decide
        try:
            await self._start(project, name, stateful=True)
        finally:
            del self._actions.deciding[running_name]
        container = self.running(self._registry.instance(project, name))
        if container is not None:
            await self._runtime.announce(container)

    async def go_on(self, project: str, name: str) -> None:
        """Start from a state that has arrived, after a crash. The lock is held."""
        await self._start(project, name, stateful=True)

    async def _start(self, project: str, name: str, *, stateful: bool = False) -> None:
        """`stateful`: from its saved state, which stays if that fails; else a state that was saved is dropped."""
        for hook in self._before_start if not stateful else ():
            await hook(self._registry.instance(project, name))
        if not stateful and self._registry.instance(project, name).stateful:
            await self.saving.forget(self._registry.instance(project, name))
        record = await self._prepare_start(project, name, stateful=stateful)
        images = str(self.saving.images(record)) if stateful else ""
        async with self._locks.hold(record.root_key, "start"), Undo() as undo:
            undo.push(self._note_power, project, name, "STOPPED")
            await self._journal.run(start_plan(record, images))
            container = await self._runtime.find(record.storage_name)
            if container is not None:
                self._watch(record, container)
                self._events.lifecycle("instance-started", record.url, project)
        if stateful:
            await self.saving.forget(record)
        if container is None:
            await self._see_early_end(record)
        await self.rebalance()

    async def _see_early_end(self, record: InstanceRecord) -> None:
        """Ended between its start and now; the runtime's own wait for init's first moments has passed. An application
        may have had no more to do."""
        ended = await self._runtime.how_ended(record.storage_name)
        if not is_application(record.config) or ended.status != 0:
            async with self._locks.hold(record.root_key, "cleanup"):
                await self._journal.run(cleanup_plan(record))
            await self._note_power(record.project, record.name, "STOPPED")
            status = "" if ended.status is None else f" with status {ended.status}"
            said = (await self._runtime.console_log(record.storage_name))[-_TAIL_BYTES:].decode(errors="replace")
            console = f"; console: {said.strip()}" if said.strip() else "; see its console log"
            raise FlexdError(f'Failed starting instance "{record.name}": its init ended at once{status}{console}')
        self._events.lifecycle("instance-started", record.url, record.project)
        async with self._locks.hold(devices_key(record), "cleanup"):
            await self._clean_up(record, ended, again=False, asked=False)

    async def _prepare_start(self, project: str, name: str, *, stateful: bool = False) -> InstanceRecord:
        """Choose the id map, fill in volatile keys, check the host; one write before anything happens."""
        found = self._registry.find(project, name)
        record = found.value
        expanded = self._registry.expand(record)
        config = {key: value for key, value in record.config.items() if key not in _OF_ONE_RUN}
        config |= new_volatile(self._devices, expanded, config)
        config |= await self._allocator.choose(expanded.config, record.storage_name)
        config |= {
            "volatile.idmap.current": config["volatile.idmap.next"],
            "volatile.last_state.idmap": config["volatile.idmap.next"],
            "volatile.last_state.power": "RUNNING",
            STARTED: "true" if stateful or await self._fit(expanded.config) else "false",
        }
        config |= await self._readings(record, config, expanded)
        attached = attached_devices(config, expanded.devices)
        changed = msgspec.structs.replace(record, config=config, attached=attached, last_used_at=now())
        await self._registry.instances.update((project, name), changed, found.revision)
        await self._ports.announce(self._registry.expand(changed))
        return changed

    async def _readings(self, record: InstanceRecord, config: Config, expanded: Expanded) -> Config:
        """What devices must remember of the host as it is before they are set up; raises what they lack of it."""
        found: Config = {}
        faults: list[Fault] = []
        now_known = msgspec.structs.replace(record, config=config)
        for device, entry in expanded.devices.items():
            kind = self._devices.kind(entry)
            if kind is None:
                continue
            context = self._actions.context(now_known, expanded, device)
            faults += await kind.host_faults(context)
            if not faults:
                values = await kind.volatile_at_start(context)
                found |= {f"volatile.{device}.{key}": value for key, value in values.items()}
        if faults:
            raise BadRequest(f'Failed starting instance "{record.name}": {InvalidInput(faults)}')
        return found

    # --- stop ---

    async def leave(self, record: InstanceRecord, images: Path) -> Dump:
        """Save it for another server; it stands still until it is known whether it goes. The lock is held."""
        return await self.saving.dump(record, self._live[record.storage_name].container, images)

    async def gone(self, record: InstanceRecord, dump: Dump) -> None:
        """It runs elsewhere: end it, without a word to its peers."""
        live = self._live[record.storage_name]
        live.asked = "stop"
        await self._actions.sever(record)
        await dump.finish()
        await live.ended.wait()

    async def _save_and_stop(self, record: InstanceRecord) -> None:
        """With its state, which is where a stateful start goes on; it runs on if that cannot be saved."""
        live = self._live[record.storage_name]
        if live.frozen:
            raise BadRequest(f'Failed to stop instance "{record.name}": it is frozen; unfreeze it first')
        live.asked = "stop"
        try:
            await self.saving.stop(record, live.container)
        except BaseException:
            live.asked = ""
            raise
        await live.ended.wait()
        self._events.lifecycle("instance-stopped", record.url, record.project)

    async def _stop(self, record: InstanceRecord, put: InstanceStatePut, *, restart: bool = False) -> None:
        live = self._live[record.storage_name]
        live.asked = "restart" if restart else "stop"
        if live.frozen and put.force:
            await self._runtime.unfreeze(live.container)  # a frozen task takes SIGKILL only once thawed (cgroup v1)
        elif live.frozen:
            live.asked = ""
            raise BadRequest(f'Failed to stop instance "{record.name}": it is frozen; unfreeze it, or use force')
        if put.force:
            await self._actions.kill(record, live.container)
        else:
            await self._runtime.shutdown(live.container)
        timeout_s = None if put.timeout <= 0 or put.force else float(put.timeout)
        try:
            await asyncio.wait_for(live.ended.wait(), timeout_s)
        except TimeoutError:
            live.asked = ""
            raise FlexdError(
                f'Failed to stop instance "{record.name}": its init did not end within {put.timeout} seconds; '
                "stop it with force"
            ) from None
        if not restart:
            self._events.lifecycle("instance-stopped", record.url, record.project)

    async def _set_frozen(self, record: InstanceRecord, frozen: bool) -> None:
        live = self._live[record.storage_name]
        if frozen:
            await self._runtime.freeze(live.container)
        else:
            await self._runtime.unfreeze(live.container)
        live.frozen = frozen
        self._events.lifecycle("instance-paused" if frozen else "instance-resumed", record.url, record.project)

    @contextlib.asynccontextmanager
    async def quiet(self, record: InstanceRecord) -> AsyncIterator[None]:
        """Nothing in the container moves meanwhile (frozen), so that its files are of one moment. The lock is held."""
        live = self._live.get(record.storage_name)
        if live is None or live.frozen:
            yield
            return
        await self._runtime.freeze(live.container)
        try:
            yield
        finally:
            await self._runtime.unfreeze(live.container)

    @contextlib.asynccontextmanager
    async def saved(self, record: InstanceRecord, snapshot: str) -> AsyncIterator[None]:
        """As `quiet`, with its state saved for a snapshot. The lock is held; it runs, and is not frozen."""
        live = self._live.get(record.storage_name)
        if live is None or live.frozen:
            raise BadRequest(f'Failed saving the state of instance "{record.name}": it does not run')
        async with self.saving.held(record, live.container, snapshot):
            yield

    @contextlib.asynccontextmanager
    async def stopped(self, record: InstanceRecord, *, stateful: bool = False) -> AsyncIterator[None]:
        """The container does not run meanwhile; one that ran is stopped by force and runs again after, with `stateful`
        from the state that it has by then. The lock is held; an ephemeral one survives."""
        was_running = self.running(record) is not None
        if was_running:
            await self._stop(record, InstanceStatePut(action="stop", force=True), restart=True)
        try:
            yield
        finally:
            restored = self._registry.instances.get(record.project, record.name)
            stateful = stateful and restored is not None and restored.value.stateful
            if was_running or stateful:
                await self._start(record.project, record.name, stateful=stateful)

    # --- the end of a container ---

    def _watch(self, record: InstanceRecord, container: RunningContainer, frozen: bool = False) -> None:
        live = _Live(container, frozen)
        self._live[record.storage_name] = live
        live.task = asyncio.create_task(self._see_end(live, record), name=f"watch {record.storage_name}")

    async def _see_end(self, live: _Live, record: InstanceRecord) -> None:
        try:
            ended = await self._runtime.wait_ended(live.container)
            await self._after_end(live, record, ended)
        except Exception:  # border of a background task: the daemon lives on, the instance shows as stopped
            log.exception('Failed cleaning up after instance "%s"', record.name)
            self._live.pop(record.storage_name, None)
        finally:
            live.ended.set()

    async def _after_end(self, live: _Live, record: InstanceRecord, ended: Ended) -> None:
        again = live.asked == "restart" or (not live.asked and (ended.target == "reboot" or self._revives(record)))
        # Not in the middle of an edit of its devices, which would go on with what is taken down here.
        async with self._locks.hold(devices_key(record), "cleanup"):
            record = await self._clean_up(record, ended, again=again, asked=bool(live.asked))
        await self.rebalance()
        if again and not live.asked:
            await self._in_background(record, "restart")

    def _revives(self, record: InstanceRecord) -> bool:
        """`boot.autorestart`: a program that ends again and again is left alone after some times."""
        if self._host_goes_down or not is_true(self._setting(record, "boot.autorestart")):
            return False
        now_s = asyncio.get_running_loop().time()
        recent = [each for each in self._revivals.get(record.storage_name, ()) if now_s - each < _REVIVALS_S]
        if len(recent) >= _REVIVALS:
            log.warning('Instance "%s" ended %d times in a minute: it stays stopped', record.name, _REVIVALS + 1)
            return False
        self._revivals[record.storage_name] = [*recent, now_s]
        return True

    async def _clean_up(self, record: InstanceRecord, ended: Ended, *, again: bool, asked: bool) -> InstanceRecord:
        """The instance shows as running until all is done, so that no start comes in between. `asked`: by a request
        here, so not by the container itself."""
        record = self._registry.instance(record.project, record.name)
        async with self._locks.hold(record.root_key, "cleanup"):
            await self._journal.run(cleanup_plan(record))
        if not again and not self._host_goes_down:
            await self._note_power(record.project, record.name, "STOPPED")
        status = ended.status if is_application(record.config) else None
        if status is not None:
            await self._note_status(record, status)
        if not asked:
            action = "instance-restarted" if again else "instance-shutdown"
            about = {} if status is None else {"exit_status": status}
            self._events.lifecycle(action, record.url, record.project, about)
        if record.ephemeral and not again:
            await self._journal.run(delete_plan(record))
            self._events.lifecycle("instance-deleted", record.url, record.project)
        self._live.pop(record.storage_name, None)
        return record

    async def _note_status(self, record: InstanceRecord, status: int) -> None:
        found = self._registry.find(record.project, record.name)
        config = found.value.config | {"volatile.last_state.exit_status": str(status)}
        changed = msgspec.structs.replace(found.value, config=config)
        await self._registry.instances.update(found.path, changed, found.revision)

    async def _in_background(self, record: InstanceRecord, why: str) -> None:
        """A start that nobody waits for: its failure is logged and leaves the instance stopped."""
        try:
            async with self._locks.hold(f"instance/{record.project}/{record.name}", why):
                if self.status(record) == "Stopped":
                    await self._start(record.project, record.name)
        except FlexdError as error:
            log.error('Failed to %s instance "%s": %s', why, record.name, error)

    async def _note_power(self, project: str, name: str, power: str) -> None:
        """Keep in the document whether it is to come back after a reboot of the host."""
        found = self._registry.instances.get(project, name)
        if found is None or found.value.config.get("volatile.last_state.power") == power:
            return
        config = found.value.config | {"volatile.last_state.power": power}
        changed = msgspec.structs.replace(found.value, config=config)
        await self._registry.instances.update((project, name), changed, found.revision)

    # --- start and end of the daemon ---

    async def adopt(self) -> list[InstanceRecord]:
        """Find what runs and watch it; returns those that were running when last seen and no longer are."""
        gone = []
        for record in self._registry.all_instances():
            container = await self._runtime.find(record.storage_name)
            if container is not None:
                if record.stateful:  # saved, but the daemon died before it was ended
                    await self.saving.forget(record)
                self._watch(record, container, await self._runtime.frozen(container))
                await self._actions.adopt(record, container)
            elif record.config.get("volatile.last_state.power") == "RUNNING":
                gone.append(record)
        return gone

    async def resume(self, gone: list[InstanceRecord], *, host_rebooted: bool) -> None:
        """Clean up after containers that ended unseen, then start what is to run (boot.autostart, order, delay)."""
        starting = [record for record in self._registry.all_instances() if self._autostarts(record, host_rebooted)]
        for record in gone:
            async with self._locks.hold(devices_key(record), "cleanup"):
                await self._journal.run(cleanup_plan(record))
                await self._note_power(record.project, record.name, "STOPPED")
                if record.ephemeral:
                    await self._journal.run(delete_plan(record))
        for record in sorted(starting, key=self._start_order):
            if self.status(record) != "Stopped" or self._registry.instances.get(record.project, record.name) is None:
                continue
            await self._in_background(record, "start")
            await asyncio.sleep(float(self._setting(record, "boot.autostart.delay") or 0))

    def _setting(self, record: InstanceRecord, key: str) -> str:
        return self._registry.expand(record).config.get(key, "")

    def _autostarts(self, record: InstanceRecord, host_rebooted: bool) -> bool:
        """After a reboot of the host: what is set to, or ran before and is not set against. A mere restart of the
        daemon starts nothing: what was stopped meanwhile was stopped on purpose."""
        if not host_rebooted or record.ephemeral:
            return False
        autostart = self._setting(record, "boot.autostart")
        if autostart:
            return is_true(autostart)
        return record.config.get("volatile.last_state.power") == "RUNNING"

    def _start_order(self, record: InstanceRecord) -> tuple[int, str]:
        return -int(self._setting(record, "boot.autostart.priority") or 0), record.name

    async def shut_down_all(self) -> None:
        """The host goes down: stop everything cleanly, higher `boot.stop.priority` first; it comes back at boot."""
        self._host_goes_down = True
        records = [record for record in self._registry.all_instances() if self.status(record) != "Stopped"]
        for _, group in itertools.groupby(sorted(records, key=self._stop_order), key=self._stop_order):
            await asyncio.gather(*(self._shut_down(record) for record in group))

    def _stop_order(self, record: InstanceRecord) -> int:
        return -int(self._setting(record, "boot.stop.priority") or 0)

    async def _shut_down(self, record: InstanceRecord) -> None:
        timeout_s = int(self._setting(record, "boot.host_shutdown_timeout") or _HOST_SHUTDOWN_TIMEOUT_S)
        try:
            await self._act(record.project, record.name, "stop", InstanceStatePut(action="stop", timeout=timeout_s))
        except FlexdError as error:
            log.warning('Instance "%s" is stopped by force: %s', record.name, error)
            await self._act(record.project, record.name, "stop", InstanceStatePut(action="stop", force=True))

    async def close(self) -> None:
        """Stop watching; containers run on."""
        tasks = [live.task for live in self._live.values() if live.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def devices_key(record: InstanceRecord) -> str:
    """The lock of who changes the set of devices that a container runs with: edits, and its end. Taken after the
    instance's own, which whoever stops an instance holds while it ends."""
    return f"devices/{record.project}/{record.name}"
