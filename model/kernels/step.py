"""A step of Levenberg-Marquardt in a few launches: what `model.latent` says in torch, in three hundred.

B problems of K rows each; a code of length LENGTH and a move of seven make the SIZE unknowns of one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from model.kernels.placement import misfit, placed, placement_cost, turn_since

BLOCK = tl.constexpr(16)
"""Columns that are factorised at a time, and rows of a Hessian that a program works on."""


@triton.jit(do_not_specialize=["each"])
def place(points, offsets, log_scale, rotation, translation, inside, each, ROWS: tl.constexpr):
    """Where rows lie in the unit ball, or nearest to them on it: `inside` (B, K, 3)."""
    problem, row = tl.program_id(0), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    exists, at = row < each, (problem * each + row) * 3
    _, _, _, _, _, _, x, y, z, radius = placed(
        points, offsets, log_scale, rotation, translation, problem, at, exists
    )
    nearer = 1 / tl.maximum(radius, 1.0)
    tl.store(inside + at, x * nearer, mask=exists)
    tl.store(inside + at + 1, y * nearer, mask=exists)
    tl.store(inside + at + 2, z * nearer, mask=exists)


@triton.jit(do_not_specialize=["each"])
def weigh(
    points,
    offsets,
    lower,
    upper,
    weights,
    only_in_ball,
    log_scale,
    rotation,
    translation,
    freedom,  # (B, 7)
    huber,  # (B)
    distances,  # (B, K) at the points that `place` found; their gradients there:
    by_code,  # (B, K, LENGTH)
    by_point,  # (B, K, 3)
    jacobian,  # found: (B, K, COLUMNS) float16: rows, residual behind, times the root of the weight
    sums,  # found: (B, 3, blocks) loss, weighted |residual| and weight of the rows of a block
    each,
    scale_up,  # what the Jacobian is multiplied by, for half precision
    LENGTH: tl.constexpr,
    CODE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Residuals of rows, and their derivatives by code and move; see `model.latent.LevenbergMarquardt`."""
    problem, row = tl.program_id(0), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    exists, number = row < each, problem * each + row
    sx, sy, sz, ox, oy, oz, x, y, z, radius = placed(
        points, offsets, log_scale, rotation, translation, problem, number * 3, exists
    )
    beyond = tl.maximum(radius - 1, 0.0)
    unit = tl.exp(-tl.load(log_scale + problem))
    found = tl.load(distances + number, mask=exists, other=0.0) + beyond
    residual, weight, loss = misfit(
        found,
        tl.load(lower + number, mask=exists, other=0.0),
        tl.load(upper + number, mask=exists, other=0.0),
        tl.load(weights + number, mask=exists, other=0.0),
        tl.load(only_in_ball + number, mask=exists, other=0),
        beyond,
        unit,
        tl.load(huber + problem),
    )
    bound, size = tl.load(huber + problem), tl.abs(residual)
    block, blocks = tl.program_id(1), tl.num_programs(1)
    tl.store(sums + (problem * 3 + 0) * blocks + block, tl.sum(weight * loss))
    tl.store(sums + (problem * 3 + 1) * blocks + block, tl.sum(weight * size))
    tl.store(sums + (problem * 3 + 2) * blocks + block, tl.sum(weight))
    # A row inside its interval has no residual and must not stiffen the model either.
    robust = tl.where(residual != 0, weight * bound / tl.maximum(size, bound), 0.0)
    root = tl.sqrt(robust) * scale_up

    gx = tl.load(by_point + number * 3, mask=exists, other=0.0)
    gy = tl.load(by_point + number * 3 + 1, mask=exists, other=0.0)
    gz = tl.load(by_point + number * 3 + 2, mask=exists, other=0.0)
    outward = 1 / tl.maximum(radius, 1e-9)
    along = (gx * x + gy * y + gz * z) * outward * outward
    gx = tl.where(radius > 1, (gx - along * x) * outward + x * outward, gx)
    gy = tl.where(radius > 1, (gy - along * y) * outward + y * outward, gy)
    gz = tl.where(radius > 1, (gz - along * z) * outward + z * outward, gz)
    ax, ay, az = sx + ox, sy + oy, sz + oz
    onto, free, per = jacobian + number * COLUMNS, freedom + problem * 7, root * unit
    part = tl.arange(0, CODE)[None, :]
    own = exists[:, None] & (part < LENGTH)
    slopes = tl.load(by_code + (number[:, None] * LENGTH + part), mask=own, other=0.0)
    tl.store(onto[:, None] + part, (slopes * per[:, None]).to(tl.float16), mask=own)
    by_scale = (gx * sx + gy * sy + gz * sz) * per - root * residual  # the unit itself depends on the scale
    _put(onto + LENGTH, by_scale * tl.load(free), exists)
    _put(onto + LENGTH + 1, gx * per * tl.load(free + 1), exists)
    _put(onto + LENGTH + 2, gy * per * tl.load(free + 2), exists)
    _put(onto + LENGTH + 3, gz * per * tl.load(free + 3), exists)
    _put(onto + LENGTH + 4, (ay * gz - az * gy) * per * tl.load(free + 4), exists)
    _put(onto + LENGTH + 5, (az * gx - ax * gz) * per * tl.load(free + 5), exists)
    _put(onto + LENGTH + 6, (ax * gy - ay * gx) * per * tl.load(free + 6), exists)
    _put(onto + LENGTH + 7, root * residual, exists)
    for column in tl.static_range(LENGTH + 8, COLUMNS):
        _put(onto + column, residual * 0, exists)


