# SPDX-License-Identifier: Apache-2.0
"""Which projects there are, whose images, profiles, volumes and networks each uses, and writing with its limits held.

Creating and changing projects is the server's (`server/projects.py`); here is what every package below asks."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Literal

from msgspec import Struct

from flexd.api.errors import Conflict, Forbidden
from flexd.api.units import is_true
from flexd.operations.locks import Locks
from flexd.projects.keys import FEATURES, Rules
from flexd.projects.record import DEFAULT_PROJECT, ProjectNotFound, ProjectRecord
from flexd.store.contract import Delete, If, Put, RevisionConflict
from flexd.store.documents import Document, Documents, Mirror

Feature = Literal["images", "networks", "profiles", "storage.volumes"]

# Another daemon on the same store may write at the same time; it would have to win this often in a row.
_ATTEMPTS = 20


class _Turn(Struct):
    """The document `/project-turns/NAME`: whoever changes what a project uses writes it, so that two who each stayed
    within a limit by themselves cannot both get in. Only its revision matters."""


class Projects:
    """Reads are from memory."""

    def __init__(self, mirror: Mirror, locks: Locks) -> None:
        self.documents = Documents(mirror, "projects", ProjectRecord)
        self._turns = Documents(mirror, "project-turns", _Turn)
        self._locks = locks

    async def start(self) -> None:
        """The default project is always there, with every feature."""
        if self.documents.get(DEFAULT_PROJECT) is None:
            config = dict.fromkeys(FEATURES, "true")
            record = ProjectRecord(DEFAULT_PROJECT, "Default LXD project", config)
            await self.documents.create((DEFAULT_PROJECT,), record)

    # --- reading ---

    def names(self) -> list[str]:
        return [document.value.name for document in self.documents.list()]

    def find(self, name: str) -> Document[ProjectRecord]:
        found = self.documents.get(name)
        if found is None:
            raise ProjectNotFound
        return found

    def has(self, name: str) -> bool:
        return self.documents.get(name) is not None

    def value(self, project: str, key: str) -> str:
        """A key of its configuration; empty where it is not set, or the project is gone."""
        found = self.documents.get(project)
        return "" if found is None else found.value.config.get(key, "")

    def owner(self, project: str, feature: Feature) -> str:
        """The project whose images (profiles, …) this one uses: its own, or those of `default`."""
        own = project != DEFAULT_PROJECT and is_true(self.value(project, f"features.{feature}"))
        return project if own else DEFAULT_PROJECT

    def sharing(self, owner: str, feature: Feature) -> list[str]:
        """Every project that uses the images (profiles, …) of this one, itself included."""
        return [name for name in self.names() if self.owner(name, feature) == owner]

    # --- restrictions that need no more than the project ---

    def rules(self, project: str) -> Rules:
        found = self.documents.get(project)
        return Rules(project, {} if found is None else found.value.config)

    def check_snapshots(self, project: str) -> None:
        if self.rules(project).blocks("snapshots"):
            raise Forbidden(f'Project "{project}" doesn\'t allow for snapshot creation (restricted.snapshots)')

    def check_backups(self, project: str) -> None:
        if self.rules(project).blocks("backups"):
            raise Forbidden(f'Project "{project}" doesn\'t allow for backup creation (restricted.backups)')

    def check_pool(self, project: str, pool: str) -> None:
        listed = self.rules(project).listed("storage-pools.access")
        if listed is not None and pool not in listed:
            raise Forbidden(
                f'Project "{project}" doesn\'t allow storage pool "{pool}" (restricted.storage-pools.access)'
            )

    def check_image_server(self, project: str, host: str) -> None:
        """`host`: a server's name without port."""
        listed = self.rules(project).listed("images.servers")
        if listed is not None and host not in listed:
            raise Forbidden(
                f'Project "{project}" doesn\'t allow images of the server "{host}" (restricted.images.servers)'
            )

    def check_target(self, project: str, target: str) -> None:
        """`target`: a cluster member, or `@GROUP`."""
        rules = self.rules(project)
        if rules.blocks("cluster.target"):
            raise Forbidden(f'Project "{project}" doesn\'t allow cluster member targeting (restricted.cluster.target)')
        listed = rules.listed("cluster.groups")
        if listed is not None and target.startswith("@") and target[1:] not in listed:
            raise Forbidden(
                f'Project "{project}" doesn\'t allow the cluster group "{target[1:]}" (restricted.cluster.groups)'
            )

    # --- writing ---

    async def write(
        self,
        projects: Iterable[str],
        ops: Sequence[Put | Delete],
        conditions: Sequence[If] = (),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Write documents of these projects; `check` raises if a limit forbids it. It sees all that was written before,
        and nothing of these projects that counts is written between it and the transaction, not even by another
        daemon. `conditions` are not about the projects themselves. `ProjectNotFound` if one of them is gone."""
        names = sorted(set(projects))
        async with AsyncExitStack() as stack:
            for name in names:
                await stack.enter_async_context(self._locks.hold(f"project/{name}", "write"))
            for _ in range(_ATTEMPTS):
                turns, unchanged = self._turn(names)
                check()
                written = {op.key for op in ops}
                try:
                    await self.documents.txn(
                        [*ops, *(turn for turn in turns if turn.key not in written)], [*conditions, *unchanged]
                    )
                except RevisionConflict as error:
                    if error.key not in {condition.key for condition in unchanged}:
                        raise
                else:
                    return
        raise Conflict(f"Failed writing documents of {', '.join(names)}: others write there all the time; try again")

    def _turn(self, projects: Sequence[str]) -> tuple[list[Put], list[If]]:
        puts, conditions = [], []
        for project in projects:
            turn = self._turns.get(project)
            puts.append(self._turns.put((project,), _Turn()))
            conditions.append(self._turns.unchanged((project,), 0 if turn is None else turn.revision))
            conditions.append(self.documents.unchanged((project,), self.find(project).revision))
        return puts, conditions

    def gone(self, project: str) -> list[Delete]:
        """For the transaction that removes a project, given to `write`."""
        return [self.documents.delete_op((project,)), self._turns.delete_op((project,))]
