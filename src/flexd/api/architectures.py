# SPDX-License-Identifier: Apache-2.0
"""Names of machines: the kernel's (uname(2) machine), and what distributions call the same."""

ARCHITECTURES = {
    "x86_64": ("amd64",),
    "i686": ("i386", "i586", "386", "x86"),
    "aarch64": ("arm64",),
    "armv7l": ("armhf", "armv7"),
    "armv6l": ("armel", "arm", "armv6"),
    "armv8l": (),
    "ppc64le": ("ppc64el", "powerpc64le"),
    "ppc64": ("powerpc64",),
    "ppc": ("powerpc",),
    "s390x": (),
    "riscv64": (),
    "riscv32": (),
    "mips": ("mipsel",),
    "mips64": ("mips64el",),
    "loongarch64": ("loong64",),
}
_CANONICAL = {alias: name for name, aliases in ARCHITECTURES.items() for alias in (name, *aliases)}


def canonical_architecture(name: str) -> str | None:
    """`amd64` -> `x86_64`; None for what no machine is called."""
    return _CANONICAL.get(name.lower())


def package_architecture(architecture: str) -> str:
    """What Debian calls a kernel architecture: `x86_64` -> `amd64`."""
    aliases = ARCHITECTURES.get(architecture, ())
    return aliases[0] if aliases else architecture
