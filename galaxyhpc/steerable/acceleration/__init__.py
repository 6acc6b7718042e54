"""Networks of modules of e2cnn or escnn, accelerated: `accelerate`, `restore`, the way back, and `report`.

A module becomes one on tensors with the same parameters under the same names; `conversion` has the table of them.
"""

from galaxyhpc.steerable.acceleration.conversion import accelerate as accelerate
from galaxyhpc.steerable.acceleration.conversion import restore as restore
from galaxyhpc.steerable.acceleration.reporting import report as report
