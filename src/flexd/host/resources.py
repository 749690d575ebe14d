# SPDX-License-Identifier: Apache-2.0
"""`GET /1.0/resources`: the machine as /sys and /proc show it. All blocking; what is not there is left out.

Every function takes the root directory, so that tests can show it another machine.
"""

import os
import platform
import re
from pathlib import Path
from typing import Any

import msgspec

from flexd.api import resources as api
from flexd.host.pci_names import PciNames

_SECTOR_BYTES = 512  # /sys/block/*/size counts so, whatever the disk's own blocks are
_PCI_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]")
_USB_ADDRESS = re.compile(r"[0-9]+-[0-9.]+")
_PCI_DISPLAY_CLASS = "0x03"
# net/if_arp.h: ARPHRD_ETHER, ARPHRD_INFINIBAND
_PORT_PROTOCOLS = {"1": "ethernet", "32": "infiniband"}
# SMBIOS reference specification (DSP0134), 7.4.1: chassis types that a container host is likely to be
_CHASSIS_TYPES = {
    "1": "Other", "2": "Unknown", "3": "Desktop", "4": "Low Profile Desktop", "6": "Mini Tower", "7": "Tower",
    "8": "Portable", "9": "Laptop", "10": "Notebook", "13": "All in One", "17": "Main Server Chassis",
    "23": "Rack Mount Chassis", "25": "Multi-system chassis", "28": "Blade", "29": "Blade Enclosure",
    "30": "Tablet", "31": "Convertible", "32": "Detachable", "35": "Mini PC",
}  # fmt: skip
# linux/usb/ch9.h
_USB_CLASSES = {
    1: "Audio", 2: "Communications", 3: "Human Interface Device", 6: "Imaging", 7: "Printer", 8: "Mass Storage",
    9: "Hub", 10: "CDC Data", 11: "Smart Card", 14: "Video", 224: "Wireless", 239: "Miscellaneous Device",
    255: "Vendor Specific Class",
}  # fmt: skip


def read(root: Path = Path("/")) -> dict[str, Any]:
    names = PciNames(root)
    found = api.Resources(
        cpu=cpu(root),
        gpu=gpu(root, names),
        memory=memory(root),
        network=network(root, names),
        pci=pci(root, names),
        storage=storage(root),
        system=system(root),
        usb=usb(root),
    )
    builtins: dict[str, Any] = msgspec.to_builtins(found)
    return builtins


# --- reading single values ---------------------------------------------------------------------------------------


def text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip(" \n\t\0")
    except OSError:
        return ""


def number(path: Path, base: int = 10) -> int:
    """0 where the file is absent or holds something else; -1 ("no NUMA node") is 0 too."""
    try:
        return max(0, int(text(path), base))
    except ValueError:
        return 0


def entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def id_list(listing: str) -> list[int]:
    """`0-3,8` as cpulist files write it (cpuset(7), "List format")."""
    ids: list[int] = []
    for part in filter(None, listing.split(",")):
        first, _, last = part.partition("-")
        ids.extend(range(int(first), int(last or first) + 1))
    return ids


