"""Measure how fast this machine trains and evaluates, `galaxyhpc benchmark`, as ratios within one run.

Holds the implementations that are compared, timing of networks and of single layers, profiles, scaling, and the
forecast of a sweep's hours. tests/benchmarks/gpu measures a GPU with them; figures of machines lie in tests/benchmarks.
"""
