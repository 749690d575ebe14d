# SPDX-License-Identifier: Apache-2.0
"""What the kernel can do with network links, found by trying in a network namespace that is gone at once."""

from flexd.api.errors import FlexdError
from flexd.host.contract import Host

# What ip(8) says for a kind of link that the kernel does not have, and for an option of one.
_REFUSALS = ("Unknown device type", "Operation not supported", "not supported")


class Probes:
    """Answers are kept: a kernel does not learn while it runs (modules are loaded by the try itself)."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._known: dict[tuple[str, ...], str | None] = {}

    async def link_fault(self, option: str, *words: str) -> str | None:
        """None if links of a kind can be made, else why not; `option` is the kernel's name for it."""
        if words not in self._known:
            self._known[words] = await self._try(option, *words)
        return self._known[words]

    async def _try(self, option: str, *words: str) -> str | None:
        argv = ["unshare", "--net", "--", "ip", "link", "add", "link", "lo", "name", "fxprobe", "type", *words]
        try:
            done = await self._host.processes.run(argv, check=False)
        except FlexdError as error:
            return str(error)
        said = done.stderr.decode(errors="replace")
        if done.returncode != 0 and any(refusal in said for refusal in _REFUSALS):
            return f"this host's kernel has no {words[0]} ({option})"
        return None
