"""`helm test`: one streamed request through the router; checks the answer and its receipt. Standard library only.

stream_test.py URL MODEL SECONDS (MODEL may be empty: the first served one). API_KEY in the environment: a key of the
router's. /certificate: a client certificate, where the router wants one.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

CERTIFICATE = Path("/certificate")


def context():
    """TLS without a check of the router's certificate, which need not name the Service that is asked here."""
    made = ssl.create_default_context()
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    if (CERTIFICATE / "tls.crt").exists():
        made.load_cert_chain(CERTIFICATE / "tls.crt", CERTIFICATE / "tls.key")
    return made


def main(url, model, seconds):
    """Raises SystemExit with what is wrong."""
    key = os.environ.get("API_KEY", "").strip()
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = "Bearer " + key
    tls = context() if url.startswith("https:") else None
    end = time.monotonic() + seconds
    while True:
        try:
            asking = urllib.request.Request(url + "/v1/models", headers=headers)
            with urllib.request.urlopen(asking, timeout=10, context=tls) as answer:
                served = [entry["id"] for entry in json.load(answer)["data"]]
            if served:
                break
            said = "no model is served yet"
        except urllib.error.HTTPError as error:
            said = str(error)
            if error.code == 401:
                raise SystemExit("the router wants an API key: set test.apiKey.secretName") from None
        except (OSError, ValueError, KeyError) as error:
            said = str(error)
        if time.monotonic() > end:
            raise SystemExit(f"no engine is ready behind {url}: {said}. Look at /ready on the router's admin port.")
        time.sleep(2)
    body = {
        "model": model or served[0],
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 16,
        "stream": True,
    }
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=max(10.0, seconds), context=tls) as answer:
            receipt = {key.lower(): value for key, value in answer.headers.items() if "prefix-router" in key.lower()}
            events = [line[5:].strip() for line in answer if line.startswith(b"data:")]
    except urllib.error.HTTPError as error:
        raise SystemExit(
            f"the request was answered {error.code}: {error.read(500).decode('utf-8', 'replace')}"
        ) from None
    if not events or events[-1] != b"[DONE]":
        raise SystemExit(f"the stream did not end with [DONE] ({len(events)} events)")
    for event in events[:-1]:
        if "error" in json.loads(event):
            raise SystemExit(f"the stream carried an error: {event[:500]!r}")
    if "x-prefix-router-replica" not in receipt:
        raise SystemExit("no receipt (x-prefix-router-*): is something else than prefix-router answering here?")
    print(f"streamed {len(events) - 1} events; " + "; ".join(f"{key}: {receipt[key]}" for key in sorted(receipt)))


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), sys.argv[2], float(sys.argv[3]))
