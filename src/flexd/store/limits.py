# SPDX-License-Identifier: Apache-2.0
"""What every engine refuses, so that nothing is written on one host that a cluster could not hold."""

from collections.abc import Sequence

from flexd.api.errors import TooLarge
from flexd.store.contract import Delete, Put

# etcd's defaults: --max-txn-ops and --max-request-bytes.
MAX_OPERATIONS = 128
MAX_BYTES = 3 * 512 * 1024


def check_transaction(ops: Sequence[Put | Delete]) -> None:
    """Raise `TooLarge` above etcd's limits, ValueError if a key occurs twice (a mistake of the caller)."""
    if len(ops) > MAX_OPERATIONS:
        raise TooLarge(f"Failed writing {len(ops)} keys: a transaction holds at most {MAX_OPERATIONS}")
    size_bytes = sum(len(op.key) + (len(op.value) if isinstance(op, Put) else 0) for op in ops)
    if size_bytes > MAX_BYTES:
        raise TooLarge(f'Failed writing "{ops[0].key}": {size_bytes} bytes, a transaction holds at most {MAX_BYTES}')
    if len({op.key for op in ops}) != len(ops):
        raise ValueError(f"a key occurs twice in one transaction: {[op.key for op in ops]}")
