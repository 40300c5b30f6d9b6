"""Runs before an engine's container is stopped: waits until the engine has nothing left to do.

drain.py {vllm,sglang} URL SECONDS. The router has stopped sending here (the pod is terminating), so what is left are
the steps under way. Only the standard library: it runs inside the engine's image. Always ends well: the engine must
stop in any case.
"""

import json
import os
import sys
import time
import urllib.request

SETTLE_S = 5.0
"""How long the router may take to hear that the pod is leaving."""
CALM = 3
"""Readings of nothing in a row, one second apart: a step may be between two queues."""


def get(url):
    """The body of one answer; raises OSError. An engine that wants an API key has it in its environment."""
    key = os.environ.get("VLLM_API_KEY") or os.environ.get("ENGINE_API_KEY")
    request = urllib.request.Request(url, headers={"authorization": "Bearer " + key.strip()} if key else {})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read()


def busy(kind, url):
    """Requests running and waiting, over all ranks; None when the engine doesn't say."""
    if kind == "sglang":
        try:
            ranks = json.loads(get(url + "/v1/loads"))["loads"]
            return sum(rank["num_running_reqs"] + rank["num_waiting_reqs"] for rank in ranks)
        except (OSError, ValueError, KeyError, TypeError):
            pass
    names = {
        "vllm": ("vllm:num_requests_running", "vllm:num_requests_waiting"),
        "sglang": ("sglang:num_running_reqs", "sglang:num_queue_reqs"),
    }[kind]
    try:
        lines = get(url + "/metrics").decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    # The name ends at its labels or at the value: num_requests_waiting_by_reason is another metric.
    found = [float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{", 1)[0].split(" ", 1)[0] in names]
    return sum(found) if found else None


def main(kind, url, seconds):
    """Returns once the engine is idle, gone, or out of time."""
    end = time.monotonic() + seconds
    time.sleep(min(SETTLE_S, seconds))
    calm = 0
    while calm < CALM and time.monotonic() < end:
        left = busy(kind, url)
        calm = 0 if left else calm + 1
        time.sleep(1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
