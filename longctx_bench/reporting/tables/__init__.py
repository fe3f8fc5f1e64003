"""Tables as data; :mod:`longctx_bench.reporting.formats` writes them."""
