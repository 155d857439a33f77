"""summarise: from a step that is affine in its carry, the summary of many steps.

before → after: ``x' = f(x, token)`` → three programs that agree with it (:class:`Summary`).
reason: summaries of chunks are computed side by side and combined in any grouping, which is what a
parallel scan is.

The body is evaluated over affine forms instead of numbers. A form is ``A x + β`` with ``A`` one
map and one diagonal, in column form ``A x = scatter_add(d · x, p)`` or row form
``A x = d · gather(x, p)``; with no map the two are the same. The rule of composition is not
written anywhere: it is what evaluating one more step on a form gives. Source: the monoid of
arXiv 2509.22284, and its adjoint's, which composes in row form.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.errors import PassError
from pdssm_compiler.ir.ops import apply
from pdssm_compiler.ir.passes.rewrite import prune, with_args
from pdssm_compiler.ir.passes.simplify import simplify
from pdssm_compiler.ir.program import Carry, FinalOutput, Program, carry_leaf, zero_like
from pdssm_compiler.ir.types import (
    Map,
    Type,
    Vector,
    default_storage,
    is_complex,
    precision,
    real_of,
)
from pdssm_compiler.ir.value import Value, topological
from pdssm_compiler.ir.verify import verify

Form = Literal["diagonal", "column", "row"]


@dataclass(frozen=True)
class Summary:
    """The programs of a chunked scan.

    Attributes:
        form: how a summary's map acts; ``diagonal`` summaries have no map.
        fold: tokens of a chunk → the chunk's summary. Final outputs ``map``, ``diagonal`` and
            ``drive``, ``[B, H, N]``.
        combine: summaries of neighbouring chunks as tokens → their summary. Token inputs and
            final outputs ``map``, ``diagonal``, ``drive``.
        apply: summaries as tokens → the state after each. Token inputs as ``combine``, row input
            ``initial``, token output ``states``, final output ``final``.
    """

    form: Form
    fold: Program
    combine: Program
    apply: Program


def summarise(program: Program) -> Summary:
    """Derive the summary programs.

    Raises:
        PassError: the program has no carry, several, or one whose step is not affine with one map
            and one diagonal; the message names the op at fault.
    """
    verify(program)
    fold, form, step = _fold(program)
    affine = _apply_program(program, form, step)
    combine, _, _ = _fold(affine)
    return Summary(form, fold, combine, affine)


@dataclass(frozen=True)
class _Affine:
    """``A x + offset``; ``diagonal`` None: no linear part; ``map`` None: no map."""

    diagonal: Value | None
    map: Value | None
    offset: Value | None


def _only_carry(program: Program) -> Carry:
    if len(program.carries) != 1 or not isinstance(program.carries[0].type, Vector):
        names = ", ".join(f"%{carry.name}" for carry in program.carries) or "none"
        raise PassError(f"a summary needs exactly one carry, a vector; this program has {names}")
    return program.carries[0]


def _fold(program: Program) -> tuple[Program, Form, _Affine]:
    carry = _only_carry(program)
    one = apply("broadcast", b.constant(1.0, precision(carry.type)))
    # One step from the identity tells the form and the class of the map.
    form, step = _Evaluation(carry, _Affine(_as(one, carry.type), None, None)).run()
    map_type = step.map.type if step.map is not None else None
    if map_type == Map("identity"):
        map_type = Map("permutation")
    so_far = _Affine(
        carry_leaf("summary_diagonal", carry.type),
        carry_leaf("summary_map", map_type) if map_type is not None else None,
        carry_leaf("summary_drive", carry.type),
    )
    _, after = _Evaluation(carry, so_far, form).run()
    assert after.diagonal is not None
    offset = after.offset if after.offset is not None else zero_like(carry.type)
    carries = [
        Carry("summary_diagonal", carry.type, "one", _as(after.diagonal, carry.type)),
        Carry("summary_drive", carry.type, "zero", _as(offset, carry.type)),
    ]
    if map_type is not None and after.map is not None:
        carries.append(Carry("summary_map", map_type, "identity", after.map))
    build = replace(
        program,
        carries=tuple(carries),
        token_outputs=(),
        final_outputs=tuple(
            FinalOutput(part.name.removeprefix("summary_"), part.name, default_storage(part.type))
            for part in carries
        ),
        sum_outputs=(),
        checks=(),
    )
    return simplify(prune(build)), form, step


def _apply_program(program: Program, form: Form, step: _Affine) -> Program:
    carry = _only_carry(program)
    build = b.ProgramBuilder(program.state_size, program.direction)
    diagonal = build.input("diagonal", carry.type)
    drive = build.input("drive", carry.type)
    # Where a step drops the carry, the diagonal of its summary is zero, and what is dropped may be
    # infinite or no number at all.
    drops = any(value.op == "keep" for value in topological([carry.next]))
    times = b.scale if drops else b.mul
    state = build.carry("state", carry.type, build.input("initial", carry.type, "row"))
    if form == "diagonal":
        moved = times(diagonal, state)
    else:
        assert step.map is not None
        map_ = build.input("map", step.map.type)
        if form == "column":
            moved = b.scatter_add(times(diagonal, state), map_)
        else:
            moved = times(diagonal, b.gather(state, map_))
    following = b.add(moved, drive)
    build.next("state", following)
    build.emit("states", following)
    build.final("final", "state")
    return build.build()


def _as(value: Value, type_: Type) -> Value:
    """A real value where a complex one is wanted gets a zero imaginary part."""
    if is_complex(type_) and not is_complex(value.type):
        return apply("complex", value, zero_like(real_of(type_)))
    return value


class _Evaluation:
    """A body evaluated over affine forms of one carry."""

    def __init__(self, carry: Carry, start: _Affine, form: Form = "diagonal") -> None:
        self.carry = carry
        self.forms: dict[Value, _Affine] = {carry.value: start}
        self.form: Form = form

    def run(self) -> tuple[Form, _Affine]:
        for value in topological([self.carry.next]):
            if value in self.forms:
                continue
            if not any(arg in self.forms for arg in value.args):
                continue
            rule = _RULES.get(value.op)
            if rule is None:
                raise PassError(f"the step is not affine in the carry: {value.op} of the carry")
            self.forms[value] = rule(self, value)
        result = self.forms.get(self.carry.next)
        if result is None or result.diagonal is None:
            raise PassError("the carry's next value does not depend on the carry")
        return self.form, result

    def of(self, value: Value) -> _Affine:
        """The form of an argument; one without the carry is all offset."""
        return self.forms.get(value, _Affine(None, None, value))

    def claim(self, form: Form) -> None:
        """Enter column or row form; a step in both is neither."""
        if self.form not in ("diagonal", form):
            raise PassError("the step moves the carry both by scatter_add and by gather")
        self.form = form


def _combine(op: str, left: Value | None, right: Value | None) -> Value | None:
    if left is None:
        return right if right is None or op == "add" else apply("neg", right)
    return left if right is None else apply(op, left, right)


def _sum(evaluation: _Evaluation, value: Value) -> _Affine:
    left, right = (evaluation.of(arg) for arg in value.args)
    if left.diagonal is not None and right.diagonal is not None and left.map is not right.map:
        raise PassError(f"{value.op} of two terms that move the carry by different maps")
    map_ = left.map if left.diagonal is not None else right.map
    diagonal = _combine(value.op, left.diagonal, right.diagonal)
    return _Affine(diagonal, map_, _combine(value.op, left.offset, right.offset))


def _negated(evaluation: _Evaluation, value: Value) -> _Affine:
    form = evaluation.of(value.args[0])

    def negate(part: Value | None) -> Value | None:
        return None if part is None else apply("neg", part)

    return _Affine(negate(form.diagonal), form.map, negate(form.offset))


def _product(evaluation: _Evaluation, value: Value) -> _Affine:
    left, right = (arg in evaluation.forms for arg in value.args)
    if left and right:
        raise PassError("the step is not affine in the carry: a product of two terms with it")
    if left and value.op == "scale":
        raise PassError("the step is not affine in the carry: it scales by a term with it")
    form = evaluation.of(value.args[0 if left else 1])
    factor = value.args[1 if left else 0]
    offset = None if form.offset is None else apply(value.op, factor, form.offset)
    if form.diagonal is None:
        return _Affine(None, None, offset)
    # w · P(d · x) = P(w[p] · d · x): a column form's factor is read through the map.
    through_map = evaluation.form == "column" and form.map is not None
    here = apply("gather", factor, form.map) if through_map and form.map is not None else factor
    return _Affine(apply(value.op, here, form.diagonal), form.map, offset)


def _scattered(evaluation: _Evaluation, value: Value) -> _Affine:
    evaluation.claim("column")
    form, map_ = evaluation.of(value.args[0]), value.args[1]
    offset = None if form.offset is None else with_args(value, (form.offset, map_))
    composed = map_ if form.map is None else apply("compose", map_, form.map)
    return _Affine(form.diagonal, composed, offset)


def _gathered(evaluation: _Evaluation, value: Value) -> _Affine:
    evaluation.claim("row")
    form, map_ = evaluation.of(value.args[0]), value.args[1]
    offset = None if form.offset is None else with_args(value, (form.offset, map_))
    composed = map_ if form.map is None else apply("compose", form.map, map_)
    diagonal = None if form.diagonal is None else apply("gather", form.diagonal, map_)
    return _Affine(diagonal, composed, offset)


def _kept(evaluation: _Evaluation, value: Value) -> _Affine:
    form, index = evaluation.of(value.args[0]), value.args[1]

    def keep(part: Value | None) -> Value | None:
        return None if part is None else apply("keep", part, index)

    # One factor for all elements, so it does not matter where a map moves them.
    return _Affine(keep(form.diagonal), form.map, keep(form.offset))


_RULES: dict[str, Callable[[_Evaluation, Value], _Affine]] = {
    "add": _sum,
    "sub": _sum,
    "neg": _negated,
    "mul": _product,
    "scale": _product,
    "scatter_add": _scattered,
    "gather": _gathered,
    "keep": _kept,
}
