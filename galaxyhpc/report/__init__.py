"""Present the tables of a sweep: HTML pages, LaTeX, terminal tables, figures, and the files of a report.

Computes no statistics; the numbers come from `analysis`.
"""
