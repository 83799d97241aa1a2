"""Sources whose function `run` reaches a vmap in a way that is rebuilt."""

SPELLINGS: dict[str, str] = {
    "attribute": """
        import jax
        def run(x): return jax.vmap(lambda r: r.sum())(x)
        """,
    "renamed module": """
        import jax as j
        def run(x): return j.vmap(lambda r: r.sum())(x)
        """,
    "from import": """
        from jax import vmap
        def run(x): return vmap(lambda r: r.sum())(x)
        """,
    "renamed": """
        from jax import vmap as batch
        def run(x): return batch(lambda r: r.sum())(x)
        """,
    "decorator inside": """
        import jax
        def run(x):
            scale = x[0, 0]
            @jax.vmap
            def total(r, *, power=2):
                return scale * r.sum() ** power
            return total(x)
        """,
    "several decorators": """
        import functools, jax
        def run(x):
            @jax.checkpoint
            @jax.vmap
            @jax.named_call
            def total(r): return r.sum()
            return total(x)
        """,
    "decorator with arguments": """
        import functools, jax
        def run(x):
            @functools.partial(jax.vmap, in_axes=(0, None))
            def total(r, y): return (r * y).sum()
            return total(x, 2.0)
        """,
    "partial inside": """
        import functools, jax
        def run(x):
            rows = functools.partial(jax.vmap, in_axes=0)
            return rows(lambda r: r.sum())(x)
        """,
    "variable": """
        import jax
        def run(x):
            rows = jax.vmap

            return rows(lambda r: r.sum())(x)
        """,
    "over several lines": """
        import jax
        def run(x):
            y = 1.0
            return y * jax.vmap(
                lambda r: (
                    r.sum()
                ),
                in_axes=0,
            )(
                x
            )
        """,
    "nested over several lines": """
        import jax
        def run(x):
            return jax.vmap(
                jax.vmap(
                    lambda r: 2 * r
                )
            )(x).sum()
        """,
    "several in one function": """
        import jax
        def run(x):
            y = jax.vmap(lambda r: r.sum())(x)
            z = jax.vmap(lambda r: r.prod())(x)

            return jax.vmap(lambda a, b: a * b)(y, z)
        """,
    "one inside the other": """
        import jax
        def run(x):
            return jax.vmap(
                lambda r: jax.vmap(lambda s: s * r.sum())(r)
            )(x)
        """,
    "nested functions": """
        import jax
        def run(x):
            def outer():
                def inner(): return jax.vmap(lambda r: r.sum())(x)
                return inner()
            return outer()
        """,
    "generator": """
        import jax
        def run(x):
            def parts(): yield jax.vmap(lambda r: r.sum())(x)
            return next(parts())
        """,
    "import in the function": """
        def run(x):
            import jax
            return jax.vmap(lambda r: r.sum())(x)
        """,
    "from import in the function": """
        def run(x):
            from jax import jit, vmap as batch
            return jit(batch(lambda r: r.sum()))(x)
        """,
    "import of a submodule in the function": """
        def run(x):
            import jax.numpy
            return jax.vmap(lambda r: jax.numpy.sum(r))(x)
        """,
    "import on the line of its use": """
        def run(x): import jax; return jax.vmap(lambda r: r.sum())(x)
        """,
    "from import on the line of its use": """
        def run(x): from jax import vmap; return vmap(lambda r: r.sum())(x)
        """,
    "import after an assignment on one line": """
        def run(x): import jax as j; rows = x; return j.vmap(lambda r: r.sum())(rows)
        """,
    "import that is declared global": """
        def run(x):
            global jax
            import jax
            return jax.vmap(lambda r: r.sum())(x)
        """,
    "class in the function": """
        def run(x):
            import jax
            class Layout:
                rows = jax.vmap(lambda r: r.sum())(x)
            return Layout.rows
        """,
    "import in a class in the function": """
        def run(x):
            class Layout:
                import jax
                rows = jax.vmap(lambda r: r.sum())(x)
            return Layout.rows
        """,
    # An instruction's argument is one byte; a larger one takes another instruction.
    "more names than one byte counts": f"""
        import jax
        def run(x):
            if x is None: {"; ".join(f"x.name_{i}" for i in range(300))}
            return jax.vmap(lambda r: r.sum())(x)
        """,
    "more constants than one byte counts": f"""
        def run(x):
            if x is None: x({", ".join(f"x({i}.5)" for i in range(300))})
            import jax.numpy as jnp, jax
            return jax.vmap(lambda r: jnp.sum(r))(x)
        """,
    "partial of vmap in a module": """
        import functools, jax
        rows = functools.partial(jax.vmap, in_axes=0)
        def run(x): return rows(lambda r: r.sum())(x)
        """,
    "registry of vmaps": """
        import jax
        LAYOUTS = {"rows": jax.vmap}
        def run(x):
            layout = LAYOUTS["rows"]
            return layout(lambda r: r.sum())(x)
        """,
    "a foreign decorator": """
        import jax
        @jax.checkpoint
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        def run(x): return inner(x)
        """,
}

# The name by which a source has the vmap, where that is not `vmap`.
NAMES = {
    "renamed": "batch",
    "from import in the function": "batch",
    "partial of vmap in a module": "rows",
    "registry of vmaps": "LAYOUTS",
}

# Sources with an `import` that the enclosing function runs.
NESTED_IMPORTS: dict[str, str] = {
    "import in the function": """
        def run(x):
            import jax
            def inner():
                return jax.vmap(lambda r: r.sum())(x)
            return inner()
        """,
    "from import in the function": """
        def run(x):
            from jax import vmap
            def inner():
                @vmap
                def total(r): return r.sum()
                return total(x)
            return inner()
        """,
}

# Sources that the text does not locate: the vmap is passed on as a value, or another
# package calls it.
HANDED_AROUND: dict[str, str] = {
    "partial": """
        import functools, jax
        def apply(x, batch): return batch(lambda r: r.sum())(x)
        go = functools.partial(apply, batch=jax.vmap)
        def run(x): return go(x)
        """,
    "closure": """
        import jax
        run = (lambda batch: lambda x: batch(lambda r: r.sum())(x))(jax.vmap)
        """,
    "closure over jax": """
        import jax
        run = (lambda j: lambda x: j.vmap(lambda r: r.sum())(x))(jax)
        """,
    "attribute by name": """
        import jax
        def run(x): return getattr(jax, "vmap")(lambda r: r.sum())(x)
        """,
    "import by name": """
        def run(x): return __import__("jax").vmap(lambda r: r.sum())(x)
        """,
    "a foreign nested decorators": """
        import jax
        @jax.named_call
        @jax.checkpoint
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        def run(x): return inner(x)
        """,
    "gradient": """
        import jax
        gradient = jax.grad(lambda x: jax.vmap(lambda r: r.sum())(x).sum())
        def run(x): return gradient(x)
        """,
    "a foreign partial": """
        import jax
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        inner = jax.tree_util.Partial(inner)
        def run(x): return inner(x)
        """,
    "recursion": """
        import jax
        def even(x, n): return odd(x, n - 1)
        def odd(x, n): return inner(x) if n < 2 else even(x, n - 1)
        def inner(x): return jax.vmap(lambda r: r.sum())(x)
        def run(x): return even(x, 6)
        """,
}
