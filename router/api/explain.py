"""POST /explain on the operators' listener: a real request's body in, the decision and its reasons out."""

from __future__ import annotations

from aiohttp import web

from router.api.errors import ApiError
from router.api.route import Route
from router.http.message import Request
from router.prompt.requests import BadRequest, Endpoint, endpoint_of, parse_request


class Explain:
    """`?path=` names the endpoint the body is for; without it, a body with `messages` is a chat completion, others a
    completion. Headers that name a session count as they would on the public port."""

    def __init__(self, route: Route) -> None:
        self._route = route

    def routes(self) -> list[web.RouteDef]:
        """For the admin application."""
        return [web.post("/explain", self.answer)]

    async def answer(self, request: web.Request) -> web.Response:
        """The explanation, or the error the public port would give."""
        body = await request.read()
        path = request.query.get("path") or ("/v1/chat/completions" if b'"messages"' in body else "/v1/completions")
        if endpoint_of(path) is Endpoint.OTHER:
            message = f"{path} has no prompt: name an endpoint that has one, as /v1/chat/completions"
            return _refuse(400, message, "path")
        try:
            parsed = parse_request(path, body)
            headers = [(name.lower(), value) for name, value in request.raw_headers]
            asked = Request("POST", path.encode(), headers, body=body)
            return web.json_response(await self._route.explain(asked, parsed))
        except BadRequest as bad:
            return _refuse(bad.status, bad.message, bad.param)
        except ApiError as error:
            return _refuse(error.status, error.message, error.param)


def _refuse(status: int, message: str, field: str | None) -> web.Response:
    return web.json_response({"error": {"message": message, "field": field}}, status=status)
