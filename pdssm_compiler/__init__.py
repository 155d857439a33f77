"""pdssm-compiler: kernels for PD-SSM scans, from a specification.

The names below are imported when they are first used, so that ``import pdssm_compiler`` loads
neither a backend nor a kernel.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdssm_compiler import reference
    from pdssm_compiler.calls import called
    from pdssm_compiler.compiled import CompiledScan, compile
    from pdssm_compiler.flash import flash_pd_scan
    from pdssm_compiler.functional import pd_scan
    from pdssm_compiler.fusion.inputs import InputSpec
    from pdssm_compiler.fusion.scan import FusedScan
    from pdssm_compiler.fusion.symbols import TraceError
    from pdssm_compiler.ir.errors import PdssmError
    from pdssm_compiler.mixture import mixture_pd_scan
    from pdssm_compiler.runtime.deployed import load_kernels
    from pdssm_compiler.runtime.errors import (
        ArgumentError,
        BackendUnavailableError,
        CacheWarning,
        IndexRangeError,
        NanLogitError,
        NoTemplateError,
        OffsetError,
        PromiseError,
        TuningWarning,
    )
    from pdssm_compiler.runtime.explain import explain
    from pdssm_compiler.runtime.faults import check
    from pdssm_compiler.runtime.saving import save_kernels
    from pdssm_compiler.spec import ScanSpec
    from pdssm_compiler.step import pd_scan_step
    from pdssm_compiler.tuning import predict, tune
    from pdssm_compiler.workload_files import save_workloads
    from pdssm_compiler.workloads import ProgramWorkload, Workload

__version__ = "0.1.0"

_HOMES = {
    "ArgumentError": "pdssm_compiler.runtime.errors",
    "BackendUnavailableError": "pdssm_compiler.runtime.errors",
    "CacheWarning": "pdssm_compiler.runtime.errors",
    "CompiledScan": "pdssm_compiler.compiled",
    "FusedScan": "pdssm_compiler.fusion.scan",
    "IndexRangeError": "pdssm_compiler.runtime.errors",
    "InputSpec": "pdssm_compiler.fusion.inputs",
    "NanLogitError": "pdssm_compiler.runtime.errors",
    "NoTemplateError": "pdssm_compiler.runtime.errors",
    "OffsetError": "pdssm_compiler.runtime.errors",
    "PdssmError": "pdssm_compiler.ir.errors",
    "ProgramWorkload": "pdssm_compiler.workloads",
    "PromiseError": "pdssm_compiler.runtime.errors",
    "ScanSpec": "pdssm_compiler.spec",
    "TraceError": "pdssm_compiler.fusion.symbols",
    "TuningWarning": "pdssm_compiler.runtime.errors",
    "Workload": "pdssm_compiler.workloads",
    "called": "pdssm_compiler.calls",
    "check": "pdssm_compiler.runtime.faults",
    "compile": "pdssm_compiler.compiled",
    "explain": "pdssm_compiler.runtime.explain",
    "flash_pd_scan": "pdssm_compiler.flash",
    "load_kernels": "pdssm_compiler.runtime.deployed",
    "mixture_pd_scan": "pdssm_compiler.mixture",
    "pd_scan": "pdssm_compiler.functional",
    "pd_scan_step": "pdssm_compiler.step",
    "predict": "pdssm_compiler.tuning",
    "save_kernels": "pdssm_compiler.runtime.saving",
    "save_workloads": "pdssm_compiler.workload_files",
    "tune": "pdssm_compiler.tuning",
}

__all__ = [
    "ArgumentError",
    "BackendUnavailableError",
    "CacheWarning",
    "CompiledScan",
    "FusedScan",
    "IndexRangeError",
    "InputSpec",
    "NanLogitError",
    "NoTemplateError",
    "OffsetError",
    "PdssmError",
    "ProgramWorkload",
    "PromiseError",
    "ScanSpec",
    "TraceError",
    "TuningWarning",
    "Workload",
    "called",
    "check",
    "compile",
    "explain",
    "flash_pd_scan",
    "load_kernels",
    "mixture_pd_scan",
    "pd_scan",
    "pd_scan_step",
    "predict",
    "reference",
    "save_kernels",
    "save_workloads",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name == "reference":
        return import_module("pdssm_compiler.reference")
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
