"""From result files to tables of numbers: collected runs, summaries over seeds, intervals, tests, costs.

Returns data frames; how they look is decided in `report`.
"""
