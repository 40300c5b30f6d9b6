"""A replica whose token ids differ from the router's is found out at join, quarantined, and said so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from support.waiting import until

from replica.simulator.config import MODEL_DIR


async def test_another_template_is_found_out_and_requests_still_stay_together(build, tmp_path: Path) -> None:
    files = tmp_path / "model"
    shutil.copytree(MODEL_DIR, files)
    template = (files / "chat_template.jinja").read_text()
    (files / "chat_template.jinja").write_text("{{- 'An extra line.\\n' }}" + template)
    system = await build(replicas=3, model_files=str(files), settings={"prompt.parity_interval_s": 0.2})
    await until(lambda: all(replica.distrust for replica in system.app.fleet), "all replicas are quarantined")
    degraded = system.app.ready()[1]["degraded"]
    assert sum("quarantined" in line and "models[].files" in line for line in degraded) == 3
    history = [{"role": "system", "content": "Be careful. " * 60}, {"role": "user", "content": "first"}]
    homes = set()
    for step in range(4):
        headers, answer = await system.chat(history)
        assert headers["x-prefix-router-tokens"] == "approximate; token-mismatch"
        homes.add(headers["x-prefix-router-replica"])
        history += [answer["choices"][0]["message"], {"role": "user", "content": f"step {step}"}]
    assert len(homes) == 1
    assert int(headers["x-prefix-router-matched-tokens"]) > 100
    async with system.client.get(system.admin_url + "/metrics") as page:
        text = await page.text()
    assert text.count("prefix_router_replica_quarantined{") == 3
    async with system.client.get(system.admin_url + "/replicas") as answer:
        assert all(replica["quarantined"] for replica in json.loads(await answer.text())["replicas"])


async def test_equal_ids_are_not_quarantined(build) -> None:
    system = await build(replicas=2, simulator={"record_requests": 10_000}, settings={"prompt.parity_interval_s": 0.1})
    await until(
        lambda: all(
            sum("render" in request.target for request in simulated.requests) >= 10 for simulated in system.fleet
        ),
        "each replica was asked twice",
    )
    assert not any(replica.distrust for replica in system.app.fleet)
    assert system.app.ready()[1]["status"] == "ready"
