"""Files with a structure that was mutated, and a checksum that is right.

What is mutated is everything that is neither an element of an array nor the text of the
header: messages, pointers, sizes, names, types. Such a file is refused, or read as
before. The text of the header is mutated separately: then another value may be valid,
and the only requirement is that nothing but `CheckpointError` is raised.
"""

import json
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.chains import ChainSeconds
from batchkit.nested import DeadPoints
from batchkit.run._file import encode, read_file
from batchkit.shards import SamplingStats

from ..nested.perfect import peak, result, sample
from .sealed import seal


FILES = 10_002


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
    seconds = ChainSeconds(1.0, 2.0, 3.0)
    tried = bk.shards.ShardTry(0, 0.8, 0.0, True, True, "", seconds)
    plan = bk.SamplingPlan(2, 8, 2)
    bk.ShardRun(
        {"x": draws, "y": [draws[..., ::-1, None] ** 2]},
        [SamplingStats(i, 9, plan, (tried,)) for i in range(2)],
        gradients_fn=lambda used: lambda position: position,
        refine=False,
    ).save(path)


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
            run.shard_samples,
            run.shift,
            {name: x for name, x in check.items() if isinstance(x, np.ndarray)},
        )
        words = check.get("names"), check.get("num_draws"), run.combine, run.warnings
        numbers = *words, run.stats, run.used, run.left_out
    else:
        arrays = run.samples, run.logdensity, run.diverging, run.step_size
        numbers = run.warnings, run.seconds, run.max_tree_depth
    leaves, treedef = jax.tree.flatten(arrays)
    return [
        str(treedef),
        repr(numbers),
        *((str(x.dtype), x.shape, np.asarray(x).tobytes()) for x in leaves),
    ]


SOURCES: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "nested": (nested, bk.NestedRun.load),
    "chains": (chains, bk.ChainRun.load),
    "shards": (shards, bk.ShardRun.load),
}


def structure_of(path: Path) -> np.ndarray:
    """Return the places of all bytes after the first block that are not content."""
    data = path.read_bytes()
    is_content = np.zeros(len(data), bool)
    is_content[:512] = True

    def mark(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and (start := item.id.get_offset()):
            is_content[start : start + item.id.get_storage_size()] |= name != "header"

    with h5py.File(path) as file:
        file.visititems(mark)
        text: Any = file["header"]
        text = text[()]
    start = data.index(text)
    is_content[start : start + len(text)] = True
    return np.flatnonzero(~is_content)


def mutated(
    rng: random.Random, data: bytes, places: np.ndarray, filled: np.ndarray
) -> bytes:
    out = bytearray(data)
    # Most bytes are empty space, which nothing reads.
    used = filled if rng.random() < 0.8 else places
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        i = int(rng.choice(used))
        word = min(i & ~7, len(out) - 8)
        match rng.randrange(7):
            case 0:
                out[i] ^= 1 << rng.randrange(8)
            case 1:
                out[i] = rng.choice([0, 1, 2, 3, 7, 8, 127, 128, 255])
            case 2:
                number = rng.choice([0, 1, 8, 2**31, 2**40, 2**63, 2**64 - 1, len(out)])
                write(out, places, word, struct.pack("<Q", number))
            case 3:
                write(out, places, word, struct.pack("<Q", rng.randrange(len(out))))
            case 4:
                other = int(rng.choice(used)) & ~7
                write(out, places, word, data[other : other + 8])
            case 5:
                other, size = int(rng.choice(used)), rng.choice([4, 24, 40, 128])
                write(out, places, i, data[other : other + size])
            case 6:
                write(out, places, i, bytes(rng.choice([2, 16, 64])))
    return bytes(out)


def write(out: bytearray, places: np.ndarray, start: int, new: bytes) -> None:
    """Overwrite bytes of the structure, and no content."""
    inside = places[(places >= start) & (places < start + len(new))]
    for i in inside:
        out[i] = new[i - start]


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


def fuzzed(
    name: str, folder: Path, count: int, seed: int
) -> Counter[tuple[str, str, str]]:
    rng = random.Random(seed)
    save, load = SOURCES[name]
    path = folder / f"{name}.h5"
    save(path)
    data, places = path.read_bytes(), structure_of(path)
    filled = places[np.frombuffer(data, np.uint8)[places] > 0]
    expected = everything(load(path))
    header, arrays = read_file(path)
    counts: Counter[tuple[str, str, str]] = Counter()
    for i in range(count):
        of_header = i % 5 == 0
        if of_header:
            new = bytes(encode(header_mutated(rng, header), arrays))
        else:
            new = seal(mutated(rng, data, places, filled)[512:])
        path.write_bytes(new)
        try:
            found = everything(load(path))
        except bk.CheckpointError:
            outcome = "refused"
        else:
            assert of_header or found == expected, (name, seed, i)
            outcome = "the same" if found == expected else "another value"
        counts[name, "header" if of_header else "structure", outcome] += 1
    return counts


@pytest.mark.parametrize("name", SOURCES)
def test_some_mutated_files_are_refused_or_read_as_before(
    name: str, tmp_path: Path
) -> None:
    counts = fuzzed(name, tmp_path, 40, seed=1)
    assert counts[name, "structure", "refused"] > 5
    assert counts[name, "structure", "the same"] > 0


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
