"""Predictions of a survey in parts: its directory, the parts, the jobs that write them, and what is made of them.

Reading the galaxies lives in `data.survey`, the networks in `evaluation.trained_model`; `predict` and `jobs` start it.
"""
