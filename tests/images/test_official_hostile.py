"""Network files made to do harm: each is refused in a sentence, without running, growing or taking long.

The files are put together opcode by opcode, for no pickle library would write them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

MEGABYTE = 1 << 20
SECONDS = 5.0
GROWN = 512 * MEGABYTE  # of the process by one file, while a million opcodes are allowed
HASH = 2**61 - 1  # Python's integers hash modulo this prime

CASES: dict[str, tuple[Callable[[], bytes], str]] = {}


def case(message: str = "") -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    """Registers a file and a word of the sentence that refuses it."""

    def register(make: Callable[[], bytes]) -> Callable[[], bytes]:
        CASES[make.__name__] = (make, message)
        return make

    return register


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def binary(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def dict_of(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return name(module, attribute) + tuple_of(*arguments) + b"R"


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


FLOATS = name("torch", "FloatStorage")


def blob(numbers: int = 4, before: bytes = b"", count: int | None = None, kind: bytes = FLOATS) -> bytes:
    """A storage in the old layout; what ``before`` makes stays on the stack of its pickle."""
    count = numbers if count is None else count
    identity = tuple_of(text("storage"), kind, text("0"), text("cpu"), number(count), b"N")
    pickles = (number(0x1950A86A20F9469CFC6C), number(1001), b"}", before + identity + b"Q", b"]" + text("0") + b"a")
    return b"".join(b"\x80\x02" + one + b"." for one in pickles) + struct.pack("<q", count) + bytes(4 * numbers)


def tensor(storage: bytes = b"", offset: int = 0, size: tuple = (4,), stride: tuple = (1,)) -> bytes:
    holder = call("torch.storage", "_load_from_bytes", storage or binary(blob()))
    shape, steps = (tuple_of(*map(number, values)) for values in (size, stride))
    hooks = call("collections", "OrderedDict")
    return call("torch._utils", "_rebuild_tensor_v2", holder, number(offset), shape, steps, b"\x89", hooks)


def module(parameters: bytes = b"}", modules: bytes = b"}", kwargs: bytes = b"}", source: bytes = text("")) -> bytes:
    state = {"_parameters": parameters, "_buffers": b"}", "_modules": modules, "_init_args": b")"}
    state["_init_kwargs"] = kwargs
    meta = {"type": text("class"), "module_src": source, "class_name": text("EDMPrecond"), "state": dict_of(**state)}
    return call("torch_utils.persistence", "_reconstruct_persistent_obj", dict_of(**meta))


def file(network: bytes = b"", before: bytes = b"") -> bytes:
    """A network file; what ``before`` makes stays on the stack beneath it."""
    return b"\x80\x04" + before + dict_of(ema=network or module(dict_of(weight=tensor()))) + b"."


def weight(value: bytes) -> bytes:
    return file(module(dict_of(weight=value)))


def setting(value: bytes) -> bytes:
    return file(module(dict_of(weight=tensor()), kwargs=dict_of(a=value)))


def array(kind: bytes, state: bytes) -> bytes:
    core = "numpy.core.multiarray"
    start = call(core, "_reconstruct", name("numpy", "ndarray"), tuple_of(number(0)), binary(b"b"))
    return start + tuple_of(number(1), tuple_of(number(2)), kind, b"\x89", state) + b"b"


@case("os.system")
def runs_a_program() -> bytes:
    return weight(call("os", "system", text("exit 1")))


@case("posix.system")
def runs_a_program_protocol_0() -> bytes:
    return b"cposix\nsystem\n(S'exit 1'\ntR."


@case("builtins.eval")
def evaluates() -> bytes:
    return setting(call("builtins", "eval", text("1 + 1")))


@case("builtins.getattr")
def takes_attributes() -> bytes:
    return setting(call("builtins", "getattr", name("torch", "FloatStorage"), text("__init__")))


@case("numpy.load")
def loads_through_numpy() -> bytes:
    return setting(call("numpy", "load", text("file.npy")))


@case("torch._utils.sys")
def walks_through_an_allowed_module() -> bytes:
    return setting(name("torch._utils", "sys.modules"))


@case("no persistent object")
def network_is_a_name() -> bytes:
    return file(name("torch_utils.persistence", "_reconstruct_persistent_obj"))


@case("INST")
def old_instance() -> bytes:
    return b"(" + text("exit 1") + b"ios\nsystem\n."


@case("OBJ")
def old_object() -> bytes:
    return b"(" + name("collections", "OrderedDict") + b"o."


@case("EXT1")
def extension_registry() -> bytes:
    return b"\x80\x04\x82\x01."


@case("call of something")
def calls_a_string() -> bytes:
    return setting(text("os.system") + tuple_of(text("exit 1")) + b"R")


@case("call of something")
def calls_a_result() -> bytes:
    return setting(call("collections", "OrderedDict") + b")R")


@case("os.system")
def code_in_the_storage() -> bytes:
    return weight(tensor(binary(blob(before=call("os", "system", text("exit 1"))))))


@case("tensor")
def storage_is_a_plain_pickle() -> bytes:
    return weight(tensor(binary(b"\x80\x02N.")))


@case("list where")
def numbers_that_are_lists() -> bytes:
    return weight(tensor(b"]"))


@case("size")
def claims_more_than_there_is() -> bytes:
    return weight(tensor(size=(2**39, 2**39), stride=(1, 1)))


@case("size")
def reads_behind_the_end() -> bytes:
    return weight(tensor(offset=1))


@case("offset")
def reads_before_the_start() -> bytes:
    return weight(tensor(offset=-1))


@case("stride")
def steps_backwards() -> bytes:
    return weight(tensor(size=(4,), stride=(-1,)))


@case("size")
def expands_one_number() -> bytes:
    return weight(tensor(size=(2**20, 2**10), stride=(0, 0)))


@case("different lengths")
def size_without_strides() -> bytes:
    return weight(tensor(stride=()))


@case()
def empty_but_enormous() -> bytes:
    return weight(tensor(size=(0, 2**39, 2**39, 2**39), stride=(1, 1, 1, 1)))


@case("numbers")
def storage_longer_than_announced() -> bytes:
    return weight(tensor(binary(blob(count=3))))


@case("numbers")
def storage_shorter_than_announced() -> bytes:
    return weight(tensor(binary(blob(count=2**60))))


@case("kind of storage")
def storage_of_objects() -> bytes:
    return weight(tensor(binary(blob(kind=name("numpy", "ndarray")))))


@case()
def object_array() -> bytes:
    return setting(array(call("numpy", "dtype", text("O8"), b"\x89", b"\x88"), b"]" + call("os", "getpid") + b"a"))


@case("another type")
def object_dtype() -> bytes:
    return setting(array(call("numpy", "dtype", text("O"), b"\x89", b"\x88"), binary(bytes(16))))


@case("another type")
def structured_dtype() -> bytes:
    return setting(array(call("numpy", "dtype", text("V16"), b"\x89", b"\x88"), binary(bytes(32))))


@case("bytes for an array")
def array_longer_than_its_bytes() -> bytes:
    return setting(array(call("numpy", "dtype", text("f8"), b"\x89", b"\x88"), binary(bytes(8))))


@case("damaged")
def declares_exabytes() -> bytes:
    return b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc."


@case("damaged")
def declares_gigabytes_of_text() -> bytes:
    return b"\x80\x04X\xff\xff\xff\xff" + b"abc."


@case()
def nested_200_000_lists() -> bytes:
    return file(b"]" * 200_000 + b"a" * 199_999)


@case()
def nested_200_000_tuples() -> bytes:
    return file(b"N" + b"\x85" * 200_000)


@case()
def nested_100_000_calls() -> bytes:
    return file(name("collections", "OrderedDict") + put(0) + get(0) * 99_999 + b"N" + b"\x85R" * 100_000)


@case("key")
def nested_keys() -> bytes:
    return b"\x80\x04})" + b"\x85" * 100_000 + b"Ns."


@case("nest")
def module_holds_itself() -> bytes:
    network = module(modules=b"}" + put(0)) + put(1)
    return file(get(1), before=network + get(0) + text("again") + get(1) + b"s")


@case("opcodes")
def two_million_opcodes() -> bytes:
    return b"\x80\x04" + b"N" * 2_000_000 + b"."


@case("opcodes")
def million_sets() -> bytes:
    return b"\x80\x04(" + b"\x8f" * 1_500_000 + b"t."


@case("opcodes")
def memo_bomb() -> bytes:
    return b"\x80\x04N" + b"\x94" * 1_500_000 + b"."


@case()
def memo_index_of_four_billion() -> bytes:
    return b"\x80\x04Nr\xff\xff\xff\xffj\xff\xff\xff\xff."


@case()
def laughs_a_billion_times() -> bytes:
    """Lists that hold the one before ten thousand times."""
    levels = b"]" + put(0) + b"".join(b"]" + put(i) + b"(" + get(i - 1) * 10_000 + b"e" for i in range(1, 7))
    return setting(tuple_of(levels))


def sharing(value: bytes, times: int) -> bytes:
    """A module whose parameters are all one object."""
    entries = b"".join(text(f"w{i}") + get(1) for i in range(times))
    first = text("first") + value + put(1)
    return file(module(b"}(" + first + entries + b"u"))


@case()
def one_tensor_under_many_names() -> bytes:
    return sharing(tensor(binary(blob(2**20)), size=(2**20,)), 5_000)


@case()
def one_slow_storage_under_many_names() -> bytes:
    return sharing(tensor(binary(blob(before=b"}" + b"NNs" * 100_000))), 5_000)


@case()
def modules_share_modules() -> bytes:
    """Thirty levels of modules that hold the next one twice: a billion names."""
    levels = module(dict_of(w=tensor())) + put(0)
    for i in range(1, 30):
        levels += module(modules=dict_of(a=get(i - 1), b=get(i - 1))) + put(i)
    return file(get(29), before=levels)


@case()
def names_of_a_megabyte() -> bytes:
    entries = b"".join(text(f"w{i}") + get(0) for i in range(2_000))
    inner = module(b"}(" + entries + b"u")
    return file(module(modules=dict_of(**{"n" * MEGABYTE: inner})), before=tensor() + put(0))


@case()
def names_of_names() -> bytes:
    """A module that holds itself three hundred thousand times: one level of it is the whole memory."""
    entries = b"".join(text(f"{i}") + get(1) for i in range(300_000))
    network = module(modules=b"}" + put(0)) + put(1)
    return file(get(1), before=network + get(0) + b"(" + entries + b"u")


@case()
def parameters_that_are_none() -> bytes:
    """Nothing, three hundred thousand times, in each of fifty thousand modules."""
    nothing = b"".join(text(f"{i}") + b"N" for i in range(300_000))
    child = module(b"}(" + nothing + b"u") + put(0)
    return file(module(modules=b"}(" + b"".join(text(f"{i}") + get(0) for i in range(50_000)) + b"u"), before=child)


@case()
def keys_of_a_megabyte() -> bytes:
    one = b"}" + binary(bytes(MEGABYTE)) + b"Ns" + put(0)
    return setting(tuple_of(one, b"(" + get(0) * 50_000 + b"t"))


@case()
def texts_of_a_megabyte() -> bytes:
    one = text("a" * MEGABYTE) + put(0)
    return setting(tuple_of(one, b"(" + get(0) * 50_000 + b"t"))


@case()
def settings_under_many_names() -> bytes:
    """Five thousand settings that are one list of ninety thousand numbers."""
    one = b"](" + b"K\0" * 90_000 + b"e" + put(0)
    others = b"".join(text(f"{i}") + get(0) for i in range(5_000))
    network = module(dict_of(weight=tensor()))
    return b"\x80\x04" + one + b"}(" + text("ema") + network + others + b"u."


@case()
def encoder_with_settings_under_many_names() -> bytes:
    one = b"](" + b"K\0" * 90_000 + b"e" + put(0)
    state = b"}(" + b"".join(text(f"{i}") + get(0) for i in range(5_000)) + b"u"
    meta = dict_of(class_name=text("StandardRGBEncoder"), state=state)
    encoder = call("torch_utils.persistence", "_reconstruct_persistent_obj", meta)
    network = module(dict_of(weight=tensor()))
    return b"\x80\x04" + one + dict_of(ema=network, encoder=encoder) + b"."


@case("archive")
def archive_of_many_members() -> bytes:
    """Half a million entries of an archive's directory, each ten times as large when it is read."""
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"a"
    count, start = 500_000, b"PK\x03\x04" + bytes(26)
    end = b"PK\x05\x06" + bytes(4) + b"\xff\xff\xff\xff" + struct.pack("<LL", count * len(entry), len(start)) + bytes(2)
    return weight(tensor(binary(start + entry * count + end)))


