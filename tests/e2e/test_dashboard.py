"""The dashboard in a real browser: loads, follows the fleet live, drills down, and outlives the router's restart."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from e2e.conftest import MODEL, Build, receipt
from observe.mutations import body, sessions
from support.chromium import Page, chromium_page
from support.ports import free_port
from support.router_process import router_process
from support.waiting import until

from replica.simulator.config import MODEL_DIR, ReplicaConfig
from replica.simulator.fleet import SimulatedFleet
from replica.simulator.timing import time_model

SESSION = next(s for s in sessions() if s["source"].startswith("sierra") and len(s["steps"]) > 4)
HOSTILE = "<img src=x onerror=document.title='stolen'>"


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    async with chromium_page(tmp_path) as opened:
        yield opened


async def send(url: str, content: dict[str, Any], **headers: str) -> dict[str, str]:
    request = {**content, "model": MODEL, "max_tokens": 4}
    async with (
        aiohttp.ClientSession() as client,
        client.post(url + "/v1/chat/completions", json=request, headers=headers) as answer,
    ):
        assert answer.status == 200, await answer.text()
        await answer.read()
        return {name.lower(): value for name, value in answer.headers.items()}


def with_clock(step: int) -> dict[str, Any]:
    content = body(SESSION, step)
    content["messages"][0]["content"] = f"Now: 2026-03-01 10:00:0{step}\n{content['messages'][0]['content']}"
    return content


async def row(page: Page, request_id: str) -> str:
    """The row of a request, once it is listed."""
    link = f"#requests a[href='#request/{request_id}']"
    return str(await page.until(f'document.querySelector("{link}")?.closest("tr").innerText'))


async def test_it_follows_the_fleet_and_drills_down(build: Build, page: Page, tmp_path: Path) -> None:
    system = await build(replicas=3)
    await page.call("Page.navigate", url=system.admin_url)
    await page.until("document.querySelector('#state').dataset.state === 'ready'")
    assert await page.get("document.querySelectorAll('#fleet tbody tr').length") == 3
    assert "Connecting" not in await page.get("document.body.innerText")

    told = [await send(system.url, with_clock(step), **{"x-session-id": HOSTILE}) for step in range(3)]
    last = told[-1]
    shown = await row(page, receipt(last, "request"))
    assert receipt(last, "replica") in shown
    assert "break" in shown
    await page.until("document.querySelector('#breaks').innerText.includes('timestamp or counter')")
    await page.until("document.querySelector('#sessions').innerText.includes('<img src=x')")
    await page.until("document.querySelectorAll('#fleet .strip .reuse').length === 3")
    assert await page.get("document.title") == "prefix-router"
    light = await page.picture(tmp_path / "light.png")
    await page.look("dark")
    await page.until("getComputedStyle(document.body).backgroundColor === 'rgb(14, 19, 18)'")
    assert light != await page.picture(tmp_path / "dark.png")

    # With keys alone: to the request's link, open it, read the decision, close it, and be back where one was.
    await page.get(f"document.querySelector(\"#requests a[href='#request/{receipt(last, 'request')}']\").focus()")
    await page.key("Enter")
    explained = await page.until(
        "document.querySelector('#detail').open && document.querySelector('#detail tr.chosen') && "
        "document.querySelector('#detail').innerText"
    )
    async with system.client.get(f"{system.admin_url}/requests/{receipt(last, 'request')}") as answer:
        record = await answer.json()
    assert f"Went to {record['replica']} because" in explained
    assert len(record["candidates"]) == 3
    for candidate in record["candidates"]:
        assert candidate["replica"] in explained
        assert f"{candidate['cost_s']['total'] * 1000:.1f}"[:3] in explained
    for cause, tokens in record["computed_tokens"].items():
        assert f"{tokens:,}" in explained
        assert f"computed: {cause}" in explained
    assert "0000-00-00 00:00:00" in explained  # the excerpt is masked
    assert await page.get("document.activeElement.id") == "detail-title"
    await page.key("Escape")
    await page.until("!document.querySelector('#detail').open && location.hash === ''")
    assert await page.get("document.activeElement.getAttribute('href')") == f"#request/{receipt(last, 'request')}"

    await page.get(f"location.hash = '#session/{receipt(last, 'session').split(';')[0]}'")
    steps = await page.until("document.querySelector('#detail .steps') && document.querySelector('#detail').innerText")
    assert "3 steps sent" in steps
    assert "timestamp or counter" in steps
    await page.get("location.hash = '#replica/' + encodeURIComponent(document.querySelector('#fleet a').textContent)")
    await page.until("document.querySelector('#detail').innerText.includes('KV events say what it holds')")
    await page.get("location.hash = '#request/no-such-one'")
    await page.until("document.querySelector('#detail').innerText.includes('no request')")

    missing = [url for url in page.asked if not url.startswith((system.admin_url, "data:"))]
    assert missing == []
    assert [trouble for trouble in page.troubles if "404" not in trouble] == []


async def test_what_is_not_read_is_not_claimed(build: Build, page: Page) -> None:
    """Under a policy that passes prompts on unread the page says that breaks are not known, not that there are none."""
    system = await build(replicas=1, settings={"routing.policy": "round_robin"})
    await page.call("Page.navigate", url=system.admin_url)
    await page.until("document.querySelector('#breaks').innerText.includes('None so far')")
    told = await send(system.url, body(SESSION, 0))
    await row(page, receipt(told, "request"))
    await page.until("document.querySelector('#breaks').innerText.includes('unread')")
    assert page.troubles == []


async def test_screen_readers_get_names_for_everything(build: Build, page: Page) -> None:
    system = await build(replicas=2)
    told = await send(system.url, body(SESSION, 1))
    await page.call("Page.navigate", url=system.admin_url)
    await row(page, receipt(told, "request"))
    nodes = [node for node in (await page.call("Accessibility.getFullAXTree"))["nodes"] if not node.get("ignored")]
    roles: dict[str, list[str]] = {}
    for node in nodes:
        roles.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert {"main", "banner", "table", "heading", "status", "columnheader", "rowheader"} <= set(roles)
    for role in ("link", "button", "table", "region", "image", "img"):
        assert all(roles.get(role, ["-"])), (role, roles[role])
    strips = [name for name in (*roles.get("image", ()), *roles.get("img", ())) if "last minute" in name]
    assert len(strips) == 2
    assert any(name.startswith("1 requests in the last minute") for name in strips)
    await page.get("document.querySelector('#chart svg').focus()")
    await page.key("ArrowLeft")
    await page.until("document.querySelector('#said').textContent.includes('reused')")


async def test_it_outlives_the_routers_restart(page: Page, tmp_path: Path) -> None:
    """Away is said, the figures stay; back again it goes on, with the requests of before still on the chart."""
    config = ReplicaConfig(model_dir=MODEL_DIR, model=MODEL, timing=time_model("instant"), port=0)
    fleet = SimulatedFleet(1, config)
    await fleet.start()
    settings = {"admin": {"port": free_port()}, "replicas": [{"url": fleet[0].url}]}
    try:
        async with aiohttp.ClientSession() as client, router_process(tmp_path, settings) as router:
            await router.up(client, 1)
            await page.call("Page.navigate", url=router.admin_url)
            await page.until("document.querySelector('#state').dataset.state === 'ready'")
            before = receipt(await send(router.url, body(SESSION, 0)), "request")
            await row(page, before)
            await router.stop()
            await page.until("document.querySelector('#state').dataset.state === 'away'")
            assert "does not answer" in await page.get("document.querySelector('#news').innerText")
            assert before in await page.get("document.body.innerText")
            router.log = ""
            await router.start()
            await page.until("document.querySelector('#news').innerText.includes('restarted')")  # said for 8 s
            await router.up(client, 1)
            await page.until("document.querySelector('#state').dataset.state === 'ready'")
            assert not await page.get("document.body.classList.contains('away')")
            after = receipt(await send(router.url, body(SESSION, 1)), "request")
            await row(page, after)
            rows = "[...document.querySelectorAll('#chart-table tbody tr')]"
            await page.until(f"{rows}.reduce((sum, row) => sum + Number(row.children[1].textContent), 0) === 2")
    finally:
        await fleet.stop()


async def test_live_tells_what_is_new(build: Build) -> None:
    """What the page asks: without a browser."""
    system = await build(replicas=1)

    async def live(since: object) -> tuple[int, Any]:
        async with system.client.get(f"{system.admin_url}/live?since={since}") as answer:
            return answer.status, json.loads(await answer.text())

    _, start = await live(0)
    assert (start["seq"], start["requests"], start["ready"]["status"]) == (0, [], "ready")
    told = await send(system.url, body(SESSION, 0))
    await until(lambda: len(list(system.app.observer.recent.latest(9))) == 1, "the request is over")
    _, first = await live(start["seq"])
    assert [one["id"] for one in first["requests"]] == [receipt(told, "request")]
    assert (await live(first["seq"]))[1]["requests"] == []
    assert first["run"] == start["run"]
    assert (await live("x"))[0] == 400
    async with system.client.get(system.admin_url + "/") as answer:
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        text = await answer.text()
    assert "http://" not in text.replace("http://www.w3.org/", "")


async def test_the_admin_token_opens_it(build: Build, tmp_path: Path) -> None:
    """A browser sends it as the password it was asked for."""
    token = tmp_path / "token"
    token.write_text("open-sesame")
    system = await build(replicas=1, settings={"admin.token_file": str(token)})
    for path in ("/", "/live"):
        async with system.client.get(system.admin_url + path) as answer:
            assert answer.status == 401
            assert answer.headers["www-authenticate"].startswith("Basic")
        given = {"authorization": "Basic " + base64.b64encode(b"any:open-sesame").decode()}
        async with system.client.get(system.admin_url + path, headers=given) as answer:
            assert answer.status == 200
