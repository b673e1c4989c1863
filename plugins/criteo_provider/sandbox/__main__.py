"""``python -m criteo_provider.sandbox``: the sandbox in a process of its own."""

from __future__ import annotations

import argparse
import sys

import msgspec

from criteo_provider.sandbox.rules import Rules
from criteo_provider.sandbox.serve import serve
from criteo_provider.sandbox.state import CLIENT_ID, CLIENT_SECRET, World


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, serve, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m criteo_provider.sandbox", description=__doc__)
    parser.add_argument("--port", type=int, default=8780, help="0: a free one (default: 8780)")
    parser.add_argument("--membership", choices=("real", "count"), default="real")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds added to every answer")
    parser.add_argument("--limit", type=int, default=250, help="calls in a window (default: 250)")
    parser.add_argument("--window", type=float, default=60.0, help="seconds of a window (default: 60)")
    parser.add_argument("--rules", default="{}", help="more rules, as a JSON object")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the process that started it")
    args = parser.parse_args(argv)
    named = {
        "membership": args.membership, "latency_s": args.latency, "limit": args.limit, "window_s": args.window
    }  # fmt: skip
    try:
        rules = Rules().changed({**named, **msgspec.json.decode(args.rules, type=dict[str, object])})
        serve(args.port, World.example(rules), until_stdin_closes=args.until_stdin_closes, ready=_say)
    except msgspec.MsgspecError as error:
        print(f"A rule is wrong: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"Port {args.port} cannot be used ({error.strerror}): choose another with --port.",
            file=sys.stderr,
        )
        return 1
    return 0


def _say(sentence: str) -> None:
    print(sentence, f"(client id {CLIENT_ID}, client secret {CLIENT_SECRET})", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
