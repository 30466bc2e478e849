"""Who may call: ``Authorization: Bearer KEY``."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from searchr3_embed.server.errors import ApiError


def check(keys: Sequence[str], authorization: str | None) -> None:
    """Lets a request pass that carries one of the keys; every request where there are none.

    All keys are compared, in constant time, so that the time tells nothing.

    Raises:
        ApiError: 401.
    """
    if not keys:
        return
    scheme, _, given = (authorization or "").partition(" ")
    offered = given.strip().encode("utf-8", "surrogateescape")
    found = False
    for key in keys:
        found |= hmac.compare_digest(key.encode(), offered)
    if not found or scheme.lower() != "bearer":
        sent = "The API key is not one of this server's" if given else "An API key is needed"
        raise ApiError(401, f"{sent}: send it as 'Authorization: Bearer KEY'.", "invalid_api_key")
