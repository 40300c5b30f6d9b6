"""A request's objects are freed when it ends: cycles would wait for the collector, which holds up everything else."""

from __future__ import annotations

import gc


async def test_requests_leave_no_cycles(build) -> None:
    system = await build(replicas=2)
    messages = [{"role": "user", "content": "hello " * 200}]
    for _ in range(5):
        await system.chat(messages)
    await system.idle()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(20):
            await system.chat(messages)
        await system.idle()
        gc.collect()
        names = {f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    left = {name for name in names if name.startswith("router.") and not name.startswith("router.http.")}
    assert not left
