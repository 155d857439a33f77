"""TVM, and the modules that TVMScript describes.

What ``tvm.script.from_source`` does in a third of its time, which is most of what it takes to
compile a kernel with TVM. TVM's parser compiles every node of an expression as Python of its own,
notes for each where in the text it stands, and converts the text's tree once more to check the
module. Here an expression is evaluated as it stands. The statements are TVM's.
"""

import builtins
import gc
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cache, reduce
from itertools import pairwise
from typing import Any


def import_tvm() -> Any:
    """TVM, without the hook for uncaught errors that it installs."""
    hook, collects = sys.excepthook, "tvm" not in sys.modules and gc.isenabled()
    if collects:
        # Modules are no garbage: going through torch's again and again is a third of the import.
        gc.disable()
    try:
        import tvm
    finally:
        if collects:
            gc.enable()
    # TVM's hook hides the message of an uncaught error.
    sys.excepthook = hook
    return tvm


def parsed(text: str, names: Mapping[str, Any]) -> Any:
    """The module that a text describes, well-formed.

    Args:
        text: a class that ``I.ir_module`` decorates, of functions that ``T.prim_func`` does.
        names: what it uses and does not define, besides ``I`` and ``T``.

    Raises:
        tvm.error.DiagnosticError: the text is not what kernels are written in; TVM prints where.
        Exception: TVM's own, of a module that is not well-formed.
    """
    tvm = import_tvm()
    from tvm.script import ir, tirx
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.parser.core.diagnostics import Source
    from tvm.script.parser.core.error import ParserError

    parser = _parser_type()(Source(text), {})
    with IRBuilder() as builder:
        try:
            parser.parse({"I": ir, "T": tirx, **names})
        except ParserError as error:
            parser.report_error(error.node, error.args[0])
    module = builder.get()
    tvm.s_tir.analysis.verify_well_formed(module)
    for function in module.functions.values():
        tvm.tirx.analysis.verify_tirx_well_formed(function)
    return module


@cache
def _parser_type() -> Any:
    """TVM's parser, which evaluates expressions as below; made when TVM is imported."""
    from tvm.script.parser.core import doc
    from tvm.script.parser.core.evaluator import _eval_op
    from tvm.script.parser.core.parser import Parser

    nowhere = nullcontext()

    class ExpressionParser(Parser):  # type: ignore[misc]  # (TVM has no types)
        def with_source_span(self, node: Any) -> Any:
            # Where it stands is in no kernel; an error names its statement's place all the same.
            return nowhere

        def eval_expr(self, node: Any, extra_vars: Mapping[str, Any] | None = None) -> Any:
            try:
                return self._value(node, extra_vars or {})
            except Exception as error:
                # It raises.
                return self.report_error(node, error)

        def _value(self, node: Any, own: Mapping[str, Any]) -> Any:
            rule = rules.get(type(node))
            if rule is None:
                raise TypeError(f"no kernel is written with {type(node).__name__}")
            return rule(self, node, own)

        def eval_assign(
            self,
            target: Any,
            source: Any,
            bind_value: Callable[..., Any],
            allow_shadowing: bool = False,
        ) -> dict[str, Any]:
            if not isinstance(target, doc.Name):
                return super().eval_assign(target, source, bind_value, allow_shadowing)
            bound = bind_value(self, target, target.id, source)
            self.var_table.add(target.id, bound, allow_shadowing)
            return {target.id: source}

    def name(parser: ExpressionParser, node: Any, own: Mapping[str, Any]) -> Any:
        if node.id in own:
            return own[node.id]
        values = parser.var_table.name2value.get(node.id)
        if values:
            return values[-1]
        if not hasattr(builtins, node.id):
            raise NameError(f"Undefined variable: {node.id}")
        return getattr(builtins, node.id)

    def call(parser: ExpressionParser, node: Any, own: Mapping[str, Any]) -> Any:
        called = parser._value(node.func, own)
        given = [parser._value(each, own) for each in node.args]
        return called(*given, **{k.arg: parser._value(k.value, own) for k in node.keywords})

    def compare(parser: ExpressionParser, node: Any, own: Mapping[str, Any]) -> Any:
        values = [parser._value(each, own) for each in (node.left, *node.comparators)]
        found = [
            _eval_op(op, [*pair]) for op, pair in zip(node.ops, pairwise(values), strict=True)
        ]
        return reduce(lambda a, b: _eval_op(doc.And(), [a, b]), found)

    def boolean(parser: ExpressionParser, node: Any, own: Mapping[str, Any]) -> Any:
        # Of Python's own it is Python's: what does not count is not evaluated.
        value = parser._value(node.values[0], own)
        for each in node.values[1:]:
            if isinstance(value, bool) and value is isinstance(node.op, doc.Or):
                return value
            value = _eval_op(node.op, [value, parser._value(each, own)])
        return value

    rules: dict[type, Callable[[ExpressionParser, Any, Mapping[str, Any]], Any]] = {
        doc.Name: name,
        doc.Call: call,
        doc.Compare: compare,
        doc.BoolOp: boolean,
        doc.Constant: lambda p, node, own: node.value,
        doc.Attribute: lambda p, node, own: getattr(p._value(node.value, own), node.attr),
        doc.Subscript: lambda p, node, own: p._value(node.value, own)[p._value(node.slice, own)],
        doc.BinOp: lambda p, node, own: _eval_op(
            node.op, [p._value(node.left, own), p._value(node.right, own)]
        ),
        doc.UnaryOp: lambda p, node, own: _eval_op(node.op, [p._value(node.operand, own)]),
        doc.Tuple: lambda p, node, own: tuple(p._value(each, own) for each in node.elts),
        doc.List: lambda p, node, own: [p._value(each, own) for each in node.elts],
        doc.Dict: lambda p, node, own: {
            p._value(key, own): p._value(value, own)
            for key, value in zip(node.keys, node.values, strict=True)
        },
    }
    return ExpressionParser
