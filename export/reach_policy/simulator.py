"""The `reach_policy` task: a point robot crosses a field of eight round obstacles to a goal on the far side.

In: a policy, a number of episodes and a seed. Out: which episodes succeeded, and the paths; or demonstrations; or a picture.
The obstacles stand as the pins of a Galton board: behind every gap stands a pin, to be passed on the left or on the right at about equal cost.
A policy that answers with the mean of its demonstrations drives into one in more than four of ten episodes.
Everything is numpy, vectorised over episodes, and a function of its seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Policy = Callable[[Floats, Floats, int], Floats]
"""policy(context: float32[N, 2, 2], goal: float32[N, 2], seed) -> float32[N, HORIZON, 2]; context holds the position and the previous action."""

OBSTACLES: Floats = np.array([(-0.8, -0.42), (0.0, -0.42), (0.8, -0.42), (-0.4, 0.0), (0.4, 0.0), (-0.8, 0.42), (0.0, 0.42), (0.8, 0.42)], np.float32)
"""Centres of the obstacles, in a world that is [-1, 1] x [-1, 1]."""
RADIUS = 0.165
"""Radius of every obstacle, in world units."""
ACTION_SCALE = 0.089
"""World units that one unit of action moves the robot; it gives the demonstrations' actions a standard deviation of 0.5."""
MAX_STEP = 0.085
"""The longest move that one action makes, in world units; longer ones are shortened to it."""
TOLERANCE = 0.06
"""Distance from the goal that counts as there, in world units."""
STEP_LIMIT = 60
"""Actions in an episode."""
HORIZON = 8
"""Actions in a chunk."""
EXECUTED = 4
"""Actions of a chunk that are carried out before the policy is asked again."""

_ROWS = np.array([-0.42, 0.0, 0.42])
_GATES = np.array(list(itertools.product((-0.4, 0.4), (-0.8, 0.0, 0.8), (-0.4, 0.4))))  # x of the gap taken in each row, one line per passage
_CRUISE = 0.07  # the expert's step
_TURN = 0.1  # what a turn costs it, and how little costs matter to it; both in world units
_TEMPERATURE = 0.45


def episodes(count: int, seed: int) -> tuple[Floats, Floats]:
    """Random starts and goals on opposite sides of the field, half of them upwards and half downwards.

    Returns starts and goals, float32[count, 2] each: x in [-0.3, 0.3], 0.8 <= |y| <= 0.92. Raises ValueError if count < 1.
    """
    if count < 1:
        raise ValueError(f"expected at least 1 episode, found {count}")
    rng = np.random.default_rng([seed, 0])
    x = rng.uniform(-0.3, 0.3, (2, count))
    y = rng.uniform(0.8, 0.92, (2, count)) * np.where(rng.random(count) < 0.5, 1.0, -1.0)
    return np.stack([x[0], -y[0]], 1).astype(np.float32), np.stack([x[1], y[1]], 1).astype(np.float32)


def move(action: NDArray[np.floating]) -> NDArray[np.floating]:
    """The displacement that an action causes: float[..., 2], world units, at most MAX_STEP long."""
    step = action * ACTION_SCALE
    length = np.linalg.norm(step, axis=-1, keepdims=True)
    return step * np.minimum(1.0, MAX_STEP / np.maximum(length, 1e-12))


def _clearance(a: NDArray[np.floating], along: NDArray[np.floating]) -> NDArray[np.floating]:
    """Distance from the centre of the nearest obstacle to the segment from a to a + along: float[N]; both are float[N, 2]."""
    to = OBSTACLES - a[:, None, :]
    u = np.clip((to @ along[:, :, None])[..., 0] / np.maximum((along * along).sum(-1, keepdims=True), 1e-12), 0.0, 1.0)
    return np.asarray(np.linalg.norm(to - u[..., None] * along[:, None, :], axis=-1).min(axis=1))


