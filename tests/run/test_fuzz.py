"""Files of which a part was mutated, with a checksum that is right.

- The block: the place and the length of the header. The file is refused, or read as
  before.
- The structure of HDF5, which is all bytes that are neither in the header nor in an
  array. The file is read as before.
- Values in the header, its list of arrays (places, types, shapes, attributes, names),
  or single bytes of its text. Then another value may be valid, and the only requirement
  is that nothing but `CheckpointError` is raised.
- Bytes of arrays. Then other numbers may be valid, in arrays of the same structure.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.nested import DeadPoints
from batchkit.run import Seconds

from ..nested.perfect import peak, result, sample
from .sealed import header_of, header_place, seal


FILES = 10_002
# More of the list of arrays, by which a file is read.
KINDS = ("values", "contents", "contents", "text", "arrays", "structure", "block")
OUTCOMES = {"structure": ("the same",), "block": ("refused", "the same")}
TYPES = (
    *("<f8", ">f8", "<f4", "<f2", "<i8", "<u4", "<u2", "|u1", "|i1", "|b1", "<c16"),
    *("bfloat16", "int4", "float8_e5m2", "O", "|V8", "<M8[s]", "f8,f8", "(2,", "", 8),
)


def nested(path: Path) -> None:
    dead = sample(peak(), 0, 20, num_delete=4)
    u = dead.positions["u"]
    positions = {
        "u": u,
        "types": (u.astype(jnp.bfloat16), u > 0.5, u + 1j, u.astype("f2")),
        "more": [(9 * u).astype(x) for x in ("i1", "u2", "i4", "u8", ">f8")],
        "empty": np.zeros((len(u), 0)),
    }
    numbers = dead.loglikelihood, dead.loglikelihood_birth, dead.logprior
    run = result(DeadPoints(positions, *numbers), key=jax.random.key(3))
    run.save(path)


def chains(path: Path) -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4, 8))
    bk.ChainRun(
        {"x": draws, "y": [draws[..., None]]},
        logdensity=draws,
        diverging=np.zeros((4, 8), int),
        step_size=np.ones(4),
    ).save(path)


def shards(path: Path) -> None:
    draws = np.random.default_rng(0).normal(size=(2, 2, 8))
    seconds = Seconds(1.0, 2.0, 3.0)
    tried = bk.shards.ShardTry(0, 0.8, 0.0, True, True, "", seconds)
    bk.ShardRun(
        [
            bk.ChainRun({"x": x, "y": [x[..., ::-1, None] ** 2]}, logdensity=x)
            for x in draws
        ],
        tries=[(tried,), (tried,)],
        gradients_fn=lambda used: lambda position: position,
        refine=False,
    ).save(path)


def of_chains(run: bk.ChainRun) -> tuple[Any, Any]:
    """Return arrays of a result, and all else."""
    arrays = run.samples, run.logdensity, run.diverging, run.step_size
    return arrays, (run.warnings, run.seconds, run.max_tree_depth, run.provenance)


def everything(run: Any) -> list[Any]:
    """Return all values of a result, as bytes and text."""
    if isinstance(run, bk.NestedRun):
        dead = run.dead
        arrays = (
            dead.positions,
            dead.loglikelihood,
            dead.loglikelihood_birth,
            dead.logprior,
            jax.random.key_data(run.key),
        )
        words = run.num_steps, run.num_evaluations, run.converged, run.stop_reason
        numbers = *words, run.warnings, run.seconds, run.settings
    elif isinstance(run, bk.ShardRun):
        check = vars(run.gradient_check) if run.gradient_check else {}
        arrays = (
            run.samples,
            [of_chains(x)[0] for x in run.shards],
            run.shift,
            {name: x for name, x in check.items() if isinstance(x, np.ndarray)},
        )
        words = check.get("names"), check.get("num_draws"), run.combine, run.warnings
        chains = [of_chains(x)[1] for x in run.shards]
        numbers = *words, chains, run.tries, run.used, run.left_out
    else:
        arrays, numbers = of_chains(run)
    leaves, treedef = jax.tree.flatten(arrays)
    return [
        str(treedef),
        repr(numbers),
        *((str(x.dtype), x.shape, np.asarray(x).tobytes()) for x in leaves),
    ]


def structure_of(values: list[Any]) -> list[Any]:
    """Return the pytree, types and shapes of the values of `everything`."""
    return [values[0], *(x[:2] for x in values[2:])]


SOURCES: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "nested": (nested, bk.NestedRun.load),
    "chains": (chains, bk.ChainRun.load),
    "shards": (shards, bk.ShardRun.load),
}


def parts_of(data: bytes) -> dict[str, np.ndarray]:
    """Return the places of the bytes of a file after its block, by their meaning."""
    kinds = np.full(len(data), "structure")
    kinds[:512] = "block"
    for place, _, dtype, shape, _ in header_of(data)["contents"]:
        kinds[place : place + np.dtype(dtype).itemsize * int(np.prod(shape))] = "arrays"
    kinds[slice(*header_place(data))] = "text"
    return {x: np.flatnonzero(kinds == x) for x in ("structure", "arrays", "text")}


def bytes_mutated(rng: random.Random, data: bytes, places: np.ndarray) -> bytes:
    """Change single bytes, or overwrite several by others of the file."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 100])):
        i = int(rng.choice(places))
        match rng.randrange(3):
            case 0:
                out[i] ^= 1 << rng.randrange(8)
            case 1:
                out[i] = rng.choice([0, 1, 2, 34, 44, 48, 57, 91, 93, 127, 128, 255])
            case 2:
                new = rng.randbytes(rng.choice([2, 8, 40]))
                inside = places[(places >= i) & (places < i + len(new))]
                for j in inside:
                    out[j] = new[j - i]
    return bytes(out)


