# SPDX-License-Identifier: Apache-2.0
"""Names of PCI devices from the system's `pci.ids`, where it has one."""

from pathlib import Path

_LISTS = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids")


class PciNames:
    """Reads the list (1.4 MB) when the first device asks, and keeps only the vendors that this machine has."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._vendors: dict[str, tuple[str, dict[str, str]]] | None = None

    def of(self, device: Path) -> tuple[str, str, str, str]:
        """(vendor id, product id, vendor, product) of a device in /sys; "" for what is not known."""
        vendor, product = (_identity(device / name) for name in ("vendor", "device"))
        if not vendor:
            return "", "", "", ""
        if self._vendors is None:
            self._vendors = self._read()
        name, products = self._vendors.get(vendor, ("", {}))
        return vendor, product, name, products.get(product, "")

    def _read(self) -> dict[str, tuple[str, dict[str, str]]]:
        present = {_identity(path) for path in (self._root / "sys/bus/pci/devices").glob("*/vendor")}
        for name in _LISTS:
            try:
                text = (self._root / name).read_text(errors="replace")
            except OSError:
                continue
            return parse(text, present)
        return {}


def parse(text: str, vendors: set[str]) -> dict[str, tuple[str, dict[str, str]]]:
    """`8086  Intel Corporation`, then `<tab>1237  440FX` lines; deeper: subsystems. Classes (`C 00`) end it."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    current: dict[str, str] | None = None
    for line in text.splitlines():
        if line.startswith("C "):
            break
        if not line or line.startswith(("#", "\t\t")):
            continue
        identity, _, name = line.strip().partition("  ")
        if line.startswith("\t"):
            if current is not None:
                current[identity] = name
        elif identity in vendors:
            current = {}
            found[identity] = (name, current)
        else:
            current = None
    return found


def _identity(path: Path) -> str:
    """`0x8086` of a vendor or device file as `8086`."""
    try:
        text = path.read_text().strip()
    except OSError:
        return ""
    return text.removeprefix("0x") if text.startswith("0x") else ""
