# SPDX-License-Identifier: Apache-2.0
"""Wire types of LXD's `/1.0` API: resources."""

from msgspec import Struct, field


class ResourcesSystemChassis(Struct):
    serial: str = ""
    type: str = ""
    vendor: str = ""
    version: str = ""


class ResourcesSystemFirmware(Struct):
    date: str = ""
    vendor: str = ""
    version: str = ""


class ResourcesSystemMotherboard(Struct):
    product: str = ""
    serial: str = ""
    vendor: str = ""
    version: str = ""


class ResourcesSystem(Struct):
    chassis: ResourcesSystemChassis | None = None
    family: str = ""
    firmware: ResourcesSystemFirmware = field(default_factory=ResourcesSystemFirmware)
    motherboard: ResourcesSystemMotherboard = field(default_factory=ResourcesSystemMotherboard)
    product: str = ""
    serial: str = ""
    sku: str = ""
    type: str = ""
    uuid: str = ""
    vendor: str = ""
    version: str = ""


class ResourcesCPUThread(Struct):
    id: int = 0
    isolated: bool = False
    numa_node: int = 0
    online: bool = False
    thread: int = 0


class ResourcesCPUCore(Struct):
    core: int = 0
    die: int = 0
    frequency: int = 0
    threads: list[ResourcesCPUThread] = field(default_factory=list)


class ResourcesCPUCache(Struct):
    level: int = 0
    size: int = 0
    type: str = ""


class ResourcesCPUSocket(Struct):
    cache: list[ResourcesCPUCache] = field(default_factory=list)
    cores: list[ResourcesCPUCore] = field(default_factory=list)
    frequency: int = 0
    frequency_minimum: int = 0
    frequency_turbo: int = 0
    name: str = ""
    socket: int = 0
    vendor: str = ""


class ResourcesCPU(Struct):
    architecture: str = ""
    sockets: list[ResourcesCPUSocket] = field(default_factory=list)
    total: int = 0


class ResourcesGPUCardNvidia(Struct):
    architecture: str = ""
    brand: str = ""
    card_device: str = ""
    card_name: str = ""
    cuda_version: str = ""
    model: str = ""
    nvrm_version: str = ""
    uuid: str = ""


class ResourcesGPUCardDRM(Struct):
    card_device: str = ""
    card_name: str = ""
    control_device: str = ""
    control_name: str = ""
    id: int = 0
    render_device: str = ""
    render_name: str = ""


class ResourcesGPUCardSRIOV(Struct):
    current_vfs: int = 0
    maximum_vfs: int = 0
    vfs: list["ResourcesGPUCard"] = field(default_factory=list)


class ResourcesGPUCardMdev(Struct):
    api: str = ""
    available: int = 0
    description: str = ""
    devices: list[str] = field(default_factory=list)
    name: str = ""


class ResourcesGPUCard(Struct):
    driver: str = ""
    driver_version: str = ""
    drm: ResourcesGPUCardDRM | None = None
    mdev: dict[str, ResourcesGPUCardMdev] = field(default_factory=dict)
    numa_node: int = 0
    nvidia: ResourcesGPUCardNvidia | None = None
    pci_address: str = ""
    product: str = ""
    product_id: str = ""
    sriov: ResourcesGPUCardSRIOV | None = None
    usb_address: str = ""
    vendor: str = ""
    vendor_id: str = ""


class ResourcesGPU(Struct):
    cards: list[ResourcesGPUCard] = field(default_factory=list)
    total: int = 0


class ResourcesPCIVPD(Struct):
    entries: dict[str, str] = field(default_factory=dict)
    product_name: str = ""


class ResourcesPCIDevice(Struct):
    driver: str = ""
    driver_version: str = ""
    iommu_group: int = 0
    numa_node: int = 0
    pci_address: str = ""
    product: str = ""
    product_id: str = ""
    vendor: str = ""
    vendor_id: str = ""
    vpd: ResourcesPCIVPD = field(default_factory=ResourcesPCIVPD)


class ResourcesPCI(Struct):
    devices: list[ResourcesPCIDevice] = field(default_factory=list)
    total: int = 0


class ResourcesUSBDeviceInterface(Struct):
    class_: str = field(name="class", default="")
    class_id: int = 0
    driver: str = ""
    driver_version: str = ""
    number: int = 0
    subclass: str = ""
    subclass_id: int = 0


