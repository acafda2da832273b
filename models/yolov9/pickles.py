"""A pickle interpreter that runs nothing: the few instructions a checkpoint needs, on inert records.

What it builds: a global is its name, an object is a `Shell` with a dictionary, a tensor is a reference into
the archive. Nothing named in a file is ever imported or called, and any name that no checkpoint needs stops
the reading with `UnsafeCheckpoint` (specification, section 9).
"""

from __future__ import annotations

import pickletools
import re
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch

from models.errors import UnsafeCheckpoint

MAX_NAMES = 64  # distinct globals; an official file needs at most 35


@dataclass(frozen=True)
class Name:
    """A global of the file: only ever its name."""

    full: str


@dataclass(eq=False)
class Shell:
    """An object of the file: the name of its class and its attributes."""

    name: str
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Storage:
    dtype: torch.dtype
    key: str  # archive entry <root>data/<key>
    size: int  # elements


@dataclass(frozen=True)
class Stored:
    """A tensor of the file, not read yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


_DTYPES = {
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_CLASSES = re.compile(r"models\.(?:yolo|common)\.[A-Z]\w*|torch\.nn\.modules\.[a-z_]+\.[A-Z]\w*", re.ASCII)
_BUILT = {
    "collections.OrderedDict",
    "builtins.set",
    "torch.Size",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
}
# Calls that an unstripped training file makes (NumPy fitness, paths and devices among the options). None of
# them concerns the weights, so each becomes an empty shell.
_IGNORED = {
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "torch.device",
}
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}


class Machine:
    """Interprets a pickle into inert records. Instructions that no checkpoint needs are refused."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.names: set[str] = set()

    def run(self, data: bytes) -> Any:
        for op, argument, _ in pickletools.genops(data):
            if op.name == "STOP":
                return self.stack.pop()
            if op.name in _VALUES:
                self.stack.append(argument)
            elif op.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[op.name])
            elif op.name in _CONTAINERS:
                self.stack.append(_CONTAINERS[op.name]())
            else:
                self.step(op.name, argument)
        raise EOFError

    def step(self, op: str, argument: Any) -> None:
        match op:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(self.stack))
            case "POP":
                self.stack.pop()
            case "POP_MARK":
                self.since_mark()
            case "TUPLE":
                self.stack.append(tuple(self.since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self.pop(int(op[-1]))))
            case "APPEND":
                self.append(self.pop(1))
            case "APPENDS" | "ADDITEMS":
                self.append(self.since_mark())
            case "SETITEM":
                self.set_items(self.pop(2))
            case "SETITEMS":
                self.set_items(self.since_mark())
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                self.stack.append(self.memo[argument])
            case "GLOBAL":
                self.stack.append(self.named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                self.stack.append(self.named(*self.pop(2)))
            case "NEWOBJ":
                self.stack.append(self.new(*self.pop(2)))
            case "REDUCE":
                self.stack.append(self.call(*self.pop(2)))
            case "BUILD":
                self.build(self.stack.pop())
            case "BINPERSID":
                self.stack.append(self.storage(self.stack.pop()))
            case _:
                raise self.refused(f"the pickle instruction {op}")

    def named(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.refused("a name that is not text")
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        known = full in _BUILT or full in _IGNORED or full in _DTYPES or _CLASSES.fullmatch(full)
        if not known or "." in name:  # a dotted name would reach through a module to what it imports
            raise self.refused(ascii(full[:80]))
        self.names.add(full)
        if len(self.names) > MAX_NAMES:
            raise self.refused(f"more than {MAX_NAMES} different names")
        return Name(full)

    def new(self, cls: Any, args: Any) -> Shell:
        if not isinstance(cls, Name) or not _CLASSES.fullmatch(cls.full) or args != ():
            raise self.refused(f"an object made from {self.label(cls)}")
        return Shell(cls.full)

    def call(self, function: Any, args: Any) -> Any:
        if not isinstance(function, Name) or not isinstance(args, tuple):
            raise self.refused(f"a call of {self.label(function)}")
        match function.full:
            case "torch._utils._rebuild_tensor_v2":
                return _tensor_record(*args[:4])
            case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state":
                return args[0]
            case "torch.Size":
                return tuple(args[0])
            case "builtins.set":
                return {_key(item) for items in args for item in items}
            case "collections.OrderedDict":
                return {_key(key): value for items in args for key, value in items}
            case name if name in _IGNORED:
                return Shell(name)
        raise self.refused(f"a call of {function.full}")

    def build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            return  # attributes of an OrderedDict: `_metadata` of a state dict
        if not isinstance(target, Shell):
            raise self.refused(f"attributes set on {self.label(target)}")
        for part in state if isinstance(state, tuple) and target.name not in _IGNORED else (state,):
            if isinstance(part, dict):
                target.state.update(part)

    def storage(self, identity: Any) -> Storage:
        kind, marker, key, _, size = identity
        if kind != "storage" or not isinstance(marker, Name) or marker.full not in _DTYPES:
            raise self.refused("a foreign reference in place of a tensor")
        if not re.fullmatch(r"[0-9]{1,9}", key) or not isinstance(size, int) or size < 0:
            raise ValueError("storage")
        return Storage(_DTYPES[marker.full], key, size)

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("stack")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(map(_key, items))
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise self.refused(f"items added to {self.label(target)}")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise self.refused(f"items set on {self.label(target)}")
        target.update((_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))

    def label(self, value: Any) -> str:
        return value.full if isinstance(value, Name) else f"a {type(value).__name__.strip('_').lower()}"

    def refused(self, what: str) -> UnsafeCheckpoint:
        return UnsafeCheckpoint(
            f"{self.file} contains {what}, which no YOLOv9 checkpoint needs and which could run code; "
            "nothing in it was run. Use a .safetensors file, or one saved with "
            "torch.save(model.state_dict(), ...)."
        )


def _key(value: Any) -> str | int | float | bytes | None:
    """Only scalars are hashed: the hash of a deeply nested tuple overflows the C stack."""
    if value is None or isinstance(value, str | int | float | bytes):
        return value
    raise TypeError("key")


def _tensor_record(storage: Any, offset: Any, shape: Any, stride: Any) -> Stored:
    """A tensor record, checked to lie inside its storage and not to expand it."""
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError("tensor")
    end = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) + 1
    count = prod(shape)
    if len(shape) > 8 or count > storage.size or (count and end > storage.size):
        raise ValueError("tensor outside its storage")
    return Stored(storage, offset, tuple(shape), tuple(stride))
