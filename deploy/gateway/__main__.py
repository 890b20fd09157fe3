"""`python -m llmcluster.deploy.gateway --config TOML`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from ...errors import InputError


def main() -> None:
    """Runs the gateway until it is told to end."""
    parser = argparse.ArgumentParser(
        prog="python -m llmcluster.deploy.gateway", description="An OpenAI-compatible gateway that an agent can steer."
    )
    parser.add_argument("--config", type=Path, required=True, metavar="TOML", help="settings; see docs/reference.md")
    path = parser.parse_args().config
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        from .config import load_gateway_config
        from .server import run

        run(load_gateway_config(path))
    except InputError as fault:
        sys.exit(f"error: {fault}")
    except ModuleNotFoundError as fault:
        sys.exit(f"error: {fault}. Run pip install 'llmcluster[deploy]'")


if __name__ == "__main__":
    main()
