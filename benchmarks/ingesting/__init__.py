"""What ``benchmarks/ingest.py`` consists of."""
