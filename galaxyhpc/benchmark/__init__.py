"""How fast this project is on one machine, beside what it is compared with; `python -m galaxyhpc.benchmark --help`."""
