"""pcx (Pinchetti et al. 2024): a training step as in its tutorials."""

from __future__ import annotations

from typing import Any

import jax
import optax
import pcx.functional as pxf
import pcx.nn as pxnn
import pcx.predictive_coding as pxc
import pcx.utils as pxu

from bench.steps.peers.blocks import blocks
from bench.steps.peers.jax_arrays import batch, check_device, gradients_by_name, layer
from bench.steps.task import LEARNING_RATE, STEPS, Gradients, Prepared, Task

__all__ = ["prepare"]

BATCHED = pxu.M(pxc.VodeParam | pxc.VodeParam.Cache).to((None, 0))


def moves() -> pxu.M:
    """Selects the values; a new one each time, because `to` changes it."""
    return pxu.M_hasnot(pxc.VodeParam, frozen=True)


def learns() -> pxu.M:
    """Selects the parameters."""
    return pxu.M(pxnn.LayerParam)


class Network(pxc.EnergyModule):
    """A value node after each block; the last one holds the target and scores by cross entropy."""

    def __init__(self, chain: list[list[Any]]) -> None:
        super().__init__()
        self.blocks = [[pxnn.Layer(lambda made=made: made) for made in block] for block in chain]
        self.vodes = [pxc.Vode() for _ in chain[:-1]] + [pxc.Vode(pxc.ce_energy)]
        self.vodes[-1].h.frozen = True

    def __call__(self, x: jax.Array, y: jax.Array | None) -> jax.Array:
        for block, vode in zip(self.blocks, self.vodes, strict=True):
            for part in block:
                x = part(x)
            x = vode(x)
        if y is not None:
            self.vodes[-1].set("h", y)
        return self.vodes[-1].get("u")


@pxf.vmap(BATCHED, in_axes=(0, 0), out_axes=0)
def forward(x: jax.Array, y: jax.Array, *, model: Network) -> jax.Array:
    return model(x, y)


@pxf.vmap(BATCHED, in_axes=(0,), out_axes=(None, 0), axis_name="batch")
def energy(x: jax.Array, *, model: Network) -> tuple[jax.Array, jax.Array]:
    y = model(x, None)
    return jax.lax.psum(model.energy(), "batch"), y


@pxf.jit(static_argnums=0)
def train(steps: int, x: jax.Array, y: jax.Array, *, model: Network, learner: pxu.Optim, mover: pxu.Optim) -> Any:
    """One training step; returns the gradients of the parameters, summed over the batch."""
    model.train()
    with pxu.step(model, pxc.STATUS.INIT, clear_params=pxc.VodeParam.Cache):
        forward(x, y, model=model)
    mover.init(moves()(model))
    for _ in range(steps):
        with pxu.step(model, clear_params=pxc.VodeParam.Cache):
            _, slopes = pxf.value_and_grad(moves().to([False, True]), has_aux=True)(energy)(x, model=model)
        mover.step(model, slopes["model"])
    mover.clear()
    with pxu.step(model, clear_params=pxc.VodeParam.Cache):
        _, slopes = pxf.value_and_grad(learns().to([False, True]), has_aux=True)(energy)(x, model=model)
    gradients = jax.tree.leaves(learns()(slopes["model"]))  # before the optimizer scales them in place
    learner.step(model, slopes["model"], scale_by=1.0 / x.shape[0])
    return gradients


def prepare(task: Task) -> Prepared:
    """A training step by pcx."""
    check_device(task)
    inputs, target = batch(task)
    chain = [[layer(module) for module in block] for block in blocks(task.model)]
    model = Network(chain)
    with pxu.step(model, pxc.STATUS.INIT, clear_params=pxc.VodeParam.Cache):
        forward(inputs, target, model=model)  # gives the value nodes their shapes
    learner = pxu.Optim(lambda: optax.sgd(LEARNING_RATE), learns()(model))
    mover = pxu.Optim(lambda: optax.sgd(task.step_size))
    found = jax.tree.leaves(model, is_leaf=lambda leaf: isinstance(leaf, pxnn.LayerParam))
    initial = [(leaf, leaf.get()) for leaf in found if isinstance(leaf, pxnn.LayerParam)]
    latest: list[Any] = []

    def reset() -> None:
        for parameter, value in initial:
            parameter.set(value)

    def step() -> None:
        latest[:] = train(STEPS, inputs, target, model=model, learner=learner, mover=mover)

    def gradients() -> Gradients:
        reset()
        step()
        arrays = [array / inputs.shape[0] for array in latest]
        return gradients_by_name(task, arrays)

    def synchronize() -> None:
        jax.block_until_ready((jax.tree.leaves(model), latest))

    return Prepared(step, gradients, "strict", reset, synchronize, in_torch=False)
