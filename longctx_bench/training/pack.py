"""``python -m longctx_bench.training.pack FOLDER --base NAME --out DIR``: a trained model as delta weights."""

import sys

from longctx_bench.training.quantize_delta import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