def contents_mutated(
    rng: random.Random, contents: list[list[Any]], size: int
) -> list[list[Any]]:
    """Change places, names, types, shapes and attributes of arrays, and their order."""
    contents = copied(contents)
    for _ in range(rng.choice([1, 1, 2])):
        i = rng.randrange(len(contents))
        entry, other = contents[i], rng.choice(contents)
        match rng.randrange(8):
            case 0:
                near = rng.choice([-8, -1, 1, 8, 64])
                far = [-1, 0, 511, 512, size - 1, size, 2**31, 2**40, 2**63, 10**30]
                entry[0] = rng.choice([entry[0] + near, rng.randrange(size), *far])
            case 1:
                entry[2] = rng.choice(TYPES)
            case 2:
                sizes = [0, 1, 2, 3, size, 2**31, 2**40, 2**63, 10**30, -1, True, 2.0]
                entry[3] = rng.choices(sizes, k=rng.choice([0, 1, 2, 3, 33]))
            case 3 if entry[3]:
                j = rng.randrange(len(entry[3]))
                entry[3][j] = rng.choice([0, entry[3][j] + 1, entry[3][j] // 2, 2**40])
            case 4:
                name = rng.choice(["dtype", "prng_impl", "x"])
                entry[4][name] = rng.choice([*TYPES, "threefry2x32", "rbg", None])
            case 5:
                j = rng.randrange(5)
                entry[j] = copied(other[j])
            case 6:
                contents[i] = copied(other)
            case _:
                rng.shuffle(contents)
    return contents


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place in JSON, as a container and a key."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from nodes(value[key])


def copied(value: Any) -> Any:
    return json.loads(json.dumps(value))


def header_mutated(rng: random.Random, header: dict[str, Any]) -> dict[str, Any]:
    header = copied(header)
    for _ in range(rng.choice([1, 1, 2])):
        all_nodes = [x for x in nodes(header) if x[1] != "versions"]
        container, key = rng.choice(all_nodes)
        match rng.randrange(5):
            case 0:
                del container[key]
            case 1:
                container[key] = rng.choice(
                    [None, True, -1, 10**30, 0.5, "x", [], {}, [[]], {"array": "key"}]
                )
            case 2:
                other, other_key = rng.choice(all_nodes)
                container[key] = copied(other[other_key])
            case 3:
                for _ in range(rng.choice([1, 70, 150])):
                    container[key] = {"tuple": [container[key]]}
            case 4:
                container[key] = [container[key], container[key]]
    return header


def with_header(data: bytes, header: dict[str, Any]) -> bytes:
    """Return a file with another header, which is at its end."""
    text = json.dumps(header).encode()
    return seal(data[512:] + text, len(data), len(text))


def mutated(
    rng: random.Random, kind: str, data: bytes, parts: dict[str, np.ndarray]
) -> bytes:
    start, end = header_place(data)
    header = header_of(data)
    match kind:
        case "values":
            contents = header.pop("contents")
            new = header_mutated(rng, header)
            return with_header(data, {**new, "contents": contents})
        case "contents":
            contents = contents_mutated(rng, header["contents"], len(data))
            return with_header(data, {**header, "contents": contents})
        case "block":
            length = end - start + rng.choice([-1, 0, 1, len(data), 10**8])
            start += rng.choice([-1, 0, 1, -start, len(data), 10**17])
            return seal(data[512:], start, max(length, 0))
    body = bytes_mutated(rng, data, parts[kind])[512:]
    return seal(body, start, end - start)


def fuzzed(
    name: str, folder: Path, count: int, seed: int
) -> Counter[tuple[str, str, str]]:
    rng = random.Random(seed)
    save, load = SOURCES[name]
    path = folder / f"{name}.h5"
    save(path)
    data = path.read_bytes()
    expected, parts = everything(load(path)), parts_of(data)
    counts: Counter[tuple[str, str, str]] = Counter()
    for i in range(count):
        kind = KINDS[i % len(KINDS)]
        path.write_bytes(mutated(rng, kind, data, parts))
        try:
            found = everything(load(path))
        except bk.CheckpointError:
            outcome = "refused"
        else:
            outcome = "the same" if found == expected else "another value"
            if kind == "arrays":
                assert structure_of(found) == structure_of(expected), (name, seed, i)
        assert outcome in OUTCOMES.get(kind, [outcome]), (name, seed, i, kind, outcome)
        counts[name, kind, outcome] += 1
    return counts


@pytest.mark.parametrize("name", SOURCES)
def test_some_mutated_files_are_refused_or_read_as_before(
    name: str, tmp_path: Path
) -> None:
    counts = fuzzed(name, tmp_path, 70, seed=1)
    for kind in ("values", "contents", "text", "block"):
        assert counts[name, kind, "refused"] > 0
    assert counts[name, "structure", "the same"] == 10
    assert counts[name, "arrays", "another value"] > 0


@pytest.mark.slow
def test_ten_thousand_mutated_files_are_refused_or_read_as_before(
    tmp_path: Path,
) -> None:
    counts: Counter[tuple[str, str, str]] = Counter()
    for name in SOURCES:
        counts += fuzzed(name, tmp_path, FILES // len(SOURCES), seed=0)
    for key, number in sorted(counts.items()):
        print(*key, number)
    assert counts.total() == FILES


def test_mutated_headers_are_json() -> None:
    rng = random.Random(0)
    for _ in range(50):
        json.dumps(header_mutated(rng, {"a": [1, {"b": None}], "c": {"d": []}}))
