"""The page of a survey's prediction, report.html: counts, sky map, histograms, flags, throughput and failures.

Its numbers are summed over the parts, one at a time; only sums are in memory. The form of pages lives in `report.page`.
"""
