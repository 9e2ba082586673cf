"""Serves a sandbox until SIGINT or SIGTERM; its state survives in the data file."""

from __future__ import annotations

import argparse
import signal
import sys
import threading

from .errors import Refusal
from .sandbox import Sandbox


def promotion(text: str) -> tuple[str, float]:
    """`LAUNCH20=20` → code and percent off."""
    code, _, percent = text.partition("=")
    return code, float(percent)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.stripe_sandbox", description=__doc__)
    parser.add_argument("--port", type=int, default=12111)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--public-url", help="base of the page URLs (http://localhost:PORT)")
    parser.add_argument("--data", help="JSON file for the state; without it nothing is kept")
    parser.add_argument("--webhook-url", help="where every event is delivered, with retries")
    parser.add_argument("--webhook-secret", default="whsec_sandbox")
    parser.add_argument("--api-key", help="the one key accepted; without it any test key")
    parser.add_argument(
        "--promo",
        type=promotion,
        action="append",
        default=[],
        metavar="CODE=PERCENT",
        help="a promotion code to have, e.g. LAUNCH20=20; may be repeated",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    sandbox = Sandbox(
        port=options.port,
        host=options.host,
        api_key=options.api_key,
        webhook_url=options.webhook_url,
        webhook_secret=options.webhook_secret,
        data=options.data,
        public_url=options.public_url or f"http://localhost:{options.port}",
    )
    sandbox.webhooks.retry = True
    present = {promotion["code"] for promotion in sandbox.every("promotion_code")}
    for code, percent in options.promo:
        if code not in present:
            try:
                sandbox.create_promotion_code(code, percent)
            except Refusal as refused:
                print(f"--promo {code}: {refused}", file=sys.stderr)
                return 2
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    sandbox.start()
    print(f"Stripe sandbox on {sandbox.url}", flush=True)
    ended.wait()
    sandbox.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
