"""Check a configuration file and print the configuration that takes effect, defaults included.

Exit status 0 when it can be used, 2 with the place, the key and the fix when it can't.

examples:
  prefix-router check-config router.yaml
  PREFIX_ROUTER_LISTEN__PORT=8080 prefix-router check-config router.yaml
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import msgspec

from router.config import ConfigError, load_config
from router.credentials import Credentials


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("file", type=Path, nargs="?", help="configuration file (default: defaults and environment)")
    parser.add_argument("--quiet", action="store_true", help="print nothing when the configuration is good")


def run(args: argparse.Namespace) -> int:
    """Check, print, return the exit status."""
    try:
        config = load_config(args.file, os.environ)
        Credentials.read(config)
    except ConfigError as error:
        sys.stderr.write(f"prefix-router: {error}\n")
        return 2
    if not args.quiet:
        sys.stdout.write(msgspec.yaml.encode(config).decode())
    return 0
