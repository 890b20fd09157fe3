"""How compiled code sees an engine: as one pointer to a list of addresses and shapes.

Numba passes a tuple of arrays as some two hundred words, which every call copies and every function has to be compiled
with. An engine therefore has a type of its own, of a single word, whose attributes are the arrays.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.imputils import lower_getattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import NativeValue, intrinsic, models, register_model, typeof_impl, unbox
from numba.np.numpy_support import from_dtype

from .state import ARRAYS, Engine

WORD = ir.IntType(64)
SHAPES = {name: (from_dtype(dtype), dimensions) for name, (dtype, dimensions) in ARRAYS.items()}
FIRST_WORD: dict[str, int] = {}
for _name, (_, _dimensions) in SHAPES.items():
    FIRST_WORD[_name] = sum(1 + SHAPES[before][1] for before in FIRST_WORD)


class EngineType(types.Type):
    """The type of an engine."""

    def __init__(self) -> None:
        super().__init__(name="Engine")


ENGINE = EngineType()


@register_model(EngineType)
class EngineModel(models.PrimitiveModel):
    """A pointer to words."""

    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, WORD.as_pointer())


@typeof_impl.register(Engine)
def _typeof(value: Engine, context: Any) -> EngineType:
    return ENGINE


@unbox(EngineType)
def _unbox(typ: EngineType, value: Any, context: Any) -> NativeValue:
    number = context.pyapi.object_getattr_string(value, "address")
    word = context.pyapi.number_as_ssize_t(number)
    context.pyapi.decref(number)
    return NativeValue(context.builder.inttoptr(word, WORD.as_pointer()))


@infer_getattr
class EngineAttributes(AttributeTemplate):
    """Types of the arrays."""

    key = EngineType

    def generic_resolve(self, engine: EngineType, name: str) -> Any:
        """The type of array ``name``."""
        dtype, dimensions = SHAPES[name]
        return types.Array(dtype, dimensions, "C")


@lower_getattr_generic(EngineType)
def _attribute(context: Any, builder: Any, typ: EngineType, value: Any, name: str) -> Any:
    dtype, dimensions = SHAPES[name]
    array_type = types.Array(dtype, dimensions, "C")
    invariant = builder.module.add_metadata([])

    def word(number: int) -> Any:
        loaded = builder.load(builder.gep(value, [ir.Constant(WORD, FIRST_WORD[name] + number)]))
        loaded.set_metadata("invariant.load", invariant)  # Arrays never move while compiled code runs.
        return loaded

    array = context.make_array(array_type)(context, builder)
    shape = [word(1 + axis) for axis in range(dimensions)]
    itemsize = ir.Constant(WORD, context.get_abi_sizeof(context.get_data_type(dtype)))
    strides = [itemsize]
    for extent in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], extent))
    data = builder.inttoptr(word(0), array.data.type)
    context.populate_array(array, data=data, shape=shape, strides=strides, itemsize=itemsize, meminfo=None)
    return array._getvalue()


@intrinsic
def engine_at(typing_context: Any, address: Any) -> Any:
    """The engine whose words are at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], WORD.as_pointer())

    return ENGINE(types.int64), generate
