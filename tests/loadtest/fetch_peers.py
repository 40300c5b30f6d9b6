"""Other routers for the comparison's tests, into .cache/peers."""

from __future__ import annotations

import sys
from pathlib import Path

from loadtest.compare.contenders import PEERS
from loadtest.compare.peers import Unavailable, peer_program

PEERS_FOLDER = Path(__file__).parents[2] / ".cache" / "peers"


def main() -> int:
    missing = 0
    for name in PEERS:
        try:
            peer_program(name, PEERS_FOLDER, print)
        except Unavailable as error:
            print(error, file=sys.stderr)
            missing += 1
    return missing


if __name__ == "__main__":
    sys.exit(main())
