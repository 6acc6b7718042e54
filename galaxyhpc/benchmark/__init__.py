"""Measure how fast this machine trains and evaluates, `galaxyhpc benchmark`, as ratios within one run.

Holds the implementations that are compared, timing, scaling, and the forecast of a sweep's hours. The figures of
machines that were measured lie in tests/benchmarks.
"""
