"""Values: the nodes of a program's body.

Nodes are interned: two values with the same op, arguments, attributes and type are the same
object. So structural equality is identity, common subexpressions are shared without a pass, a
value nobody reaches from a result does not exist, and the order in which a body was built leaves
no trace.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakValueDictionary

from pdssm_compiler.ir.types import Type

Attributes = tuple[tuple[str, Any], ...]


class Value:
    """One SSA value. Make them with the functions of :mod:`pdssm_compiler.ir.builder`."""

    __slots__ = ("__weakref__", "args", "attributes", "op", "type")

    op: str
    args: tuple["Value", ...]
    attributes: Attributes
    type: Type

    def __repr__(self) -> str:
        attributes = "".join(f", {name}={value!r}" for name, value in self.attributes)
        return f"Value({self.op}{attributes} : {self.type})"

    def attribute(self, name: str) -> Any:
        """The attribute called ``name``; KeyError if the op has none of that name."""
        return dict(self.attributes)[name]

    @property
    def is_leaf(self) -> bool:
        """Whether the value is read (an input or a carry) rather than computed."""
        return self.op in ("input", "carry")

    @property
    def name(self) -> str:
        """The name of the input or carry a leaf reads."""
        return self.attribute("name")


_interned: WeakValueDictionary[tuple, Value] = WeakValueDictionary()
_lock = threading.Lock()


def intern(op: str, args: tuple[Value, ...], attributes: Attributes, type_: Type) -> Value:
    """The one value with these fields.

    The key holds the arguments' identities; an interned value keeps its arguments alive, so an
    identity cannot be reused while a key that mentions it is in the table.
    """
    # repr tells 0.0 from -0.0 and 1 from 1.0, which compare equal.
    key = (op, tuple(map(id, args)), repr(attributes), type_)
    with _lock:
        found = _interned.get(key)
        if found is None:
            found = Value()
            found.op, found.args, found.attributes, found.type = op, args, attributes, type_
            _interned[key] = found
        return found


def topological(roots: Iterable[Value]) -> list[Value]:
    """Every value the roots need, arguments before users, in an order fixed by the roots alone."""
    order: list[Value] = []
    seen: set[Value] = set()
    # An explicit stack: bodies may be deeper than Python's recursion limit.
    stack: list[tuple[Value, bool]] = [(root, False) for root in reversed(list(roots))]
    while stack:
        value, expanded = stack.pop()
        if expanded:
            order.append(value)
        elif value not in seen:
            seen.add(value)
            stack.append((value, True))
            stack.extend((arg, False) for arg in reversed(value.args) if arg not in seen)
    # A value pushed twice before its first visit is expanded once: `seen` is checked at the pop.
    return order


def rebuild(
    roots: Iterable[Value], replace: Callable[[Value, tuple[Value, ...]], Value]
) -> Mapping[Value, Value]:
    """Map every value below the roots through ``replace(value, new_args)``, arguments first."""
    new: dict[Value, Value] = {}
    for value in topological(roots):
        new[value] = replace(value, tuple(new[arg] for arg in value.args))
    return new
