"""The dashboard as a browser shows it: a real mesh, hostile names, a key, the keyboard, the dark."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from common.clock import SystemClock
from common.ids import InstanceId
from services.gateway.dashboard import history
from services.gateway.dashboard import source as dashboard_source
from services.gateway.dashboard.routes import DashboardRoutes
from services.gateway.dashboard.types import DashboardState
from services.gateway.http.admission import require_keys
from tests.mesh.chromium import MISSING, Page, find_chromium, open_page, running_chromium
from tests.mesh.inprocess import in_process_mesh, mesh_config
from tests.unit.gateway.dashboard.test_dashboard import STATE

pytestmark = pytest.mark.skipif(find_chromium() is None, reason=MISSING)

PROMPT = "the quick brown fox jumps over the lazy dog"
MARKUP = '<img src=x onerror="window.ran=1"><script>window.ran=1</script>\'"&amp;'


@pytest.fixture(scope="module")
def devtools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_chromium(tmp_path_factory.mktemp("chromium")) as address:
        yield address


@pytest.fixture
async def page(devtools: str) -> AsyncIterator[Page]:
    async with open_page(devtools) as page:
        yield page


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples and polls come often."""
    monkeypatch.setattr(history, "EVERY_S", 0.1)
    monkeypatch.setattr(dashboard_source, "EVERY_S", 0.1)


class Told:
    """A source that says what the test wants."""

    def __init__(self, state: DashboardState) -> None:
        self.shown = state

    def state(self, since: int, life: str) -> DashboardState:
        return self.shown


@asynccontextmanager
async def served(source: Any, *middlewares: Any) -> AsyncIterator[str]:
    app = web.Application(middlewares=middlewares)
    app.add_routes(DashboardRoutes(source).routes())
    async with TestServer(app) as server:
        yield str(server.make_url("/dashboard"))


def label(instance: str) -> str:
    return f"document.querySelector('[data-instance=\"{instance}\"]')?.getAttribute('aria-label')"


@pytest.mark.usefixtures("often")
async def test_a_real_mesh_is_drawn_and_followed(page: Page, deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(prefill=2, decode=2), deterministic_folder) as mesh:
        await page.go(f"{mesh.gateway.url}/dashboard")
        for instance in ("p0", "p1", "d0", "d1"):
            await page.until(f"({label(instance)} || '').includes('serving')")
        await page.until("document.getElementById('ready').textContent === '● ready'")
        await page.until("document.querySelectorAll('.link').length === 4")
        for _ in range(3):
            assert (await mesh.complete(PROMPT, ignore_eos=True)).status == 200
        await page.until("document.getElementById('tiles').innerText.includes('3 / 0')")
        await page.until("document.querySelector('path.one') !== null")
        await page.until("document.getElementById('links').innerText.includes('kB')")
        async with mesh.client.post("/instances/d1/drain") as response:
            assert response.status == 202
        await page.until(f"({label('d1')} || '').includes('draining')")
        (await mesh.client.post("/instances/d1/resume")).close()
        await page.until(f"({label('d1')} || '').includes('serving')")
        await mesh.crash_worker(InstanceId("p1"))
        await page.until(f"({label('p1')} || '').includes('lost')")
        await page.until("document.getElementById('instances').innerText.includes('lost: silent')")
        assert page.complaints == []


async def test_names_with_markup_are_shown_and_never_run(page: Page) -> None:
    hostile = msgspec.structs.replace(
        STATE,
        model=MARKUP,
        policy=MARKUP,
        not_ready=MARKUP,
        instances=tuple(
            msgspec.structs.replace(one, id=f"{MARKUP}{number}", device=MARKUP)
            for number, one in enumerate(STATE.instances)
        ),
        lost=tuple(msgspec.structs.replace(one, id=f"{MARKUP}lost", reason=MARKUP) for one in STATE.lost),
        links=tuple(msgspec.structs.replace(one, prefill=f"{MARKUP}0", decode=f"{MARKUP}1") for one in STATE.links),
    )
    async with served(Told(hostile)) as url:
        await page.go(url)
        await page.until("document.querySelectorAll('[data-instance]').length === 3")
        assert MARKUP in await page.evaluate("document.getElementById('what').textContent")
        assert MARKUP in await page.evaluate("document.getElementById('links').textContent")
        assert await page.evaluate("[document.images.length, document.scripts.length]") == [0, 1]
        assert await page.evaluate("window.ran ?? null") is None
        assert page.complaints == []