class ResourcesUSBDevice(Struct):
    bus_address: int = 0
    device_address: int = 0
    interfaces: list[ResourcesUSBDeviceInterface] = field(default_factory=list)
    product: str = ""
    product_id: str = ""
    speed: float = 0.0
    vendor: str = ""
    vendor_id: str = ""


class ResourcesUSB(Struct):
    devices: list[ResourcesUSBDevice] = field(default_factory=list)
    total: int = 0


class ResourcesMemoryNode(Struct):
    hugepages_total: int = 0
    hugepages_used: int = 0
    numa_node: int = 0
    total: int = 0
    used: int = 0


class ResourcesMemory(Struct):
    hugepages_size: int = 0
    hugepages_total: int = 0
    hugepages_used: int = 0
    nodes: list[ResourcesMemoryNode] = field(default_factory=list)
    total: int = 0
    used: int = 0


class ResourcesNetworkCardSRIOV(Struct):
    current_vfs: int = 0
    maximum_vfs: int = 0
    vfs: list["ResourcesNetworkCard"] = field(default_factory=list)


class ResourcesNetworkCardPortInfiniband(Struct):
    issm_device: str = ""
    issm_name: str = ""
    mad_device: str = ""
    mad_name: str = ""
    verb_device: str = ""
    verb_name: str = ""


class ResourcesNetworkCardPort(Struct):
    address: str = ""
    auto_negotiation: bool = False
    id: str = ""
    infiniband: ResourcesNetworkCardPortInfiniband | None = None
    link_detected: bool = False
    link_duplex: str = ""
    link_speed: int = 0
    port: int = 0
    port_type: str = ""
    protocol: str = ""
    supported_modes: list[str] = field(default_factory=list)
    supported_ports: list[str] = field(default_factory=list)
    transceiver_type: str = ""


class ResourcesNetworkCard(Struct):
    driver: str = ""
    driver_version: str = ""
    firmware_version: str = ""
    numa_node: int = 0
    pci_address: str = ""
    ports: list[ResourcesNetworkCardPort] = field(default_factory=list)
    product: str = ""
    product_id: str = ""
    sriov: ResourcesNetworkCardSRIOV | None = None
    usb_address: str = ""
    vendor: str = ""
    vendor_id: str = ""


class ResourcesNetwork(Struct):
    cards: list[ResourcesNetworkCard] = field(default_factory=list)
    total: int = 0


class ResourcesStorageDiskPartition(Struct):
    device: str = ""
    id: str = ""
    partition: int = 0
    read_only: bool = False
    size: int = 0


class ResourcesStorageDisk(Struct):
    block_size: int = 0
    device: str = ""
    device_id: str = ""
    device_path: str = ""
    firmware_version: str = ""
    id: str = ""
    model: str = ""
    numa_node: int = 0
    partitions: list[ResourcesStorageDiskPartition] = field(default_factory=list)
    pci_address: str = ""
    read_only: bool = False
    removable: bool = False
    rpm: int = 0
    serial: str = ""
    size: int = 0
    type: str = ""
    usb_address: str = ""
    wwn: str = ""


class ResourcesStorage(Struct):
    disks: list[ResourcesStorageDisk] = field(default_factory=list)
    total: int = 0


class Resources(Struct):
    cpu: ResourcesCPU = field(default_factory=ResourcesCPU)
    gpu: ResourcesGPU = field(default_factory=ResourcesGPU)
    memory: ResourcesMemory = field(default_factory=ResourcesMemory)
    network: ResourcesNetwork = field(default_factory=ResourcesNetwork)
    pci: ResourcesPCI = field(default_factory=ResourcesPCI)
    storage: ResourcesStorage = field(default_factory=ResourcesStorage)
    system: ResourcesSystem = field(default_factory=ResourcesSystem)
    usb: ResourcesUSB = field(default_factory=ResourcesUSB)


class ResourcesStoragePoolSpace(Struct):
    total: int = 0
    used: int = 0


class ResourcesStoragePoolInodes(Struct):
    total: int = 0
    used: int = 0


class ResourcesStoragePool(Struct):
    inodes: ResourcesStoragePoolInodes = field(default_factory=ResourcesStoragePoolInodes)
    space: ResourcesStoragePoolSpace = field(default_factory=ResourcesStoragePoolSpace)
