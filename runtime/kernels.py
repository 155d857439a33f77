"""The kernels of one program on one device: which one a call of given sizes runs.

Schedules depend on sizes: few long rows want another kernel than many short ones. Sizes are sorted
into buckets (:meth:`Problem.bucket`), a schedule is chosen once for each bucket, and buckets with
the same schedule share its kernel, so sizes seldom compile anything and a new size within a bucket
never does.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.ir.program import Program
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.compile_service import (
    BuiltKernel,
    Schedule,
    build_schedule,
    choose,
)
from pdssm_compiler.runtime.tuning.resolve import pass_over
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem


class Kernels:
    """See the module's text.

    Args:
        program: any program; it is specialised first.
        target: the device.
        alignment: bytes that every pointer is a multiple of, or 0.
        config: an explicit config for all sizes, or None.
        prepare: called with the sizes of the first call in a bucket, before its schedule is
            chosen.

    Raises:
        NoTemplateError: no schedule.
    """

    def __init__(
        self,
        program: Program,
        target: Target,
        alignment: int,
        config: Any,
        prepare: Callable[[Sizes], None] = lambda sizes: None,
    ) -> None:
        self.program = specialise(program)
        self._target = target
        self._alignment = alignment
        self._config = config
        self._prepare = prepare
        self._of_bits: dict[tuple[int, int], BuiltKernel] = {}
        self._built: list[BuiltKernel] = []
        self._lock = threading.Lock()
        # What no schedule can run is refused before the first call.
        choose(self.program, target, config)

    @property
    def built(self) -> tuple[BuiltKernel, ...]:
        """Every kernel called so far, oldest first."""
        return tuple(self._built)

    def of(self, sizes: Sizes) -> BuiltKernel:
        """The kernel for a call; compiled at the first call that needs it."""
        rows, length = sizes.batch * sizes.heads, sizes.length
        # What tells one :meth:`Problem.bucket` from another, in fewer steps.
        bits = ((rows - 1).bit_length() if rows else 0, length.bit_length())
        found = self._of_bits.get(bits)
        if found is not None:
            return found
        # Without the lock: it may take minutes, and have other kernels choose again.
        self._prepare(sizes)
        with self._lock:
            found = self._find(Problem.bucket(rows, length))
            self._of_bits[bits] = found
        return found

    def _find(self, problem: Problem) -> BuiltKernel:
        schedule = choose(self.program, self._target, self._config, problem)
        try:
            return self._by(schedule)
        except Exception as error:
            if not schedule.logged:
                raise
            # It was right where it was measured; with other compilers it may not even compile.
            what = f"{schedule.template.name} {schedule.config}, {schedule.reason},"
            pass_over(what, f"{type(error).__name__}: {error}")
        return self._by(choose(self.program, self._target, self._config, problem, logs=False))

    def _by(self, schedule: Schedule) -> BuiltKernel:
        """The kernel of a schedule. One that is there for another reason is told of once more,
        and not made again.
        """
        same = [built for built in self._built if built.schedule.kernel == schedule.kernel]
        for built in same:
            if built.schedule == schedule:
                return built
        if same:
            found = replace(same[0], schedule=schedule)
        else:
            found = build_schedule(self.program, self._target, schedule, self._alignment)
        self._built.append(found)
        return found

    def choose_again(self) -> None:
        """Have the next calls choose their schedules anew, as logs have changed."""
        with self._lock:
            self._of_bits = {}