@triton.jit
def _put(place, values, exists):
    tl.store(place, values.to(tl.float16), mask=exists)


@triton.jit(do_not_specialize=["blocks"])
def assemble(
    products,  # (B, COLUMNS, COLUMNS): the Jacobian with itself
    sums,  # as `weigh` found them
    codes,  # (B, LENGTH)
    mean,  # (B, LENGTH) of the prior
    precision,  # (B, LENGTH, LENGTH)
    log_scale,
    rotation,
    translation,
    expected_log_scale,
    expected_rotation,
    expected_translation,
    deviation,  # (B, 4)
    freedom,
    cost,  # found: (B)
    gradient,  # found: (B, SIZE)
    hessian,  # found: (B, SIZE, SIZE)
    mean_residual,  # found: (B)
    blocks,
    share,  # of the products in the Hessian: 1 / scale_up²
    code_weight,  # λ / LENGTH
    placement_weight,
    placement_tail,
    turn_weight,
    LENGTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """E, its gradient and Hessian, of products and priors. A program works on BLOCK rows of a Hessian."""
    problem, first = tl.program_id(0), tl.program_id(1) * BLOCK
    size: tl.constexpr = LENGTH + 7
    row, column = first + tl.arange(0, BLOCK)[:, None], tl.arange(0, WIDTH)[None, :]
    away = _off(codes, mean, problem, column, LENGTH)
    of_code = (row < LENGTH) & (column < LENGTH)
    stiff = tl.load(precision + problem * LENGTH * LENGTH + (row * LENGTH + column), mask=of_code, other=0.0)
    pull = tl.sum(stiff * away, axis=1, keep_dims=True)
    own = (row < size) & (column < size)
    values = share * tl.load(products + (problem * COLUMNS + row) * COLUMNS + column, mask=own, other=0.0)
    values += 2 * code_weight * stiff
    slope = share * tl.load(products + (problem * COLUMNS + row) * COLUMNS + size, mask=row < size, other=0.0)
    slope += 2 * code_weight * pull

    scale_off = tl.load(log_scale + problem) - tl.load(expected_log_scale + problem)
    at, expected = translation + problem * 3, expected_translation + problem * 3
    x_off = tl.load(at) - tl.load(expected)
    y_off = tl.load(at + 1) - tl.load(expected + 1)
    z_off = tl.load(at + 2) - tl.load(expected + 2)
    turn_x, turn_y, turn_z = turn_since(rotation + problem * 9, expected_rotation + problem * 9)
    std, free = deviation + problem * 4, freedom + problem * 7
    scale_std, x_std, y_std, z_std = tl.load(std), tl.load(std + 1), tl.load(std + 2), tl.load(std + 3)
    scale_stiff, x_stiff = 1 / (scale_std * scale_std), 1 / (x_std * x_std)
    y_stiff, z_stiff = 1 / (y_std * y_std), 1 / (z_std * z_std)
    off = scale_off * scale_off * scale_stiff + x_off * x_off * x_stiff
    off = (off + y_off * y_off * y_stiff + z_off * z_off * z_stiff) / placement_tail
    place_stiff = 2 * placement_weight / (1 + off)
    part = row - LENGTH
    moved = tl.where(part == 0, scale_off, tl.where(part == 1, x_off, tl.where(part == 2, y_off, z_off)))
    turned = tl.where(part == 4, turn_x, tl.where(part == 5, turn_y, turn_z))
    by_place = tl.where(
        part == 0, scale_stiff, tl.where(part == 1, x_stiff, tl.where(part == 2, y_stiff, z_stiff))
    )
    of_move = (part >= 0) & (part < 7)
    stiffness = tl.where(part < 4, by_place * place_stiff, 2 * turn_weight)
    stiffness *= tl.load(free + part, mask=of_move, other=0.0)
    stiffness = tl.where(of_move, stiffness, 0.0)
    slope += stiffness * tl.where(part < 4, moved, turned)
    values += tl.where(row == column, stiffness, 0.0)
    tl.store(hessian + problem * size * size + (row * size + column), values, mask=own)
    tl.store(gradient + problem * size + row, slope, mask=row < size)

    if first == 0:
        distance = 0.0
        for other in range(0, LENGTH, BLOCK):
            line = other + tl.arange(0, BLOCK)[:, None]
            there = (line < LENGTH) & (column < LENGTH)
            some = tl.load(
                precision + problem * LENGTH * LENGTH + (line * LENGTH + column), mask=there, other=0.0
            )
            ends = _off(codes, mean, problem, line, LENGTH)
            distance += tl.sum(tl.sum(some * away, axis=1, keep_dims=True) * ends)
        loss = _sum_of(sums + (problem * 3 + 0) * blocks, blocks)
        weight = tl.maximum(_sum_of(sums + (problem * 3 + 2) * blocks, blocks), 1e-12)
        of_place = placement_cost(off, placement_weight, placement_tail, turn_x, turn_y, turn_z, turn_weight)
        tl.store(cost + problem, loss + code_weight * distance + of_place)
        tl.store(mean_residual + problem, _sum_of(sums + (problem * 3 + 1) * blocks, blocks) / weight)


@triton.jit
def _off(codes, mean, problem, part, LENGTH: tl.constexpr):
    """How far the code is from the prior's mean, at the given parts."""
    at = problem * LENGTH + part
    inside = part < LENGTH
    return tl.load(codes + at, mask=inside, other=0.0) - tl.load(mean + at, mask=inside, other=0.0)


@triton.jit
def _sum_of(values, count):
    """Of so many numbers."""
    part = tl.arange(0, 64)
    total = tl.zeros([64], tl.float32)
    for first in range(0, count, 64):
        total += tl.load(values + first + part, mask=first + part < count, other=0.0)
    return tl.sum(total)


@triton.jit
def solve(
    hessian,  # (B, SIZE, SIZE)
    gradient,  # (B, SIZE)
    damping,  # (B)
    codes,
    log_scale,
    rotation,
    translation,
    freedom,
    factor,  # scratch: (B, EDGE, EDGE)
    inverses,  # scratch: (B, EDGE / BLOCK, BLOCK, BLOCK)
    move,  # found: (B, SIZE)
    solved,  # found: (B) int8
    promised,  # found: (B)
    new_codes,
    new_log_scale,
    new_rotation,
    new_translation,
    LENGTH: tl.constexpr,
    EDGE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A damped step of each problem, the decrease of E that it promises, and where it leads.

    The Hessian is factorised with the gradient as one more row: what becomes of that row is the gradient's
    half of the way to the step (Golub and Van Loan, Matrix Computations, 4.2). It begins a block of its own.
    """
    size: tl.constexpr = LENGTH + 7
    border: tl.constexpr = EDGE - BLOCK
    problem = tl.program_id(0)
    hessian += problem * size * size
    gradient += problem * size
    factor += problem * EDGE * EDGE
    inverses += problem * EDGE * BLOCK
    move += problem * size
    damp = tl.load(damping + problem)
    row = tl.arange(0, ROWS)[:, None]
    i, k = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    for first in range(0, border, BLOCK):
        column = first + k
        block = tl.load(hessian + (row * size + column), mask=(row < size) & (column < size), other=0.0)
        raised = block + damp * block + tl.where(block == 0, 1.0, 0.0) + 1e-10
        block = tl.where((row == column) & (row < size), raised, block)
        block = tl.where((row == column) & (row >= size), 1.0, block)
        edge = tl.load(gradient + column, mask=column < size, other=0.0)
        block = tl.where(row == border, edge, block)
        for before in range(0, first, BLOCK):
            left = tl.load(factor + (row * EDGE + before + k), mask=row < EDGE, other=0.0)
            upper = tl.load(factor + ((first + i) * EDGE + before + k))
            block -= tl.dot(left, tl.trans(upper), input_precision="ieee")
        tl.store(factor + (row * EDGE + column), block, mask=(row >= first) & (row < EDGE))
        tl.debug_barrier()
        inverse = _inverse_factor(tl.load(factor + ((first + i) * EDGE + column)), i, k)
        tl.store(inverses + (first + i) * BLOCK + k, inverse)
        panel = tl.dot(block, tl.trans(inverse), input_precision="ieee")
        tl.debug_barrier()
        tl.store(factor + (row * EDGE + column), panel, mask=(row >= first + BLOCK) & (row < EDGE))
        tl.debug_barrier()

    finite, expects = 1, 0.0
    for back in range(BLOCK, EDGE, BLOCK):
        first = border - back
        column = first + k
        later = (row >= first + BLOCK) & (row < size)
        known = tl.load(move + row, mask=later, other=0.0)
        lower = tl.load(factor + (row * EDGE + column), mask=later, other=0.0)
        rest = tl.load(factor + (border * EDGE + column)) + tl.sum(lower * known, axis=0, keep_dims=True)
        step = -tl.sum(tl.load(inverses + (first + i) * BLOCK + k) * tl.trans(rest), axis=0, keep_dims=True)
        inside = column < size
        step = tl.where(inside, step, 0.0)
        finite = tl.minimum(finite, tl.min(tl.where(tl.abs(step) < 1e30, 1, 0)))
        diagonal = tl.load(hessian + column * (size + 1), mask=inside, other=0.0)
        added = damp * diagonal + tl.where(diagonal == 0, 1.0, 0.0) + 1e-10
        slope = tl.load(gradient + column, mask=inside, other=0.0)
        expects += tl.sum(0.5 * (added * step * step - slope * step))
        tl.store(move + column, step, mask=inside)
        tl.debug_barrier()

    taken = tl.where(finite > 0, 1.0, 0.0)
    every = tl.arange(0, ROWS)
    step = tl.load(move + every, mask=every < size, other=0.0)
    step = tl.where(finite > 0, step, 0.0)
    tl.store(move + every, step, mask=every < size)
    tl.store(solved + problem, tl.where(finite > 0, 1, 0))
    tl.store(promised + problem, tl.maximum(tl.where(finite > 0, expects, 0.0), 1e-30))
    at = problem * LENGTH + every
    tl.store(new_codes + at, tl.load(codes + at, mask=every < LENGTH, other=0.0) + step, mask=every < LENGTH)
    tl.debug_barrier()
    _moved(
        move + LENGTH, freedom + problem * 7, log_scale + problem, rotation + problem * 9,
        translation + problem * 3, new_log_scale + problem, new_rotation + problem * 9,
        new_translation + problem * 3, taken,
    )  # fmt: skip


@triton.jit
def _inverse_factor(block, i, k):
    """The inverse of the lower Cholesky factor of a BLOCK of a matrix; NaN where there is none."""
    inverse = tl.where(i == k, 1.0, 0.0)
    for pivot in range(BLOCK):
        down = tl.sum(tl.where(k == pivot, block, 0.0), axis=1, keep_dims=True)
        root = tl.sqrt(tl.sum(tl.where(i == pivot, down, 0.0)))
        down = tl.where(i > pivot, down / root, 0.0)
        across = tl.sum(tl.where(i == pivot, inverse, 0.0), axis=0, keep_dims=True) / root
        inverse = tl.where(i == pivot, across, inverse - down * across)
        block -= down * tl.trans(down)
    return inverse


@triton.jit
def _moved(
    move, freedom, log_scale, rotation, translation, new_log_scale, new_rotation, new_translation, taken
):
    """A placement after a move, as `model.placement.Placements.moved` finds it."""
    move_scale = taken * tl.load(move) * tl.load(freedom)
    tl.store(new_log_scale, tl.load(log_scale) + move_scale)
    for axis in tl.static_range(3):
        along = taken * tl.load(move + 1 + axis) * tl.load(freedom + 1 + axis)
        tl.store(new_translation + axis, tl.load(translation + axis) + along)
    x = taken * tl.load(move + 4) * tl.load(freedom + 4)
    y = taken * tl.load(move + 5) * tl.load(freedom + 5)
    z = taken * tl.load(move + 6) * tl.load(freedom + 6)
    square = x * x + y * y + z * z
    angle = tl.sqrt(square)
    near = square < 1e-4
    sine = tl.where(near, 1 - square / 6, tl.sin(angle) / tl.maximum(angle, 1e-12))
    half = tl.where(near, 1 - square / 24, tl.sin(angle / 2) / tl.maximum(angle / 2, 1e-12))
    versine = half * half / 2
    for column in tl.static_range(3):
        a, b, c = tl.load(rotation + column), tl.load(rotation + 3 + column), tl.load(rotation + 6 + column)
        p, q, r = y * c - z * b, z * a - x * c, x * b - y * a
        tl.store(new_rotation + column, a + sine * p + versine * (y * r - z * q))
        tl.store(new_rotation + 3 + column, b + sine * q + versine * (z * p - x * r))
        tl.store(new_rotation + 6 + column, c + sine * r + versine * (x * q - y * p))


@triton.jit
def settle(
    cost, new_cost, promised, solved, damping, raised, converged, steps_taken, steps, residual, new_residual,
    codes, new_codes, gradient, new_gradient, hessian, new_hessian,
    log_scale, new_log_scale, rotation, new_rotation, translation, new_translation,
    to_cost, to_damping, to_raised, to_converged, to_steps_taken, to_residual,  # found, as all that follow
    to_codes, to_gradient, to_hessian, to_log_scale, to_rotation, to_translation,
    tolerance,
    LENGTH: tl.constexpr,
    SHARE: tl.constexpr,
):  # fmt: skip
    """The state after a step: the new one where it lowered E, else the old one, more damped."""
    size: tl.constexpr = LENGTH + 7
    problem = tl.program_id(0)
    before, after = tl.load(cost + problem), tl.load(new_cost + problem)
    taken, most = tl.load(steps_taken + problem), tl.load(steps + problem)
    done = tl.load(converged + problem).to(tl.int1)
    unfinished = (done == 0) & (taken < most)
    decrease = before - after
    better = unfinished & (tl.load(solved + problem) > 0) & (decrease > 0)
    part = tl.program_id(1) * SHARE + tl.arange(0, SHARE)
    _choose(better, hessian, new_hessian, to_hessian, problem * size * size, part, size * size)
    if tl.program_id(1) == 0:
        damp, raise_ = tl.load(damping + problem), tl.load(raised + problem)
        gain = 2 * decrease / tl.load(promised + problem) - 1
        shrink = tl.minimum(tl.maximum(1 - gain * gain * gain, 0.2), 2.0)
        new_damp = damp * tl.where(better, shrink, raise_)
        new_damp = tl.minimum(tl.maximum(new_damp, 1e-6), 1e6)
        small = better & (decrease < tolerance * before)
        done = done | (unfinished & (small | (new_damp > 1e4)))
        taken += unfinished.to(taken.dtype)
        tl.store(to_damping + problem, tl.where(unfinished, new_damp, damp))
        tl.store(to_raised + problem, tl.where(unfinished, tl.where(better, 2.0, 2 * raise_), raise_))
        tl.store(to_converged + problem, done)
        tl.store(to_steps_taken + problem, taken)
        now, misfit = tl.where(better, after, before), tl.load(residual + problem)
        misfit = tl.where(better, tl.load(new_residual + problem), misfit)
        tl.store(to_cost + problem, now)
        tl.store(to_residual + problem, misfit)
        for first in range(0, size, SHARE):
            few = first + tl.arange(0, SHARE)
            _choose(better, codes, new_codes, to_codes, problem * LENGTH, few, LENGTH)
            _choose(better, gradient, new_gradient, to_gradient, problem * size, few, size)
        few = tl.arange(0, 16)
        _choose(better, log_scale, new_log_scale, to_log_scale, problem, few, 1)
        _choose(better, translation, new_translation, to_translation, problem * 3, few, 3)
        _choose(better, rotation, new_rotation, to_rotation, problem * 9, few, 9)


@triton.jit
def _choose(better, old, new, onto, first, part, size):
    """The new numbers where it is better."""
    place = first + part
    inside = part < size
    chosen = tl.where(better, tl.load(new + place, mask=inside), tl.load(old + place, mask=inside))
    tl.store(onto + place, chosen, mask=inside)
