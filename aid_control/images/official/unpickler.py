r"""A pickle interpreter that builds records and calls nothing.

A pickle is a program for a stack machine.  The real machine imports what ``GLOBAL`` names, and calls it at
``REDUCE``, ``NEWOBJ`` and ``BUILD``; this one knows only the opcodes that network files need, looks every name up in an
exact allow-list, and where the real one would call, it writes down a `Record`: what would be called, with what,
and the state and items that follow.  What the records mean is decided afterwards (`storages`, `reader`).

Everything is a loop over the input: nothing recurses, keys of dictionaries and members of sets are strings (hashing
never descends, and cannot be made to collide), and there is no opcode that copies.  So memory is bounded by the input
and the number of opcodes: at most about 250 bytes an opcode, at most ``LIMITS.opcodes`` of them, plus twice the file.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ...errors import InputError

__all__ = ["ALLOWED", "LIMITS", "Global", "Limits", "Persistent", "Record", "interpret"]


@dataclass(frozen=True)
class Limits:
    """Bounds of what is read.

    Attributes:
        file: bytes of a file.
        opcodes: of one pickle.
        tensor: bytes of one tensor or array.
    """

    file: int = 16 * 2**30
    opcodes: int = 1_000_000
    tensor: int = 8 * 2**30


LIMITS = Limits()

_CONTAINERS = ("ModuleDict", "ModuleList", "Sequential")
_STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
ALLOWED: frozenset[tuple[str, str]] = frozenset(
    [
        ("torch_utils.persistence", "_reconstruct_persistent_obj"),
        ("dnnlib.util", "EasyDict"),
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch.storage", "_load_from_bytes"),
        ("_codecs", "encode"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        *(("torch.nn.modules.container", name) for name in _CONTAINERS),
        *(("torch", f"{name}Storage") for name in _STORAGES),
        # numpy 2 renamed numpy.core
        *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    ]
)


@dataclass(frozen=True)
class Global:
    """An allowed name; never imported.

    Attributes:
        module: where it would come from.
        name: what it is called there.
    """

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Record:
    """What the real machine would have made by calling ``maker(*args)``.

    Attributes:
        maker: an allowed name.
        args: its arguments.
        state: what ``BUILD`` would have set; ``None`` without.
        items: what ``SETITEMS`` would have set.
    """

    maker: Global
    args: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Persistent:
    """A persistent id (torch's storages).

    Attributes:
        key: the id, for a storage ("storage", type, key, location, count).
    """

    key: Any


class _Mark:
    """The mark on the stack."""


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _Mark:
            raise ValueError("a mark where a value is expected")
        return value

    def since_mark(self) -> list[Any]:
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _Mark:
                values = self.stack[i + 1 :]
                del self.stack[i:]
                return values
        raise ValueError("no mark on the stack")

    def top(self, kinds: tuple[type, ...]) -> Any:
        if not isinstance(self.stack[-1], kinds):
            raise ValueError(f"{type(self.stack[-1]).__name__} cannot take items")
        return self.stack[-1]

    def lookup(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a global whose name is no string")
        if (module, name) not in ALLOWED:
            raise InputError(f"global {module[:80]}.{name[:80]} is not on the list of what network files need")
        self.stack.append(Global(module, name))

    def record(self, maker: Any, args: Any) -> None:
        if not isinstance(maker, Global) or not isinstance(args, tuple):
            raise ValueError("a call of something that is no allowed name")
        self.stack.append(Record(maker, args))

    def set_items(self, pairs: list[Any]) -> None:
        target = self.top((dict, Record))
        items = target.items if isinstance(target, Record) else target
        if len(pairs) % 2:
            raise ValueError("a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            items[_plain(key)] = value

    def build(self) -> None:
        state, target = self.pop(), self.top((Record,))
        if target.state is not None:
            raise ValueError("a second state for one object")
        target.state = state

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def put(self, index: int) -> None:
        if self.stack[-1] is _Mark:
            raise ValueError("a mark in the memo")
        self.memo[index] = self.stack[-1]


def _plain(key: Any) -> Any:
    # Strings are hashed with a secret of the process; numbers can be chosen such that all their hashes are equal.
    if not isinstance(key, str):
        raise ValueError(f"{type(key).__name__} as a key; expected a string")
    return key


def _pushing(value: Callable[[Any], Any]) -> Callable[[_Machine, Any], None]:
    return lambda m, arg: m.stack.append(value(arg))


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    def run(m: _Machine, arg: Any) -> None:
        values = [m.pop() for _ in range(count)]
        m.stack.append(tuple(reversed(values)))

    return run


def _two(use: Callable[[_Machine, Any, Any], None]) -> Callable[[_Machine, Any], None]:
    def run(m: _Machine, arg: Any) -> None:
        second, first = m.pop(), m.pop()
        use(m, first, second)

    return run


def _global(m: _Machine, arg: str) -> None:
    m.lookup(*arg.split(" ", 1))


def _append(m: _Machine, arg: Any) -> None:
    value = m.pop()
    m.top((list,)).append(value)


def _appends(m: _Machine, arg: Any) -> None:
    values = m.since_mark()
    m.top((list,)).extend(values)


def _add(m: _Machine, arg: Any) -> None:
    values = m.since_mark()
    m.top((set,)).update(map(_plain, values))


def _set_item(m: _Machine, arg: Any) -> None:
    value, key = m.pop(), m.pop()
    m.set_items([key, value])


def _nothing(m: _Machine, arg: Any) -> None:
    return None


_SAME = _pushing(lambda arg: arg)
OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _SAME),
    **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _SAME),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"), _SAME),
    "NONE": _pushing(lambda arg: None),
    "NEWTRUE": _pushing(lambda arg: True),
    "NEWFALSE": _pushing(lambda arg: False),
    "EMPTY_DICT": _pushing(lambda arg: {}),
    "EMPTY_LIST": _pushing(lambda arg: []),
    "EMPTY_SET": _pushing(lambda arg: set()),
    "EMPTY_TUPLE": _pushing(lambda arg: ()),
    "MARK": _pushing(lambda arg: _Mark),
    "TUPLE": lambda m, arg: m.stack.append(tuple(m.since_mark())),
    **{f"TUPLE{n}": _tuple(n) for n in (1, 2, 3)},
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _add,
    "SETITEM": _set_item,
    "SETITEMS": lambda m, arg: m.set_items(m.since_mark()),
    "GLOBAL": _global,
    "STACK_GLOBAL": _two(lambda m, module, name: m.lookup(module, name)),
    "REDUCE": _two(lambda m, maker, args: m.record(maker, args)),
    "NEWOBJ": _two(lambda m, maker, args: m.record(maker, args)),
    "BUILD": lambda m, arg: m.build(),
    "BINPERSID": lambda m, arg: m.stack.append(Persistent(m.pop())),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, arg: m.get(arg)),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda m, arg: m.put(arg)),
    "MEMOIZE": lambda m, arg: m.put(len(m.memo)),
}


def interpret(stream: BinaryIO, limits: Limits = LIMITS) -> Any:
    """Run one pickle; the stream is left behind its ``STOP``.

    Args:
        stream: a seekable binary stream.
        limits: bounds.

    Returns:
        Plain values, `Record`, `Global`, `Persistent`, in lists, tuples, sets and dictionaries;
        may be cyclic, as pickles may.

    Raises:
        InputError: for an unlisted global or opcode, more opcodes than allowed, and every malformed stream.
    """
    machine, count = _Machine(), 0
    operations: Iterable[Any] = pickletools.genops(stream)
    try:
        for opcode, arg, _ in operations:
            count += 1
            if count > limits.opcodes:
                raise InputError(f"pickle has more than {limits.opcodes} opcodes; expected a network file")
            if opcode.name == "STOP":
                return machine.pop()
            if opcode.name not in OPCODES:
                raise InputError(f"pickle uses opcode {opcode.name}; expected those of network files")
            OPCODES[opcode.name](machine, arg)
    except InputError:
        raise
    except Exception as error:  # whatever a hostile stream makes of the machine is one thing to the caller
        raise InputError(f"pickle is damaged ({type(error).__name__}: {str(error)[:100]})") from error
    raise InputError("pickle ends without a result")
