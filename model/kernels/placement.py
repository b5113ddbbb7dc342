"""Where points stand under a placement, and how far it is from the expected one, for other kernels.

What `model.placement` says in torch.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def placed(points, offsets, log_scale, rotation, translation, problem, at, exists):
    """Of rows: s·R·p, the turned offset, the canonical point, and how far it is from the origin."""
    scale = tl.exp(tl.load(log_scale + problem))
    x, y, z = _turned(points, rotation, problem, at, exists)
    sx, sy, sz = scale * x, scale * y, scale * z
    ox, oy, oz = _turned(offsets, rotation, problem, at, exists)
    translation += problem * 3
    px = sx + tl.load(translation) + ox
    py = sy + tl.load(translation + 1) + oy
    pz = sz + tl.load(translation + 2) + oz
    return sx, sy, sz, ox, oy, oz, px, py, pz, tl.sqrt(px * px + py * py + pz * pz)


@triton.jit
def _turned(vectors, rotation, problem, at, exists):
    r = rotation + problem * 9
    x = tl.load(vectors + at, mask=exists, other=0.0)
    y = tl.load(vectors + at + 1, mask=exists, other=0.0)
    z = tl.load(vectors + at + 2, mask=exists, other=0.0)
    return (
        tl.load(r) * x + tl.load(r + 1) * y + tl.load(r + 2) * z,
        tl.load(r + 3) * x + tl.load(r + 4) * y + tl.load(r + 5) * z,
        tl.load(r + 6) * x + tl.load(r + 7) * y + tl.load(r + 8) * z,
    )


@triton.jit
def turn_since(rotation, start):
    """The rotation vector from one rotation to another, as `model.placement.vector_of` finds it."""
    a, b, c = tl.load(start), tl.load(start + 1), tl.load(start + 2)
    d, e, f = tl.load(start + 3), tl.load(start + 4), tl.load(start + 5)
    g, h, i = tl.load(start + 6), tl.load(start + 7), tl.load(start + 8)
    p, q, r = tl.load(rotation), tl.load(rotation + 1), tl.load(rotation + 2)
    s, t, u = tl.load(rotation + 3), tl.load(rotation + 4), tl.load(rotation + 5)
    v, w, x = tl.load(rotation + 6), tl.load(rotation + 7), tl.load(rotation + 8)
    about_x = (v * d + w * e + x * f) - (s * g + t * h + u * i)  # twice the sine, along the axis
    about_y = (p * g + q * h + r * i) - (v * a + w * b + x * c)
    about_z = (s * a + t * b + u * c) - (p * d + q * e + r * f)
    trace = (p * a + q * b + r * c) + (s * d + t * e + u * f) + (v * g + w * h + x * i)
    cosine = tl.minimum(tl.maximum((trace - 1) / 2, -1.0), 1.0)
    sine = tl.sqrt(about_x * about_x + about_y * about_y + about_z * about_z) / 2
    share = tl.where(sine > 1e-6, _angle(sine, cosine) / tl.maximum(sine, 1e-6), 1.0) / 2
    return about_x * share, about_y * share, about_z * share


@triton.jit
def _angle(sine, cosine):
    """Between 0 and pi, of a sine that is not negative: Abramowitz and Stegun 4.4.49."""
    least, most = tl.minimum(sine, tl.abs(cosine)), tl.maximum(sine, tl.abs(cosine))
    t = least / tl.maximum(most, 1e-30)
    s = t * t
    series = -0.0161657367 + s * 0.0028662257
    series = 0.0429096138 + s * series
    series = -0.0752896400 + s * series
    series = 0.1065626393 + s * series
    series = -0.1420889944 + s * series
    series = 0.1999355085 + s * series
    series = -0.3333314528 + s * series
    angle = t * (1 + s * series)
    angle = tl.where(sine > tl.abs(cosine), 1.5707963267948966 - angle, angle)
    return tl.where(cosine < 0, 3.141592653589793 - angle, angle)


@triton.jit
def placement_cost(off, placement_weight, placement_tail, turn_x, turn_y, turn_z, turn_weight):
    """What a placement costs that is so far off; see `model.latent.placement_prior`."""
    turned = turn_x * turn_x + turn_y * turn_y + turn_z * turn_z
    return placement_weight * placement_tail * tl.log(1 + off) + turn_weight * turned


@triton.jit
def misfit(distance, lower, upper, weight, only_in_ball, beyond, unit, bound):
    """How far a distance lies outside a row's interval, the row's weight, and the loss, not weighted."""
    residual = (distance - tl.maximum(tl.minimum(distance, upper), lower)) * unit
    active = tl.where(only_in_ball & (beyond > 0), 0.0, weight)
    size = tl.abs(residual)
    loss = tl.where(size <= bound, 0.5 * size * size, bound * (size - 0.5 * bound))
    return residual, active, loss