@case()
def integers_of_one_hash() -> bytes:
    return setting(b"}(" + b"".join(number(i * HASH) + b"N" for i in range(1, 60_000)) + b"u")


@case()
def members_of_one_hash() -> bytes:
    return setting(b"\x8f(" + b"".join(number(i * HASH) for i in range(1, 60_000)) + b"\x90")


@case("aaa")
def name_of_32_megabytes() -> bytes:
    return setting(name("a" * (32 * MEGABYTE), "b"))


@case()
def no_end() -> bytes:
    return file()[:-1]


@case()
def mark_as_the_result() -> bytes:
    return b"\x80\x04(."


@case()
def stack_underflow() -> bytes:
    return b"\x80\x04\x93."


@pytest.fixture(scope="module")
def outcomes(watched, tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("hostile")
    for title, (make, _) in CASES.items():
        (folder / f"{title}.pkl").write_bytes(make())
    (folder / "harmless.pkl").write_bytes(file())
    (folder / "array.pkl").write_bytes(setting(ARRAY))
    for title in ("harmless", "array"):
        (folder / f"{title}.warm").write_bytes((folder / f"{title}.pkl").read_bytes())
    return watched(folder, timeout=600)["files"]


ARRAY = array(call("numpy", "dtype", text("f4"), b"\x89", b"\x88"), binary(bytes(8)))


@pytest.mark.parametrize("title", ["harmless", "array"])
def test_the_harmless_form_is_read(title, outcomes):
    """What the hostile files are made of is not refused by itself."""
    assert outcomes[title]["kind"] == "read", outcomes[title]["message"]


@pytest.mark.parametrize("title", CASES)
def test_hostile_file_is_refused(title, outcomes):
    found = outcomes[title]
    assert found["kind"] == "InputError", found["message"]
    assert CASES[title][1] in found["message"]
    assert f"{title}.pkl" in found["message"]
    assert not any(word in found["message"] for word in ("MemoryError", "RecursionError", "\n"))
    assert found["seconds"] < SECONDS
    assert found["grown"] < GROWN, f"{found['grown'] / MEGABYTE:.0f} MB"
    assert not found["events"]
