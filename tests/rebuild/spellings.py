"""The source of a package whose functions reach a vmap in a way that is rebuilt."""


def entries(text: str) -> list[list[str]]:
    """The fields of each header `== a == b` in a text, and what stands below it."""
    found = [entry.partition("\n") for entry in text.split("\n== ")[1:]]
    return [[*head.split(" == "), body] for head, _, body in found]


# Every function whose name has no underscore in front takes rows and sums each.
SPELLINGS = f"""
import functools, jax, jax as j
from jax import vmap, vmap as batch

def attribute(x): return jax.vmap(lambda r: r.sum())(x)
def renamed_module(x): return j.vmap(lambda r: r.sum())(x)
def from_import(x): return vmap(lambda r: r.sum())(x)
def renamed(x): return batch(lambda r: r.sum())(x)

def decorator(x):
    scale = x[0, 0] + 1
    @jax.vmap
    def total(r, *, power=1):
        return scale * r.sum() ** power / scale
    return total(x)
def one_of_several_decorators(x):
    @jax.checkpoint
    @jax.vmap
    @jax.named_call
    def total(r): return r.sum()
    return total(x)
def decorator_with_arguments(x):
    @functools.partial(jax.vmap, in_axes=(0, None))
    def total(r, y): return (r * y).sum()
    return total(x, 1.0)
def partial(x):
    by_row = functools.partial(jax.vmap, in_axes=0)
    return by_row(lambda r: r.sum())(x)
def variable(x):
    by_row = jax.vmap

    return by_row(lambda r: r.sum())(x)
def variable_above_another_vmap(x):
    by_row = jax.vmap

    y = by_row(lambda r: r.sum())(x)
    return jax.vmap(lambda s: s * 1)(y)

def over_several_lines(x):
    y = 1.0
    return y * jax.vmap(
        lambda r: (
            r.sum()
        ),
        in_axes=0,
    )(
        x
    )
def nested_over_several_lines(x):
    return jax.vmap(
        jax.vmap(
            lambda r: 1 * r
        )
    )(x).sum(1)
def several_in_one_function(x):
    y = jax.vmap(lambda r: r.sum())(x)
    z = jax.vmap(lambda r: r[0] - r[0] + 1)(x)

    return jax.vmap(lambda a, b: a * b)(y, z)
def one_inside_the_other(x):
    return jax.vmap(
        lambda r: jax.vmap(lambda s: s * 1)(r).sum()
    )(x)
def nested_functions(x):
    def outer():
        def inner(): return jax.vmap(lambda r: r.sum())(x)
        return inner()
    return outer()
def generator(x):
    def parts(): yield jax.vmap(lambda r: r.sum())(x)
    return next(parts())

def import_in_the_function(x):
    import jax
    return jax.vmap(lambda r: r.sum())(x)
def from_import_in_the_function(x):
    from jax import jit, vmap as batch
    return jit(batch(lambda r: r.sum()))(x)
def import_of_a_submodule(x):
    import jax.numpy
    return jax.vmap(lambda r: jax.numpy.sum(r))(x)
def import_on_the_line_of_its_use(x): import jax; return jax.vmap(lambda r: r.sum())(x)
def from_import_on_that_line(x): from jax import vmap; return vmap(lambda r: r.sum())(x)
def import_after_an_assignment(x): import jax as m; y = x; return m.vmap(sum)(y)
def import_that_is_declared_global(x):
    global late
    import jax as late
    return late.vmap(lambda r: r.sum())(x)
def import_for_a_nested_function(x):
    import jax
    def inner(): return jax.vmap(lambda r: r.sum())(x)
    return inner()
def from_import_for_a_nested_function(x):
    from jax import vmap
    def inner():
        @vmap
        def total(r): return r.sum()
        return total(x)
    return inner()
def class_in_the_function(x):
    import jax
    class Layout:
        rows = jax.vmap(lambda r: r.sum())(x)
    return Layout.rows
def import_in_a_class(x):
    class Layout:
        import jax
        rows = jax.vmap(lambda r: r.sum())(x)
    return Layout.rows

# An instruction's argument is one byte; a larger one takes another instruction.
def more_names_than_one_byte_counts(x):
    if x is None: {"; ".join(f"x.name_{i}" for i in range(300))}
    return jax.vmap(lambda r: r.sum())(x)
def more_constants_than_one_byte_counts(x):
    if x is None: x({", ".join(f"x({i}.5)" for i in range(300))})
    import jax.numpy as jnp, jax
    return jax.vmap(lambda r: jnp.sum(r))(x)

LAYOUT = functools.partial(jax.vmap, in_axes=0)
def partial_in_a_module(x): return LAYOUT(lambda r: r.sum())(x)
LAYOUTS = {{"rows": jax.vmap}}
def registry(x):
    layout = LAYOUTS["rows"]
    return layout(lambda r: r.sum())(x)
"""

# The names of vmaps in it; `x.vmap` is found anyway.
NAMES = ("vmap", "batch", "LAYOUT", "LAYOUTS")

# The text does not locate these: the vmap is passed on as a value, or another package
# calls what calls it.
HANDED_AROUND = """
import functools, jax
def _apply(x, batch): return batch(lambda r: r.sum())(x)
def _inner(x): return jax.vmap(lambda r: r.sum())(x)
_bound = functools.partial(_apply, batch=jax.vmap)
def partial_with_vmap(x): return _bound(x)
closure = (lambda batch: lambda x: batch(lambda r: r.sum())(x))(jax.vmap)
closure_over_jax = (lambda j: lambda x: j.vmap(lambda r: r.sum())(x))(jax)
foreign_decorator = jax.checkpoint(_inner)
foreign_nested_decorators = jax.named_call(jax.checkpoint(_inner))
foreign_partial = jax.tree_util.Partial(_inner)
gradient = jax.grad(lambda x: (_inner(x) ** 2).sum() / 2)
def attribute_by_name(x): return getattr(jax, "vmap")(lambda r: r.sum())(x)
def import_by_name(x): return __import__("jax").vmap(lambda r: r.sum())(x)
def recursion(x, n=6): return _odd(x, n - 1)
def _odd(x, n): return _inner(x) if n < 2 else recursion(x, n - 1)
"""
