"""The one-pixel attack on a trained network: the search, a network that evaluates it fast, and its results file.

Attacks are the last part of an evaluation (`evaluation.evaluate`); rates of success are computed in `analysis`.
"""
