"""A body that is too large is refused before it is read into memory."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from searchr3_embed.server.errors import ApiError, response


class BodyLimit:
    """ASGI middleware.

    Args:
        app: What is behind it.
        most: Bytes of a body.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on unless its body is known to be too large; counts it where that isn't known."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self.most:
            await response(self._error())(scope, receive, send)
            return
        got = 0

        async def counted() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > self.most:
                raise self._error()
            return message

        await self.app(scope, counted, send)

    def _error(self) -> ApiError:
        return ApiError(
            413, f"The body is larger than {self.most:,} bytes; send fewer texts in a call.", "request_too_large"
        )
