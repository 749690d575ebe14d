# SPDX-License-Identifier: Apache-2.0
"""Secrets that stand in for trust: to fetch one private image from here, or to push one here (images_push_relay).

Each is a token operation: shown in `/1.0/operations`, gone once it was used, cancelled, or an hour old.
"""

import asyncio
import secrets
from typing import Any

from msgspec import Struct

from flexd.api.errors import Forbidden
from flexd.api.image import ImagesPost
from flexd.images.urls import image_url
from flexd.operations.operations import Operation, Operations

# Between a client that asks for one and the server that it hands it to lie seconds.
_VALID_S = 3600.0


class _Token(Struct):
    operation: Operation
    project: str
    fingerprint: str
    post: ImagesPost | None


class Tokens:
    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._tokens: dict[str, _Token] = {}

    def issue_read(self, project: str, fingerprint: str) -> Operation:
        """Lets whoever has the secret fetch that image."""
        return self._issue("Image download token", project, fingerprint, None, {})

    def issue_push(self, project: str, post: ImagesPost) -> Operation:
        """Lets whoever has the secret bring the image of `post.source.fingerprint`, to be recorded as `post` says."""
        fingerprint = post.source.fingerprint if post.source else ""
        metadata = {"fingerprint": fingerprint, "public": post.public, "properties": post.properties}
        return self._issue("Image upload token", project, fingerprint, post, metadata)

    def may_read(self, project: str, fingerprint: str, secret: str) -> bool:
        token = self._find(secret)
        return token is not None and token.post is None and (token.project, token.fingerprint) == (project, fingerprint)

    def take_push(self, project: str, fingerprint: str, secret: str) -> ImagesPost:
        """What the token's owner wants done with the image; the secret is spent."""
        token = self._find(secret)
        if token is None or token.post is None or (token.project, token.fingerprint) != (project, fingerprint):
            raise Forbidden("not authorized")
        self._end(secret)
        return token.post

    def spend(self, secret: str) -> None:
        """An image went out with it, whole."""
        if secret in self._tokens:
            self._end(secret)

    def _issue(
        self, description: str, project: str, fingerprint: str, post: ImagesPost | None, metadata: dict[str, Any]
    ) -> Operation:
        secret = secrets.token_hex(32)
        resources = {"images": [image_url(project, fingerprint)]}
        shown = {**metadata, "secret": secret}
        operation = self._operations.start("token", description, project, resources, None, metadata=shown)
        self._tokens[secret] = _Token(operation, project, fingerprint, post)
        asyncio.get_running_loop().call_later(_VALID_S, self.spend, secret)
        return operation

    def _find(self, secret: str) -> _Token | None:
        # 256 random bits looked up by hash: there is no comparison whose time could tell anything.
        token = self._tokens.get(secret)
        if token is not None and token.operation.finished:
            del self._tokens[secret]
            return None
        return token

    def _end(self, secret: str) -> None:
        token = self._tokens.pop(secret)
        token.operation.end_token()