def collides(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether the straight move from a to b touches an obstacle or leaves the world; a and b: float[N, 2]. Returns bool[N]."""
    return (_clearance(a, b - a) < RADIUS) | (np.abs(b).max(axis=1) > 1.0)


def rollout(policy: Policy, count: int, seed: int) -> tuple[NDArray[np.bool_], Floats]:
    """Run `count` episodes side by side under a policy that is asked for HORIZON actions after every EXECUTED.

    policy: called with all the episodes, the finished ones too, and with another seed each time, so that its noise for one episode
    does not depend on how the others fare. A finished robot stays where it is.
    Returns success: bool[count], within TOLERANCE of the goal in STEP_LIMIT actions without a collision;
    and paths: float32[count, STEP_LIMIT + 1, 2], world units. Raises ValueError if the policy's answer has another shape or is not finite.
    """
    position, goal = episodes(count, seed)
    previous = np.zeros_like(position)
    paths = np.repeat(position[:, None], STEP_LIMIT + 1, axis=1)
    success, failed = np.zeros(count, bool), np.zeros(count, bool)
    seeds = np.random.default_rng([seed, 1])
    for first in range(0, STEP_LIMIT, EXECUTED):
        if (success | failed).all():
            break
        actions = policy(np.stack([position, previous], 1), goal, int(seeds.integers(2**62)))
        if actions.shape != (count, HORIZON, 2) or not np.isfinite(actions).all():
            raise ValueError(f"policy: expected finite actions [{count}, {HORIZON}, 2], found shape {list(actions.shape)} or a value not finite")
        for i in range(first, min(first + EXECUTED, STEP_LIMIT)):
            moving = ~(success | failed)
            step = np.where(moving[:, None], move(actions[:, i - first]), 0.0).astype(np.float32)
            failed |= moving & collides(position, position + step)
            position, previous = position + step, step / ACTION_SCALE
            success |= moving & ~failed & (np.linalg.norm(position - goal, axis=1) < TOLERANCE)
            paths[:, i + 1 :] = position[:, None]
    return success, paths


def _passed(position: NDArray[np.float64], goal: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many rows of gaps lie behind the robot, or so close that it turns to the next: int64[N]."""
    upwards = np.sign(goal[:, 1:])
    return np.asarray(((position[:, 1:] * upwards - _ROWS) > -0.05).sum(1))


def _plans(state: NDArray[np.float64], goal: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Points to pass, float64[N, 4, 2]: a gap in each row, the goal last; a passage is drawn by exp(-cost / _TEMPERATURE).

    A passage costs the length of the way that is left, _TURN times 1 - cos of the turn that it begins with, and much if that way is blocked.
    """
    n, passages = len(state), len(_GATES)
    position, previous = state[:, 0], state[:, 1]
    points = np.empty((n, passages, 5, 2))
    points[:, :, 0], points[:, :, 4] = position[:, None], goal[:, None]
    points[:, :, 1:4, 0] = _GATES
    points[:, :, 1:4, 1] = (np.sign(goal[:, 1:]) * _ROWS)[:, None]
    passed = _passed(position, goal)
    way = np.where((np.arange(5) <= passed[:, None])[:, None, :, None], position[:, None, None], points)
    cost = np.linalg.norm(np.diff(way, axis=2), axis=-1).sum(-1)
    ahead = points[np.arange(n), :, 1 + passed] - position[:, None]
    lengths = np.linalg.norm(ahead, axis=-1) * np.linalg.norm(previous, axis=-1)[:, None]
    cost += _TURN * (1.0 - (ahead @ previous[:, :, None])[..., 0] / np.maximum(lengths, 1e-9))
    cost += 10.0 * (_clearance(position.repeat(passages, 0), ahead.reshape(-1, 2)).reshape(n, passages) < RADIUS + 0.035)
    plan = points[np.arange(n), (rng.gumbel(size=(n, passages)) - cost / _TEMPERATURE).argmax(1), 1:]
    plan[:, :3] += rng.normal(0.0, 0.015, (n, 3, 2))
    return plan


def _expert(position: NDArray[np.float64], previous: NDArray[np.float64], plan: NDArray[np.float64]) -> NDArray[np.float64]:
    """The expert's next action, float64[N, 2]: 0.3 of the previous one, 0.7 towards the next point of the plan, pushed off the obstacles."""
    passed = _passed(position, plan[:, 3])
    to = plan[np.arange(len(plan)), passed] - position
    distance = np.linalg.norm(to, axis=1, keepdims=True)
    wanted = to / np.maximum(distance, 1e-9) * np.minimum(_CRUISE, np.where(passed[:, None] == 3, 0.5 * distance, _CRUISE))
    away = position[:, None] - OBSTACLES
    gap = np.linalg.norm(away, axis=-1, keepdims=True)
    push = away / np.maximum(gap, 1e-9) * np.maximum(0.0, RADIUS + 0.075 - gap)
    return np.asarray(0.3 * previous + 0.7 * (wanted + push.sum(1)) / ACTION_SCALE)


def demonstrations(count: int, seed: int, noise: float = 0.15) -> tuple[Floats, Floats, Floats]:
    """What the expert does next in every state of `count` episodes whose robot is shaken on its way.

    The expert chooses its passage anew in every state, at random, so the past does not give the choice away; the robot follows each
    EXECUTED-th choice. noise: standard deviation of what is added to each action that is carried out, so that states off the path are seen too;
    the chunk that goes with a state is what the expert does from there undisturbed. States from which it fails are left out.
    Returns context: float32[M, 2, 2] (position, previous action), goal: float32[M, 2], chunk: float32[M, HORIZON, 2]; M is about 35 * count.
    """
    start, target = episodes(count, seed)
    rng = np.random.default_rng([seed, 2])
    state, goal = np.stack([start, np.zeros_like(start)], 1).astype(np.float64), target.astype(np.float64)
    seen: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    followed = np.empty((count, 4, 2))
    for i in range(STEP_LIMIT):
        plan = _plans(state, goal, rng)
        seen.append((state, plan))
        followed = plan if i % EXECUTED == 0 else followed
        position = state[:, 0]
        step = move(_expert(position, state[:, 1], followed) + rng.normal(0.0, noise, position.shape))
        going = ~collides(position, position + step) & (np.linalg.norm(position + step - goal, axis=1) > 0.5 * TOLERANCE)
        state, goal, followed = np.stack([position + step, step / ACTION_SCALE], 1)[going], goal[going], followed[going]
    context, plan = (np.concatenate(part) for part in zip(*seen, strict=True))
    position, previous = context[:, 0], context[:, 1]
    chunk, safe = np.empty((len(context), HORIZON, 2)), np.ones(len(context), bool)
    for i in range(HORIZON):
        step = move(_expert(position, previous, plan))
        safe &= ~collides(position, position + step)
        position, previous = position + step, step / ACTION_SCALE
        chunk[:, i] = previous
    return context[safe].astype(np.float32), plan[safe, 3].astype(np.float32), chunk[safe].astype(np.float32)


def _coverage(points: NDArray[np.floating], half_width: float, size: int) -> NDArray[np.float64]:
    """How much of each pixel a polyline covers, float64[size, size]; points: float[K, 2], pixels; K = 1 is a disc."""
    cover = np.zeros((size, size))
    reach = half_width + 1.0
    for a, b in itertools.pairwise(points if len(points) > 1 else np.repeat(points, 2, axis=0)):
        low = np.clip(np.floor(np.minimum(a, b) - reach), 0, size).astype(int)
        high = np.clip(np.ceil(np.maximum(a, b) + reach) + 1, 0, size).astype(int)
        at = np.stack(np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1])), -1) + 0.5 - a
        u = np.clip(at @ (b - a) / max(float((b - a) @ (b - a)), 1e-12), 0.0, 1.0)
        distance = np.linalg.norm(at - u[..., None] * (b - a), axis=-1)
        window = cover[low[1] : high[1], low[0] : high[0]]
        np.maximum(window, np.clip(half_width + 0.5 - distance, 0.0, 1.0), out=window)
    return cover


