"""The constraint solver of the mjx engine: Newton's method that stays accurate in single precision.

The acceleration `a` minimises

    1/2 (a - a0)^T M (a - a0) + sum_i s_i(J_i a - aref_i)

(MuJoCo's documentation, "Computation"), where the derivative of every `s_i` is a clipped line,
`s_i'(x) = clip(D_i x, low_i, high_i)`: unbounded for equalities, within +- the loss for friction in
joints, never positive for limits and for the edges of pyramidal friction cones. The force of a row
is `-s_i'`.

`mjx.solve` compares costs in its line search and to find out whether it has converged. With
forces of newtons on parts of grams, the difference between two costs is smaller than the rounding
of either in single precision: it stops early, and a peg pressed into its hole jitters and sinks in
by half a millimetre. Here only derivatives are compared, which vanish at the solution.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrobo.physics._mjx import mass_matrix, mjx

_LINE_TOLERANCE = 0.01
"""The line search ends when the slope has fallen to this share (`ls_tolerance` of MuJoCo)."""


class _Problem(NamedTuple):
    """What is minimised; `n` degrees of freedom, `m` rows.

    Attributes:
      inertia: M. [n, n]
      force: M a0, all forces but those of the constraints. [n]
      jacobian: J. [m, n]
      reference: aref. [m]
      stiffness: D. [m]
      low: lower bound of s'. [m]
      high: upper bound of s'. [m]
    """

    inertia: jax.Array
    force: jax.Array
    jacobian: jax.Array
    reference: jax.Array
    stiffness: jax.Array
    low: jax.Array
    high: jax.Array


class _Iterate(NamedTuple):
    """Where the solver is.

    Attributes:
      qacc: a. [n]
      residual: J a - aref. [m]
      gradient: of the cost. [n]
      direction: the Newton step. [n]
      decrement: minus the slope along the direction, twice what a full step would gain. []
      noise: the decrement that rounding alone would cause. []
      count: iterations so far. []
    """

    qacc: jax.Array
    residual: jax.Array
    gradient: jax.Array
    direction: jax.Array
    decrement: jax.Array
    noise: jax.Array
    count: jax.Array


def solve(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """Accelerations and constraint forces; what `mjx.solve` computes.

    Elliptic friction cones are left to `mjx.solve`.

    Args:
      model: the model.
      data: after `mjx.fwd_acceleration`.

    Returns:
      The data with qacc, qfrc_constraint and efc_force.
    """
    if model.opt.cone == mjx.ConeType.ELLIPTIC:
        return mjx.solve(model, data)
    p = _problem(model, data)
    tolerance = model.opt.tolerance * jnp.trace(p.inertia)

    def unsolved(i: _Iterate) -> jax.Array:
        left = i.decrement > jnp.maximum(tolerance, i.noise)
        return left & (i.count < model.opt.iterations)

    def advance(i: _Iterate) -> _Iterate:
        step = _line_search(p, i, model.opt.ls_iterations)
        return _evaluate(p, i.qacc + step * i.direction, i.count + 1)

    start = _evaluate(p, _start(model, data, p), jnp.zeros((), jnp.int32))
    if model.opt.iterations == 1:  # with one step of the line search, too: reverse derivatives
        end = advance(start)
    else:
        end = jax.lax.while_loop(unsolved, advance, start)
    force = -_slope(p, end.residual)
    return data.tree_replace(
        {
            "qacc": end.qacc,
            "qfrc_constraint": p.jacobian.T @ force,
            "_impl.efc_force": force,
        }
    )


def _problem(model: mjx.Model, data: mjx.Data) -> _Problem:
    d = data._impl
    row = jnp.arange(d.efc_D.shape[0])
    equality, loss = row < d.ne, (row >= d.ne) & (row < d.ne + d.nf)
    unbounded = jnp.inf
    low = jnp.where(loss, -d.efc_frictionloss, -unbounded)
    high = jnp.where(loss, d.efc_frictionloss, jnp.where(equality, unbounded, 0.0))
    inertia = mass_matrix(model, data)
    return _Problem(inertia, data.qfrc_smooth, d.efc_J, d.efc_aref, d.efc_D, low, high)


def _start(model: mjx.Model, data: mjx.Data, p: _Problem) -> jax.Array:
    """The last acceleration or the unconstrained one, whichever costs less."""
    if model.opt.disableflags & mjx.DisableBit.WARMSTART:
        return data.qacc_smooth
    warm, smooth = data.qacc_warmstart, data.qacc_smooth
    return jnp.where(_cost(p, warm, smooth) < _cost(p, smooth, smooth), warm, smooth)


def _cost(p: _Problem, qacc: jax.Array, smooth: jax.Array) -> jax.Array:
    x, gap = p.jacobian @ qacc - p.reference, qacc - smooth
    slope = _slope(p, x)
    # Each row's cost is the integral of its slope from 0 to x.
    bend = slope / jnp.where(p.stiffness > 0, p.stiffness, 1.0)
    return 0.5 * gap @ p.inertia @ gap + jnp.sum(slope * (x - 0.5 * bend))


def _evaluate(p: _Problem, qacc: jax.Array, count: jax.Array) -> _Iterate:
    """The gradient and the Newton step at an acceleration."""
    x = p.jacobian @ qacc - p.reference
    slope = _slope(p, x)
    gradient = p.inertia @ qacc - p.force + p.jacobian.T @ slope
    bent = p.stiffness * _is_free(p, x)
    hessian = p.inertia + (p.jacobian.T * bent) @ p.jacobian
    direction = -jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(hessian), gradient)
    terms = jnp.abs(p.inertia) @ jnp.abs(qacc) + jnp.abs(p.force)
    terms += jnp.abs(p.jacobian.T) @ jnp.abs(slope)
    rounding = jnp.finfo(qacc.dtype).eps * terms
    noise = jnp.sum(jnp.square(rounding) / jnp.diag(hessian))
    return _Iterate(qacc, x, gradient, direction, -direction @ gradient, noise, count)


def _line_search(p: _Problem, i: _Iterate, iterations: int) -> jax.Array:
    """The step along the direction at which the slope of the cost vanishes.

    The slope rises monotonically from `-decrement` at 0 and is made of straight pieces. Newton's
    method finds its root, inside a bracket that is halved, or doubled, where it would leave it.
    """
    change = p.jacobian @ i.direction
    curvature = i.direction @ p.inertia @ i.direction
    here = _slope(p, i.residual)

    def at(step: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = i.residual + step * change
        rise = jnp.sum(change * (_slope(p, x) - here))
        bend = jnp.sum(p.stiffness * _is_free(p, x) * jnp.square(change))
        return step * curvature + rise - i.decrement, curvature + bend

    def unsolved(carry: tuple) -> jax.Array:
        _, slope, _, _, _, count = carry
        return (jnp.abs(slope) > _LINE_TOLERANCE * i.decrement) & (count < iterations)

    def refine(carry: tuple) -> tuple:
        step, slope, bend, low, high, count = carry
        low, high = jnp.where(slope < 0, step, low), jnp.where(slope < 0, high, step)
        newton = step - slope / bend
        inside = (newton > low) & (newton < high)
        fallback = jnp.where(jnp.isinf(high), 2 * step, 0.5 * (low + high))
        step = jnp.where(inside, newton, fallback)
        return step, *at(step), low, high, count + 1

    one = jnp.ones((), i.qacc.dtype)
    carry = (one, *at(one), 0 * one, one * jnp.inf, jnp.zeros((), jnp.int32))
    if iterations == 1:
        return jnp.where(unsolved(carry), refine(carry)[0], one)
    return jax.lax.while_loop(unsolved, refine, carry)[0]


def _slope(p: _Problem, x: jax.Array) -> jax.Array:
    return jnp.clip(p.stiffness * x, p.low, p.high)


def _is_free(p: _Problem, x: jax.Array) -> jax.Array:
    """Whether a row is on the sloping part of its clipped line."""
    slope = p.stiffness * x
    return (slope > p.low) & (slope < p.high)
