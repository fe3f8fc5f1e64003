"""The command line: parse and call. Starts at once: torch and transformers are imported by what needs them."""

from longctx_bench.cli.main import main

__all__ = ["main"]
