"""Programs with a name: what the public functions run. Nothing below the runtime knows them."""

from pdssm_compiler.ir.programs.map_scores import map_scores
from pdssm_compiler.ir.programs.mixture import LEARNED, mixture
from pdssm_compiler.ir.programs.pd_scan import Fusion, MapSource, Orientation, PdScan, pd_scan

__all__ = [
    "LEARNED",
    "Fusion",
    "MapSource",
    "Orientation",
    "PdScan",
    "map_scores",
    "mixture",
    "pd_scan",
]
