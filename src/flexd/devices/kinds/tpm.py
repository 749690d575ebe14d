# SPDX-License-Identifier: Apache-2.0
"""Device kind `tpm`: an emulated TPM, by the program swtpm(8) and the kernel's proxy for it (/dev/vtpmx).

The emulator's state is the instance's, so it lies in its directory as long as the instance is there."""

import asyncio
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import msgspec

from flexd.api.errors import Fault, FlexdError
from flexd.api.keys import Key
from flexd.devices.contract import DeviceContext
from flexd.devices.unix import NodeKind
from flexd.host.contract import Node, ProcessRef

_PROXY = Path("/dev/vtpmx")
# What swtpm writes once the kernel has made the device.
_MADE = re.compile(r"New TPM device: /dev/tpm([0-9]+) \(major/minor = ([0-9]+)/([0-9]+)\)")
# It does so at once; a program that hangs must not hold an instance's start for ever.
_TRIES, _PAUSE_S = 250, 0.02


def _path_fault(value: str) -> str | None:
    return None if value.startswith("/dev/") and ".." not in value else f'invalid path "{value}" (below /dev)'


class Tpm(NodeKind, type="tpm"):
    """The TPM itself and its resource manager."""

    KEYS = (
        Key("path", required=True, check=_path_fault, description="Path inside the instance, such as /dev/tpm0"),
        Key("pathrm", required=True, check=_path_fault, description="The resource manager's, such as /dev/tpmrm0"),
    )

    def is_required(self, config: Mapping[str, str]) -> bool:
        del config
        return True

    async def host_faults(self, context: DeviceContext) -> list[Fault]:
        where = f"devices.{context.device}"
        if await self.host.nodes.read(_PROXY) is None:
            return [Fault(where, "this host's kernel has no TPM proxy (CONFIG_TCG_VTPM_PROXY, /dev/vtpmx)")]
        try:
            await self.host.processes.run(["swtpm", "--version"])
        except FlexdError as error:
            return [Fault(where, f"needs the program swtpm: {error}")]
        return []

    def _place(self, context: DeviceContext, what: str) -> Path:
        return context.directory / f"tpm.{quote(context.device, safe='')}.{what}"

    async def wanted(self, context: DeviceContext) -> dict[str, Node]:
        made = _MADE.search(await asyncio.to_thread(_text, self._place(context, "log")))
        if made is None:
            return {}
        found = {context.config["path"]: Node("c", int(made[2]), int(made[3]))}
        manager = await self.host.nodes.read(Path(f"/dev/tpmrm{made[1]}"))
        return found | ({context.config["pathrm"]: manager} if manager is not None else {})

    async def start(self, context: DeviceContext) -> None:
        await self._end(context)
        log = self._place(context, "log")
        state = self._place(context, "state")
        output = await asyncio.to_thread(_prepare, state, log)
        try:
            argv = ["swtpm", "chardev", "--tpm2", "--tpmstate", f"dir={state}", "--vtpm-proxy"]
            child = await self.host.processes.spawn(argv, stdout=output, stderr=output)
        finally:
            os.close(output)
        process = await self.host.processes.identify(child.pid)
        if process is not None:
            record = self._place(context, "process")
            await asyncio.to_thread(record.write_bytes, msgspec.json.encode(process))
        for _ in range(_TRIES):
            if await self.wanted(context) or child.returncode is not None:
                break
            await asyncio.sleep(_PAUSE_S)
        if not await self.wanted(context):
            said = await asyncio.to_thread(_text, log)
            raise FlexdError(f'Failed starting the TPM "{context.device}": swtpm made no device: {said.strip()}')
        await super().start(context)

    async def stop(self, context: DeviceContext) -> None:
        await super().stop(context)
        await self._end(context)

    async def _end(self, context: DeviceContext) -> None:
        """The kernel's device goes with the emulator."""
        record = self._place(context, "process")
        process = await asyncio.to_thread(_read_record, record)
        if process is not None:
            await self.host.processes.signal(process, signal.SIGTERM)
            await self.host.processes.wait_exit(process)
        for path in (record, self._place(context, "log")):
            await asyncio.to_thread(path.unlink, missing_ok=True)


def _prepare(state: Path, log: Path) -> int:
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _read_record(path: Path) -> ProcessRef | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ProcessRef)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
