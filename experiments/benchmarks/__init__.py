"""Benchmarks of the project itself: scripts whose results are committed in `experiments/records/`.

Run one from the checkout, on an idle machine: `python -m experiments.benchmarks.supernet_step`.
"""
