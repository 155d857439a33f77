"""Values are interned: structural equality is identity."""

import gc
import threading
import weakref

import pytest

from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.ops import apply
from pdssm_compiler.ir.program import Input
from pdssm_compiler.ir.types import Vector
from pdssm_compiler.ir.value import Value, intern, rebuild, topological

VECTOR = Vector("f64")


def leaf(name: str) -> Value:
    return Input(name, VECTOR).value


def test_equal_fields_are_one_object() -> None:
    x, y = leaf("x"), leaf("y")
    assert leaf("x") is x
    assert b.add(b.mul(x, y), 1.0) is b.add(b.mul(x, y), 1.0)


def test_any_other_field_is_another_object() -> None:
    x, y = leaf("x"), leaf("y")
    values = [x, y, b.add(x, y), b.add(y, x), b.sub(x, y), b.neg(x)]
    values += [Input("x", Vector("f32")).value, intern("carry", (), (("name", "x"),), VECTOR)]
    assert len({id(value) for value in values}) == len(values)


def test_constants_that_compare_equal_are_kept_apart() -> None:
    assert b.constant(0.0) is not b.constant(-0.0)
    assert b.constant(0.0) is not b.constant(0.0, 64)
    assert b.constant(float("nan")) is b.constant(float("nan"))
    assert intern("test", (), (("n", 1),), VECTOR) is not intern("test", (), (("n", 1.0),), VECTOR)


def test_a_value_nobody_holds_does_not_exist() -> None:
    # A name of its own: values are interned, so another test may hold an equal one.
    value = b.function("exp", leaf("held_by_nobody"))
    reference = weakref.ref(value)
    del value
    gc.collect()
    assert reference() is None


def test_a_value_keeps_its_arguments() -> None:
    inner = b.function("exp", leaf("x"))
    reference = weakref.ref(inner)
    outer = b.neg(inner)
    del inner
    gc.collect()
    assert outer.args == (reference(),)


def test_threads_intern_the_same_objects() -> None:
    barrier, found = threading.Barrier(4), []

    def build() -> None:
        barrier.wait()
        value = leaf("x")
        made = []
        for i in range(200):
            value = b.add(b.function("tanh", value), float(i))
            made.append(value)
        found.append(made)

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(made == found[0] for made in found)


def test_attribute_and_name() -> None:
    assert b.constant(2.5).attribute("value") == 2.5
    assert leaf("x").name == "x"
    with pytest.raises(KeyError):
        leaf("x").attribute("value")


def test_repr_says_op_attributes_and_type() -> None:
    assert repr(b.constant(2.5)) == "Value(constant, value=2.5, element='f32' : f32)"


def test_topological_puts_arguments_first_once_in_the_roots_order() -> None:
    x, y = leaf("x"), leaf("y")
    product = b.mul(x, y)
    total = b.add(product, x)
    assert topological([total, product]) == [x, y, product, total]
    assert topological([y, total]) == [y, x, product, total]
    assert topological([b.sub(y, x)]) == [y, x, b.sub(y, x)]


def test_topological_goes_deeper_than_pythons_recursion() -> None:
    value = leaf("x")
    for _ in range(5000):
        value = apply("neg", value)
    assert len(topological([value])) == 5001


def test_rebuild_maps_arguments_before_users() -> None:
    x, y = leaf("x"), leaf("y")
    root = b.neg(b.mul(x, x))

    def replace(value: Value, args: tuple[Value, ...]) -> Value:
        if value.is_leaf:
            return y
        return apply(value.op, *args)

    new = rebuild([root], replace)
    assert new[root] is b.neg(b.mul(y, y))
    assert set(new) == {x, b.mul(x, x), root}
