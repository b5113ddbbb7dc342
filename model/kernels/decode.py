"""The decoder as one kernel: all of its layers forwards, and backwards, for a block of points at a time.

Launched layer by layer, a step of a fit spends most of its time on getting features to and from a GPU's
memory. Here they stay in its cache: every program has its own piece of scratch memory, into which it writes
what comes out of a layer and from which it reads the next one's input.

Products of matrices run in half precision, where a GPU is ten times faster. Going forwards, numbers are
split into two of half precision, x ≈ high + low, and x · w ≈ high · high + high · low + low · high: what is
left out is no more than float32's own rounding. Slopes, going backwards, are of half precision alone.

`model.fused.decoder` says which arrays these are. Imported only where Triton is.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count", "each", "fed"])
def decode(
    points,  # (N, 3) float32
    constants,  # (problems, DEPTH, WIDTH) float32: W_z·z + b of each layer
    high,  # (DEPTH, WIDTH + ENCODED, WIDTH) float16: weights, from an input to an output
    low,  # the same: what is left of the weights
    of_code,  # (DEPTH, CODE, WIDTH) float16: weights from a code to an output
    last,  # (WIDTH + 1) float32: weights of the last layer, and its bias
    features,  # scratch: (programs, SLOTS, ROWS, WIDTH + ENCODED) float16, for the high halves
    rests,  # scratch: (programs, 2, ROWS, WIDTH + ENCODED) float16, for the low halves
    slopes,  # scratch: (programs, DEPTH, ROWS, WIDTH) float16
    distances,  # (N) float32: found
    by_point,  # (N, 3) float32: found
    by_code,  # (N, LENGTH) float32: found
    count,  # N
    each,  # points of each problem
    fed,  # bits: which layers see the encoded point
    scale,  # what weights are to be multiplied by: they are powers of two too large
    OCTAVES: tl.constexpr,
    TANH: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    ENCODED: tl.constexpr,
    CODE: tl.constexpr,
    LENGTH: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHARE: tl.constexpr,
    SLOPED: tl.constexpr,
    CODED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Signed distances, and if SLOPED by which points, if CODED by which codes they change.

    A program works on ROWS points at a time. WIDTH, ENCODED, CODE: lengths, filled up with zeros, of a layer,
    of an encoded point and of a code, whose own length is LENGTH. SLOTS: DEPTH + 1 if SLOPED, else 2.
    COLUMNS and SHARE: outputs and inputs of a layer that are multiplied at a time.
    """
    program = tl.program_id(0)
    inputs: tl.constexpr = WIDTH + ENCODED
    slot: tl.constexpr = ROWS * inputs
    features += program.to(tl.int64) * SLOTS * slot
    rests += program.to(tl.int64) * 2 * slot
    slopes += program.to(tl.int64) * DEPTH * ROWS * WIDTH
    row = tl.arange(0, ROWS)[:, None]
    of_share = tl.arange(0, SHARE)
    for block in range(program, tl.cdiv(count, ROWS), tl.num_programs(0)):
        number = block * ROWS + row
        tl.debug_barrier()  # the block before has been read
        encoded = _encoded(points, number, count, OCTAVES, ENCODED)
        rounded = encoded.to(tl.float16)
        rest = (encoded - rounded.to(tl.float32)).to(tl.float16)
        for layer in range(DEPTH):
            if (fed >> layer) & 1:
                place = row * inputs + WIDTH + tl.arange(0, ENCODED)[None, :]
                tl.store(features + (layer % SLOTS) * slot + place, rounded)
                tl.store(rests + (layer % 2) * slot + place, rest)
        tl.debug_barrier()

        distance = tl.zeros([ROWS, 1], tl.float32)
        own = tl.minimum(number, count - 1) // each * (DEPTH * WIDTH)
        for layer in range(DEPTH):
            first = tl.where(layer == 0, WIDTH, 0)  # nothing comes before the first layer
            end = WIDTH + ENCODED * ((fed >> layer) & 1)
            x_high, x_low = features + (layer % SLOTS) * slot, rests + (layer % 2) * slot
            y_high, y_low = features + ((layer + 1) % SLOTS) * slot, rests + ((layer + 1) % 2) * slot
            for column in tl.static_range(0, WIDTH, COLUMNS):
                output = column + tl.arange(0, COLUMNS)[None, :]
                total = tl.zeros([ROWS, COLUMNS], tl.float32)
                for share in tl.range(first, end, SHARE, num_stages=STAGES):
                    x = row * inputs + share + of_share[None, :]
                    w = (layer * inputs + share + of_share[:, None]) * WIDTH + output
                    near, much = tl.load(x_high + x), tl.load(high + w)
                    total = tl.dot(near, much, total)
                    total = tl.dot(near, tl.load(low + w), total)
                    total = tl.dot(tl.load(x_low + x), much, total)
                total = tl.maximum(total * scale + tl.load(constants + layer * WIDTH + (own + output)), 0.0)
                if layer == DEPTH - 1:
                    distance += tl.sum(total * tl.load(last + output), axis=1, keep_dims=True)
                y = row * inputs + output
                half = total.to(tl.float16)
                tl.store(y_high + y, half)
                tl.store(y_low + y, (total - half.to(tl.float32)).to(tl.float16))
            tl.debug_barrier()

        distance += tl.load(last + WIDTH)
        steep = tl.full([ROWS, 1], 1.0, tl.float32)
        for _ in tl.static_range(TANH):
            distance = _tanh(distance)
            steep *= 1 - distance * distance
        tl.store(distances + number, distance, mask=number < count)

        if SLOPED:
            _backwards(
                high,
                last,
                features,
                slopes,
                steep,
                scale,
                DEPTH,
                WIDTH,
                ENCODED,
                ROWS,
                COLUMNS,
                SHARE,
                STAGES,
            )
            by_encoded = _times(slopes, high, fed, WIDTH, DEPTH, WIDTH, inputs, ENCODED, ROWS, SHARE, STAGES)
            by_encoded *= scale * _slope_of_encoded(points, number, count, OCTAVES, ENCODED)
            axis = _axis(OCTAVES, ENCODED)
            for one in tl.static_range(3):
                by_axis = tl.sum(tl.where(axis == one, by_encoded, 0.0), axis=1, keep_dims=True)
                tl.store(by_point + number * 3 + one, by_axis, mask=number < count)
        if CODED:
            part = tl.arange(0, CODE)[None, :]
            found = _times(slopes, of_code, fed, 0, DEPTH, WIDTH, CODE, CODE, ROWS, SHARE, STAGES)
            tl.store(by_code + (number * LENGTH + part), found, mask=(number < count) & (part < LENGTH))


