"""GET /dashboard, a page that shows the mesh, and GET /dashboard/state, what it shows.

The page holds nothing of the mesh and may be read by everybody; its data route stands under the same rule as the other
operators' routes. docs/dashboard.md.
"""

import base64
import hashlib
import re
from importlib.resources import files
from typing import Final

import msgspec
from aiohttp import web

from services.gateway.dashboard.source import DashboardSource
from services.gateway.http.responses import error_response, json_response
from services.gateway.openai.errors import ApiError, invalid

_LONGEST: Final = 12
"""Digits of a sample's number, and characters of a life."""


class DashboardRoutes:
    """The page and its data."""

    def __init__(self, source: DashboardSource) -> None:
        self._source = source
        self._page = page()
        self._headers = {
            "Content-Security-Policy": policy_of(self._page),
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }

    def routes(self) -> list[web.RouteDef]:
        """To be added to the application before it runs."""
        return [web.get("/dashboard", self._show), web.get("/dashboard/state", self._state)]

    async def _show(self, _: web.Request) -> web.Response:
        return web.Response(text=self._page, content_type="text/html", headers=self._headers)

    async def _state(self, http: web.Request) -> web.Response:
        try:
            since = _since(http.query.get("since", "-1"))
        except ApiError as error:
            return error_response(error)
        state = self._source.state(since, http.query.get("life", ""))
        return json_response(msgspec.json.encode(state), headers={"Cache-Control": "no-store"})


def page() -> str:
    """The page: one file, which asks no other host for anything."""
    return files("services.gateway.dashboard").joinpath("dashboard.html").read_text(encoding="utf-8")


def policy_of(html: str) -> str:
    """A Content-Security-Policy under which exactly the page's own script and style run, and nothing else is asked
    but the gateway. https://www.w3.org/TR/CSP3/
    """
    sources = {tag: " ".join(_hashes(html, tag)) or "'none'" for tag in ("script", "style")}
    return (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(html: str, tag: str) -> list[str]:
    inline = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in inline]


def _since(text: str) -> int:
    if re.fullmatch(rf"-1|[0-9]{{1,{_LONGEST}}}", text, re.ASCII):
        return int(text)
    raise invalid(f"since is {text[:_LONGEST]!r}: give the number of a sample, or -1 for all", "since")
