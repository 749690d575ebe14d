# SPDX-License-Identifier: Apache-2.0
"""Interfaces as networks: types and state."""

import pytest

from flexd.api.network import NetworkStateBridge, NetworkStateVLAN
from flexd.host.contract import Link, LinkAddress, LinkCounters
from flexd.network.hostlinks import link_type, listed, render_state


@pytest.mark.parametrize(
    ("link", "kind"),
    [
        (Link("lo", 1, loopback=True), "loopback"),
        (Link("eth0", 2), "physical"),
        (Link("br0", 3, kind="bridge"), "bridge"),
        (Link("bond0", 4, kind="bond"), "bond"),
        (Link("eth0.5", 5, kind="vlan"), "vlan"),
        (Link("tun0", 6, kind="tun"), "unknown"),
    ],
)
def test_types(link: Link, kind: str) -> None:
    assert link_type(link) == kind


def test_host_ends_of_instances_are_not_listed() -> None:
    assert not listed(Link("veth1", 1))
    assert not listed(Link("c1eth0", 1, kind="veth"))
    assert listed(Link("eth0", 1))


def test_state_of_a_bridge() -> None:
    link = Link(
        "br",
        7,
        kind="bridge",
        hwaddr="00:16:3e:00:00:01",
        mtu=1500,
        up=True,
        addresses=(LinkAddress("inet", "198.18.5.1", 24, "global"),),
        counters=LinkCounters(1, 2, 3, 4),
    )
    data = {"forward_delay": 1500, "bridge_id": "8000.0:16:3e:0:0:1", "vlan_default_pvid": 1}
    state = render_state(link, {"linkinfo": {"info_data": data}}, [link, Link("v1", 8, kind="veth", master_index=7)])
    assert (state.state, state.type, state.mtu, state.hwaddr) == ("up", "broadcast", 1500, "00:16:3e:00:00:01")
    assert [(a.address, a.netmask, a.family, a.scope) for a in state.addresses] == [
        ("198.18.5.1", "24", "inet", "global")
    ]
    assert state.counters.packets_sent == 4
    assert state.bridge == NetworkStateBridge(1500, "8000.00163e000001", False, ["v1"], 1, False)


def test_state_of_others() -> None:
    vlan = render_state(Link("eth0.5", 5, kind="vlan"), {"link": "eth0", "linkinfo": {"info_data": {"id": 5}}}, [])
    assert vlan.vlan == NetworkStateVLAN("eth0", 5)
    assert render_state(Link("lo", 1, loopback=True), {}, []).type == "loopback"
    assert render_state(Link("t", 1, kind="tun"), {"flags": ["POINTOPOINT"]}, []).type == "point-to-point"
    bond = render_state(
        Link("bond0", 4, kind="bond"), {"linkinfo": {"info_data": {"mode": "802.3ad"}}}, [Link("e", 5, master_index=4)]
    )
    assert bond.bond is not None
    assert (bond.bond.mode, bond.bond.lower_devices, bond.bond.mii_state) == ("802.3ad", ["e"], "up")