@triton.jit
def _backwards(
    high,
    last,
    features,
    slopes,
    steep,
    scale,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    ENCODED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHARE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Into scratch memory: how the distance moves with what comes out of each layer, before its rectifier."""
    inputs: tl.constexpr = WIDTH + ENCODED
    row = tl.arange(0, ROWS)[:, None]
    for column in tl.static_range(0, WIDTH, COLUMNS):
        final = column + tl.arange(0, COLUMNS)[None, :]
        alive = tl.load(features + DEPTH * ROWS * inputs + (row * inputs + final)) > 0
        slope = tl.where(alive, tl.load(last + final) * steep, 0.0)
        tl.store(slopes + (DEPTH - 1) * ROWS * WIDTH + (row * WIDTH + final), slope.to(tl.float16))
    tl.debug_barrier()
    for back in range(DEPTH - 1):
        layer = DEPTH - 1 - back
        after, before = slopes + layer * ROWS * WIDTH, slopes + (layer - 1) * ROWS * WIDTH
        for column in tl.static_range(0, WIDTH, COLUMNS):
            part = column + tl.arange(0, COLUMNS)
            total = tl.zeros([ROWS, COLUMNS], tl.float32)
            for share in tl.range(0, WIDTH, SHARE, num_stages=STAGES):
                output = share + tl.arange(0, SHARE)[None, :]
                weights = tl.load(high + layer * inputs * WIDTH + (part[:, None] * WIDTH + output))
                total = tl.dot(tl.load(after + (row * WIDTH + output)), tl.trans(weights), total)
            on = tl.load(features + layer * ROWS * inputs + (row * inputs + part[None, :])) > 0
            half = tl.where(on, total * scale, 0.0).to(tl.float16)
            tl.store(before + (row * WIDTH + part[None, :]), half)
        tl.debug_barrier()


@triton.jit
def _times(
    slopes,
    weights,
    fed,
    first,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    inputs: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    SHARE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Slopes times the weights of inputs from the `first` on, (ROWS, SIZE): summed over the layers fed."""
    row = tl.arange(0, ROWS)[:, None]
    part = first + tl.arange(0, SIZE)
    total = tl.zeros([ROWS, SIZE], tl.float32)
    for layer in range(DEPTH):
        own, after = weights + layer * inputs * WIDTH, slopes + layer * ROWS * WIDTH
        for share in tl.range(0, WIDTH * ((fed >> layer) & 1), SHARE, num_stages=STAGES):
            output = share + tl.arange(0, SHARE)[None, :]
            some = tl.load(own + (part[:, None] * WIDTH + output))
            total = tl.dot(tl.load(after + (row * WIDTH + output)), tl.trans(some), total)
    return total


@triton.jit
def _tanh(x):
    """Near zero by its series, where the other way would lose what is small."""
    square = x * x
    series = x * (1 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315 - square * (62 / 2835)))))
    return tl.where(square < 0.04, series, 1 - 2 / (tl.exp(2 * x) + 1))