def fields(listing: str) -> dict[str, str]:
    """`name : value` lines (/proc/cpuinfo, /proc/meminfo)."""
    pairs = (line.partition(":") for line in listing.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _link_name(path: Path) -> str:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return ""


def _driver(device: Path, release: str) -> tuple[str, str]:
    """Name and version of a device's driver: of its module, or the kernel's where it is built in, as LXD tells it."""
    name = _link_name(device / "driver")
    if not name:
        return "", ""
    return name, text(device / "driver/module/version") or release


def _above(device: Path, pattern: re.Pattern[str]) -> str:
    """The nearest name above in the device tree that is an address of a bus."""
    resolved = Path(os.path.realpath(device))
    return next((part for part in reversed(resolved.parts) if pattern.fullmatch(part)), "")


def _release(root: Path) -> str:
    return text(root / "proc/sys/kernel/osrelease")


# --- processors --------------------------------------------------------------------------------------------------


def cpu(root: Path) -> api.ResourcesCPU:
    base = root / "sys/devices/system/cpu"
    cpuinfo = _cpuinfo(root)
    isolated = set(id_list(text(base / "isolated")))
    sockets: dict[int, api.ResourcesCPUSocket] = {}
    total = 0
    for directory in sorted(base.glob("cpu[0-9]*"), key=lambda path: int(path.name[3:])):
        thread = _thread(directory, isolated)
        total += 1
        package = number(directory / "topology/physical_package_id")
        if package not in sockets:
            sockets[package] = _socket(directory, package, cpuinfo.get(thread.id, {}))
        frequency = _frequency(directory, cpuinfo.get(thread.id, {}))
        _core(sockets[package], directory, frequency).threads.append(thread)
    for socket in sockets.values():
        _number_threads(socket)
    architecture = platform.machine()
    return api.ResourcesCPU(architecture=architecture, sockets=[sockets[key] for key in sorted(sockets)], total=total)


def _cpuinfo(root: Path) -> dict[int, dict[str, str]]:
    blocks = (fields(block) for block in text(root / "proc/cpuinfo").split("\n\n"))
    return {int(block["processor"]): block for block in blocks if block.get("processor", "").isdigit()}


def _thread(directory: Path, isolated: set[int]) -> api.ResourcesCPUThread:
    identity = int(directory.name[3:])
    nodes = [entry.name[4:] for entry in entries(directory) if re.fullmatch(r"node\d+", entry.name)]
    return api.ResourcesCPUThread(
        id=identity,
        isolated=identity in isolated,
        numa_node=int(nodes[0]) if nodes else 0,
        online=text(directory / "online") != "0",  # the first has no such file: it cannot be switched off
    )


def _socket(directory: Path, package: int, info: dict[str, str]) -> api.ResourcesCPUSocket:
    caches = [
        api.ResourcesCPUCache(number(index / "level"), _size(text(index / "size")), text(index / "type"))
        for index in sorted((directory / "cache").glob("index*"))
    ]
    return api.ResourcesCPUSocket(
        cache=caches,
        frequency=_frequency(directory, info),
        frequency_minimum=number(directory / "cpufreq/cpuinfo_min_freq") // 1000,
        frequency_turbo=number(directory / "cpufreq/cpuinfo_max_freq") // 1000,
        name=info.get("model name", "") or info.get("cpu", ""),
        socket=package,
        vendor=info.get("vendor_id", ""),
    )


def _core(socket: api.ResourcesCPUSocket, directory: Path, frequency: int) -> api.ResourcesCPUCore:
    core, die = number(directory / "topology/core_id"), number(directory / "topology/die_id")
    for known in socket.cores:
        if (known.core, known.die) == (core, die):
            return known
    socket.cores.append(api.ResourcesCPUCore(core=core, die=die, frequency=frequency))
    return socket.cores[-1]


def _number_threads(socket: api.ResourcesCPUSocket) -> None:
    for core in socket.cores:
        for index, thread in enumerate(core.threads):
            thread.thread = index


def _frequency(directory: Path, info: dict[str, str]) -> int:
    """MHz."""
    khz = number(directory / "cpufreq/scaling_cur_freq")
    mhz = info.get("cpu MHz", "0").partition(".")[0]
    return khz // 1000 or (int(mhz) if mhz.isdigit() else 0)


def _size(listing: str) -> int:
    """`1024K` of a cache's size."""
    scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(listing[-1:], 1)
    digits = listing.rstrip("KMG")
    return int(digits) * scale if digits.isdigit() else 0


# --- memory ------------------------------------------------------------------------------------------------------


def memory(root: Path) -> api.ResourcesMemory:
    info = {name: _kib(value) for name, value in fields(text(root / "proc/meminfo")).items()}
    page = info.get("Hugepagesize", 0)
    counts = fields(text(root / "proc/meminfo"))
    huge_total, huge_free = (int(counts.get(name, "0")) * page for name in ("HugePages_Total", "HugePages_Free"))
    total = info.get("MemTotal", 0)
    return api.ResourcesMemory(
        hugepages_size=page,
        hugepages_total=huge_total,
        hugepages_used=huge_total - huge_free,
        nodes=[_memory_node(node, page) for node in sorted((root / "sys/devices/system/node").glob("node[0-9]*"))],
        total=total,
        used=total - info.get("MemAvailable", info.get("MemFree", 0)),
    )


def _memory_node(directory: Path, page: int) -> api.ResourcesMemoryNode:
    # `Node 0 MemTotal:  8034364 kB`; there is no MemAvailable per node, so what can be reclaimed is taken off.
    lines = (line.split(maxsplit=2)[2] for line in text(directory / "meminfo").splitlines())
    raw = fields("\n".join(lines))
    info = {name: _kib(value) for name, value in raw.items()}
    huge = int(raw.get("HugePages_Total", "0")) * page
    reclaimable = info.get("MemFree", 0) + info.get("FilePages", 0) + info.get("SReclaimable", 0)
    return api.ResourcesMemoryNode(
        hugepages_total=huge,
        hugepages_used=huge - int(raw.get("HugePages_Free", "0")) * page,
        numa_node=int(directory.name[4:]),
        total=info.get("MemTotal", 0),
        used=max(0, info.get("MemTotal", 0) - reclaimable),
    )


def _kib(value: str) -> int:
    digits, _, unit = value.partition(" ")
    return int(digits) * (1024 if unit == "kB" else 1) if digits.isdigit() else 0


# --- disks -------------------------------------------------------------------------------------------------------


def storage(root: Path) -> api.ResourcesStorage:
    # Loop devices, RAM disks and what is made of other disks (md, dm) have no device of their own below.
    disks = [_disk(root, block) for block in entries(root / "sys/class/block") if (block / "device").exists()]
    return api.ResourcesStorage(disks=disks, total=sum(1 + len(disk.partitions) for disk in disks))


def _disk(root: Path, block: Path) -> api.ResourcesStorageDisk:
    device = block / "device"
    rotational = text(block / "queue/rotational") == "1"
    real = Path(os.path.realpath(block))
    return api.ResourcesStorageDisk(
        block_size=number(block / "queue/physical_block_size"),
        device=text(block / "dev"),
        device_id=_disk_name(root, block.name, "by-id"),
        device_path=_disk_name(root, block.name, "by-path"),
        firmware_version=text(device / "firmware_rev") or text(device / "rev"),
        id=block.name,
        model=text(device / "model"),
        numa_node=number(device / "numa_node"),
        partitions=[_partition(part) for part in entries(real) if (part / "partition").exists()],
        pci_address=_above(device, _PCI_ADDRESS),
        read_only=text(block / "ro") == "1",
        removable=text(block / "removable") == "1",
        rpm=1 if rotational else 0,  # as LXD: the speed itself needs an ATA command
        serial=text(device / "serial") or text(block / "serial"),
        size=number(block / "size") * _SECTOR_BYTES,
        type=_disk_type(block),
        usb_address=_above(device, _USB_ADDRESS),
        wwn=text(block / "wwid") or text(device / "wwid"),
    )


def _disk_type(block: Path) -> str:
    if block.name.startswith("nvme"):
        return "nvme"
    subsystem = _link_name(block / "device/subsystem")
    if subsystem == "scsi" and _above(block / "device", _USB_ADDRESS):
        return "usb"
    return subsystem


def _disk_name(root: Path, disk: str, kind: str) -> str:
    for link in entries(root / "dev/disk" / kind):
        if _link_name(link) == disk:
            return link.name
    return ""


def _partition(part: Path) -> api.ResourcesStorageDiskPartition:
    return api.ResourcesStorageDiskPartition(
        device=text(part / "dev"),
        id=part.name,
        partition=number(part / "partition"),
        read_only=text(part / "ro") == "1",
        size=number(part / "size") * _SECTOR_BYTES,
    )


# --- network cards -----------------------------------------------------------------------------------------------


def network(root: Path, names: PciNames) -> api.ResourcesNetwork:
    """Cards are devices that network interfaces belong to; bridges and veths are none."""
    cards: dict[str, api.ResourcesNetworkCard] = {}
    for interface in entries(root / "sys/class/net"):
        device = interface / "device"
        if not device.exists():
            continue
        key = os.path.realpath(device)
        if key not in cards:
            cards[key] = _network_card(root, device, names)
        cards[key].ports.append(_port(interface))
    return api.ResourcesNetwork(cards=list(cards.values()), total=len(cards))


def _network_card(root: Path, device: Path, names: PciNames) -> api.ResourcesNetworkCard:
    address = _above(device, _PCI_ADDRESS)
    pci_device = root / "sys/bus/pci/devices" / address if address else device
    driver, version = _driver(device, _release(root))
    vendor_id, product_id, vendor, product = names.of(pci_device)
    limit = number(pci_device / "sriov_totalvfs")
    sriov = api.ResourcesNetworkCardSRIOV(number(pci_device / "sriov_numvfs"), limit) if limit else None
    return api.ResourcesNetworkCard(
        driver=driver,
        driver_version=version,
        numa_node=number(pci_device / "numa_node"),
        pci_address=address,
        product=product,
        product_id=product_id,
        sriov=sriov,
        usb_address=_above(device, _USB_ADDRESS),
        vendor=vendor,
        vendor_id=vendor_id,
    )


def _port(interface: Path) -> api.ResourcesNetworkCardPort:
    carrier = text(interface / "carrier") == "1"
    return api.ResourcesNetworkCardPort(
        address=text(interface / "address"),
        id=interface.name,
        link_detected=carrier,
        link_duplex=text(interface / "duplex") if carrier else "",
        link_speed=number(interface / "speed") if carrier else 0,  # the kernel says -1 where it does not know
        port=number(interface / "dev_port"),
        protocol=_PORT_PROTOCOLS.get(text(interface / "type"), ""),
    )


# --- PCI, GPU, USB -----------------------------------------------------------------------------------------------


def pci(root: Path, names: PciNames) -> api.ResourcesPCI:
    devices = []
    for device in entries(root / "sys/bus/pci/devices"):
        vendor_id, product_id, vendor, product = names.of(device)
        driver, version = _driver(device, _release(root))
        group = _link_name(device / "iommu_group")
        devices.append(
            api.ResourcesPCIDevice(
                driver=driver,
                driver_version=version,
                iommu_group=int(group) if group.isdigit() else 0,
                numa_node=number(device / "numa_node"),
                pci_address=device.name,
                product=product,
                product_id=product_id,
                vendor=vendor,
                vendor_id=vendor_id,
            )
        )
    return api.ResourcesPCI(devices=devices, total=len(devices))


def gpu(root: Path, names: PciNames) -> api.ResourcesGPU:
    """Display controllers on the PCI bus, and DRM cards elsewhere (the ones of boards)."""
    devices = {
        os.path.realpath(device): None
        for device in entries(root / "sys/bus/pci/devices")
        if text(device / "class").startswith(_PCI_DISPLAY_CLASS)
    }
    drm: dict[str, api.ResourcesGPUCardDRM] = {}
    for node in entries(root / "sys/class/drm"):
        if re.fullmatch(r"(card|renderD)\d+", node.name) and (node / "device").exists():
            device = os.path.realpath(node / "device")
            devices.setdefault(device, None)
            _add_drm_node(drm.setdefault(device, api.ResourcesGPUCardDRM()), node)
    cards = [_gpu_card(root, Path(device), drm.get(device), names) for device in devices]
    return api.ResourcesGPU(cards=cards, total=len(cards))


def _add_drm_node(drm: api.ResourcesGPUCardDRM, node: Path) -> None:
    if node.name.startswith("card"):
        drm.id, drm.card_name, drm.card_device = int(node.name[4:]), node.name, text(node / "dev")
    else:
        drm.render_name, drm.render_device = node.name, text(node / "dev")


def _gpu_card(root: Path, device: Path, drm: api.ResourcesGPUCardDRM | None, names: PciNames) -> api.ResourcesGPUCard:
    vendor_id, product_id, vendor, product = names.of(device)
    driver, version = _driver(device, _release(root))
    return api.ResourcesGPUCard(
        driver=driver,
        driver_version=version,
        drm=drm,
        numa_node=number(device / "numa_node"),
        pci_address=_above(device, _PCI_ADDRESS),
        product=product,
        product_id=product_id,
        usb_address=_above(device, _USB_ADDRESS),
        vendor=vendor,
        vendor_id=vendor_id,
    )


def usb(root: Path) -> api.ResourcesUSB:
    devices = [
        _usb_device(root, device)
        for device in entries(root / "sys/bus/usb/devices")
        if (device / "devnum").exists() and text(device / "bDeviceClass") != "09"  # hubs are not told
    ]
    return api.ResourcesUSB(devices=devices, total=len(devices))


def _usb_device(root: Path, device: Path) -> api.ResourcesUSBDevice:
    speed = text(device / "speed")
    return api.ResourcesUSBDevice(
        bus_address=number(device / "busnum"),
        device_address=number(device / "devnum"),
        interfaces=[_usb_interface(root, interface) for interface in sorted(device.glob(f"{device.name}:*"))],
        product=text(device / "product"),
        product_id=text(device / "idProduct"),
        speed=float(speed) if re.fullmatch(r"[0-9.]+", speed) else 0.0,
        vendor=text(device / "manufacturer"),
        vendor_id=text(device / "idVendor"),
    )


def _usb_interface(root: Path, interface: Path) -> api.ResourcesUSBDeviceInterface:
    class_id = number(interface / "bInterfaceClass", 16)
    driver, version = _driver(interface, _release(root))
    return api.ResourcesUSBDeviceInterface(
        class_=_USB_CLASSES.get(class_id, ""),
        class_id=class_id,
        driver=driver,
        driver_version=version,
        number=number(interface / "bInterfaceNumber", 16),
        subclass_id=number(interface / "bInterfaceSubClass", 16),
    )


# --- the system --------------------------------------------------------------------------------------------------


def system(root: Path) -> api.ResourcesSystem:
    dmi = root / "sys/class/dmi/id"
    chassis = api.ResourcesSystemChassis(
        serial=text(dmi / "chassis_serial"),
        type=_CHASSIS_TYPES.get(text(dmi / "chassis_type"), ""),
        vendor=text(dmi / "chassis_vendor"),
        version=text(dmi / "chassis_version"),
    )
    return api.ResourcesSystem(
        chassis=chassis,
        family=text(dmi / "product_family"),
        firmware=api.ResourcesSystemFirmware(
            text(dmi / "bios_date"), text(dmi / "bios_vendor"), text(dmi / "bios_version")
        ),
        motherboard=api.ResourcesSystemMotherboard(
            text(dmi / "board_name"),
            text(dmi / "board_serial"),
            text(dmi / "board_vendor"),
            text(dmi / "board_version"),
        ),
        product=text(dmi / "product_name") or text(root / "proc/device-tree/model"),
        serial=text(dmi / "product_serial"),
        sku=text(dmi / "product_sku"),
        type=_system_type(root),
        uuid=text(dmi / "product_uuid") or text(root / "sys/hypervisor/uuid"),
        vendor=text(dmi / "sys_vendor"),
        version=text(dmi / "product_version"),
    )


def _system_type(root: Path) -> str:
    """ "container", "virtual-machine" or "physical", LXD's three."""
    if (root / "run/systemd/container").exists() or (root / "run/host/container-manager").exists():
        return "container"
    flags = next(iter(_cpuinfo(root).values()), {}).get("flags", "").split()
    if "hypervisor" in flags or (root / "sys/hypervisor/type").exists():
        return "virtual-machine"
    return "physical"
