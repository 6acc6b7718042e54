"""Classify galaxies with trained networks: `galaxyhpc predict`.

Holds the short form, which writes one CSV, and the submission of a survey's prediction; the parts of a survey, the jobs
that write them and what is made of them live in `prediction`.
"""
