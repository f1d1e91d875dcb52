"""How benchmarks hold data out to be comparable with papers."""
