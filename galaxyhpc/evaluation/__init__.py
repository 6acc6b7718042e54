"""A trained network under every condition: corruptions, attacks, metrics, calibration, results files.

Writes counts and logits; rates, intervals and tests are computed in `analysis`.
"""