def evaluate(act: Callable[..., Floats], count: int, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """What `edgegen run --rollout` calls: success per episode, and the picture of all paths.

    act(seed, context=float32[N, 2, 2], goal=float32[N, 2]) -> float32[N, HORIZON, 2].
    """
    success, paths = rollout(lambda context, goal, draw_seed: act(draw_seed, context=context, goal=goal), count, seed)
    return success, draw(paths, success, episodes(count, seed)[1])


def draw(paths: Floats, success: NDArray[np.bool_], goals: Floats | None = None, size: int = 512) -> NDArray[np.uint8]:
    """A picture of the obstacles (grey), the goals (green), and the paths: blue where they succeeded, red where not.

    paths: float32[N, T, 2], world units; success: bool[N]; goals: float32[N, 2], or None for the ends of the paths that succeeded.
    Returns uint8[size, size, 3], y upwards. Cost: some 5 ms for each path at 512 pixels. Raises ValueError if the shapes do not agree.
    """
    if paths.ndim != 3 or paths.shape[2] != 2 or success.shape != paths.shape[:1]:
        raise ValueError(f"expected paths [N, T, 2] and success [N], found {list(paths.shape)} and {list(success.shape)}")
    goals = paths[success, -1] if goals is None else goals
    picture = np.full((size, size, 3), 255.0)

    def pixels(points: NDArray[np.floating]) -> NDArray[np.float64]:
        return (np.asarray(points, np.float64) * (1.0, -1.0) + 1.0) * (size / 2)

    def paint(points: NDArray[np.floating], half_width: float, colour: tuple[int, int, int], opacity: float) -> None:
        cover = opacity * _coverage(pixels(points), half_width, size)[..., None]
        picture[:] = picture * (1.0 - cover) + cover * np.array(colour)

    for centre in OBSTACLES:
        paint(centre[None], RADIUS * size / 2, (140, 144, 150), 1.0)
    for goal in goals:
        paint(goal[None], TOLERANCE * size / 2, (60, 170, 90), 0.5)
    for path, good in zip(paths, success, strict=True):
        last = int(np.flatnonzero(np.any(np.diff(path, axis=0) != 0.0, axis=1)).max(initial=0)) + 2  # a finished robot stays where it is
        paint(path[:last], size / 512, (35, 95, 190) if good else (205, 50, 45), 0.7)
        paint(path[:1], size / 170, (30, 30, 30), 0.8)
    return np.asarray(picture.round(), np.uint8)