@triton.jit
def _axis(OCTAVES: tl.constexpr, ENCODED: tl.constexpr):
    """Of which axis each part of an encoded point is: the point, sines of each in all octaves, cosines."""
    part = tl.arange(0, ENCODED)[None, :]
    wave = (part - 3) % max(1, 3 * OCTAVES) // max(1, OCTAVES)
    return tl.where(part < 3, part, tl.where(part < 3 + 6 * OCTAVES, wave, 3))


@triton.jit
def _waves(points, number, count, OCTAVES: tl.constexpr, ENCODED: tl.constexpr):
    """The coordinates (ROWS, ENCODED) of which parts of an encoded point are, and their frequencies."""
    part = tl.arange(0, ENCODED)[None, :]
    axis = _axis(OCTAVES, ENCODED)
    known = tl.load(points + (number * 3 + axis), mask=(number < count) & (axis < 3), other=0.0)
    return known, 1.5707963267948966 * tl.exp2(((part - 3) % max(1, OCTAVES)).to(tl.float32))


@triton.jit
def _encoded(points, number, count, OCTAVES: tl.constexpr, ENCODED: tl.constexpr):
    """Points (ROWS, ENCODED), encoded as by `model.decoder.encode_points`."""
    part = tl.arange(0, ENCODED)[None, :]
    known, frequency = _waves(points, number, count, OCTAVES, ENCODED)
    if OCTAVES == 0:
        return known
    sines = tl.where(part < 3 + 3 * OCTAVES, tl.sin(known * frequency), tl.cos(known * frequency))
    return tl.where(part < 3, known, tl.where(part < 3 + 6 * OCTAVES, sines, 0.0))


@triton.jit
def _slope_of_encoded(points, number, count, OCTAVES: tl.constexpr, ENCODED: tl.constexpr):
    """How each part of an encoded point moves with its coordinate (ROWS, ENCODED)."""
    part = tl.arange(0, ENCODED)[None, :]
    known, frequency = _waves(points, number, count, OCTAVES, ENCODED)
    if OCTAVES == 0:
        return tl.where(part < 3, known * 0 + 1, 0.0)
    turned = tl.where(part < 3 + 3 * OCTAVES, tl.cos(known * frequency), -tl.sin(known * frequency))
    return tl.where(part < 3, 1.0, turned * frequency)
