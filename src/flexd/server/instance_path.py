# SPDX-License-Identifier: Apache-2.0
"""Which instance, or which kind of instances, a path is about."""

from flexd.api.errors import NotFound
from flexd.server.call import Call
from flexd.server.endpoint import INSTANCE_ALIASES


def _collection(call: Call) -> str:
    """`instances`, `containers` or `virtual-machines`: the second segment of the path."""
    return call.request.path.split("/", 3)[2]


def collection_url(call: Call) -> str:
    return f"/1.0/{_collection(call)}"


def wanted_type(call: Call) -> str:
    """The type that the path or `instance-type=` asks for; empty: any."""
    return INSTANCE_ALIASES.get(_collection(call)) or call.query("instance-type")


def instance_name(call: Call) -> str:
    """The name in the path, of an instance that exists and has the type that the path asks for."""
    name = call.param("name")
    instance = call.services.instances.show(call.project, name)
    if instance.type != INSTANCE_ALIASES.get(_collection(call), instance.type):
        raise NotFound("Instance not found")
    return name
