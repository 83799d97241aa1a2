"""Launches in the loops of a compiled program, counted by hand in a small module."""

import jax
import jax.numpy as jnp

from batchkit.explain._loops import Loop, loops_of


# As XLA prints it for a GPU, without what does not matter here.
MODULE = """\
HloModule jit_f, is_scheduled=true

%branch.0 (p.0: f32[8]) -> f32[8] {
  %p.0 = f32[8]{0} parameter(0)
  ROOT %negate.0 = f32[8]{0} fusion(%p.0), kind=kLoop, calls=%fused
}

%branch.1 (p.1: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  %sine.1 = f32[8]{0} fusion(%p.1), kind=kLoop, calls=%fused.1
  ROOT %copy.1 = f32[8]{0} copy(%sine.1)
}

%inner_body (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  %q = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%q), index=1
  %solve = f32[8]{0} custom-call(%x), custom_call_target="cusolver"
  %start = f32[8]{0} all-reduce-start(%solve), to_apply=%add
  %done = f32[8]{0} all-reduce-done(%start)
  ROOT %t = (s32[], f32[8]{0}) tuple(%n, %done)
}

%outer_body (r: (s32[], f32[8])) -> (s32[], f32[8]) {
  %r = (s32[], f32[8]{0}) parameter(0)
  %n = s32[] get-tuple-element(%r), index=0
  %f = f32[8]{0} fusion(%r), kind=kLoop, calls=%fused.2
  %c = f32[8]{0} conditional(%n, %f, %f), branch_computations={%branch.0, %branch.1}
  %i = (s32[], f32[8]{0}) while(%c), condition=%test, body=%inner_body, \
metadata={op_name="jit(f)/while/body/while"}, \
backend_config={"known_trip_count":{"n":"16"}}
  %k = f32[8]{0} copy(%c)
  ROOT %u = (s32[], f32[8]{0}) tuple(%n, %k)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %w = (s32[], f32[8]{0}) while(%a), condition=%test.1, body=%outer_body, \
metadata={op_name="jit(f)/while"}
  ROOT %y = f32[8]{0} get-tuple-element(%w), index=1
}
"""


def test_loops_of_a_module() -> None:
    assert loops_of(MODULE) == (
        # The library call and the start of the reduction.
        Loop("jit(f)/while/body/while", 16, 2, 0, 0, 0),
        # The fusion and the copy; the conditional and the loop's own test.
        Loop("jit(f)/while", None, 2, 1, 2, 3),
    )


def test_conditional_of_two_computations() -> None:
    line = "true_computation=%branch.0, false_computation=%branch.1"
    text = MODULE.replace("branch_computations={%branch.0, %branch.1}", line)
    assert loops_of(text) == loops_of(MODULE)


def test_loops_of_a_program_are_found() -> None:
    """In what XLA prints today, here for a CPU."""

    def fun(x: jax.Array) -> jax.Array:
        turn = lambda c, _: (jnp.sin(c) @ c, None)
        outer = lambda c: jax.lax.scan(turn, c, length=7)[0]
        return jax.lax.while_loop(lambda c: c.sum() < 1e3, outer, x)

    text = jax.jit(fun).lower(jnp.ones((9, 9))).compile().as_text()
    turns = [loop.turns for loop in loops_of(text or "")]
    assert turns == [7, None]
