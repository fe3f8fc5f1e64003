"""``python -m longctx_bench.training.books SOURCE OUT``: training shards out of Project Gutenberg files."""

import sys

from longctx_bench.training.data.gutenberg_shards import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