async def test_what_is_not_the_pages_own_may_not_run(page: Page) -> None:
    """The policy, beyond the page's own care."""
    async with served(Told(STATE)) as url:
        await page.go(url)
        await page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran=1\">')")
        await page.until("document.images.length === 1")
        await page.evaluate("fetch('http://127.0.0.1:9/').catch(() => 0)")
        assert await page.evaluate("window.ran ?? null") is None
        assert sum("Content Security Policy" in complaint for complaint in page.complaints) >= 2


class OneKey:
    def owner_of(self, key: str) -> str | None:
        return "somebody" if key == "sk-good" else None


async def test_a_key_is_asked_for_and_kept_in_the_tab(page: Page) -> None:
    async with served(Told(STATE), require_keys(OneKey(), SystemClock())) as url:
        await page.go(url)
        await page.until("!document.getElementById('ask').hidden")
        for key in ("sk-bad", "sk-good"):
            await page.evaluate("document.getElementById('key').focus()")
            await page.call("Input.insertText", text=key)
            await page.press("Enter")
            if key == "sk-bad":
                await page.until("document.getElementById('stale').textContent.includes('refuses this key')")
        await page.until("document.querySelectorAll('[data-instance]').length === 3")
        assert await page.evaluate("document.getElementById('ask').hidden && document.getElementById('stale').hidden")
        assert await page.evaluate("localStorage.length + document.cookie.length") == 0
        await page.go(url)
        await page.until("document.querySelectorAll('[data-instance]').length === 3")


async def test_charts_and_instances_are_reached_and_read_by_keyboard(page: Page) -> None:
    async with served(Told(STATE)) as url:
        await page.go(url)
        await page.until("document.querySelectorAll('[data-instance]').length === 3")
        await page.evaluate("document.getElementById('pause').focus()")
        await page.press("Tab")
        assert await page.evaluate("document.activeElement.getAttribute('data-instance')") == "p0"
        await page.evaluate("document.querySelector('figure svg').focus()")
        read = "document.querySelector('figure .read').textContent"
        assert (await page.evaluate(read)).startswith("now: ")
        await page.press("ArrowLeft")
        assert (await page.evaluate(read)).startswith("2 s ago: P50 (solid) ")


async def test_light_and_dark_are_both_legible(page: Page) -> None:
    """Contrast of text on its card: at least the 4.5 : 1 of WCAG 2.2 AA, also of every colour that text has."""
    contrast = """(() => {
      const part = (c) => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
      const light = (text) => { const [r, g, b] = text.match(/[0-9.]+/g).map(Number);
        return .2126 * part(r) + .7152 * part(g) + .0722 * part(b); };
      const probe = document.body.appendChild(document.createElement("i"));
      const of = (name) => { probe.style.color = `var(--${name})`; return light(getComputedStyle(probe).color); };
      const card = of("card");
      const found = ["ink", "soft", "one", "two", "bad", "good"].map((name) => { const ink = of(name);
        return (Math.max(ink, card) + .05) / (Math.min(ink, card) + .05); });
      probe.remove();
      return [card, Math.min(...found)];
    })()"""
    async with served(Told(STATE)) as url:
        await page.look(1200)
        await page.go(url)
        light_card, light_least = await page.evaluate(contrast)
        await page.look(1200, dark=True)
        dark_card, dark_least = await page.evaluate(contrast)
        assert light_card > 0.8
        assert dark_card < 0.1
        assert min(light_least, dark_least) >= 4.5
