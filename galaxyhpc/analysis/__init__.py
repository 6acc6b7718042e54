"""Turn result files into tables of numbers: collected runs, summaries over seeds, intervals, tests, costs.

Returns data frames; `report` decides how they look.
"""
