"""jpc (Innocenti et al. 2024): its discrete updates of activities and parameters, jitted as one training step."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jpc
import optax

from bench.steps.peers.blocks import blocks
from bench.steps.peers.jax_arrays import batch, check_device, gradients_by_name, layer
from bench.steps.task import LEARNING_RATE, STEPS, Gradients, Prepared, Task

__all__ = ["prepare"]


def prepare(task: Task) -> Prepared:
    """A training step by jpc."""
    check_device(task)
    inputs, target = batch(task)
    model = [eqx.nn.Sequential([layer(module) for module in block]) for block in blocks(task.model)]
    activity_optimizer = optax.sgd(task.step_size * inputs.shape[0])  # jpc's energy is a mean over the batch
    optimizer = optax.sgd(LEARNING_RATE)
    initial = (model, None), optimizer.init((eqx.filter(model, eqx.is_array), None))

    @eqx.filter_jit
    def train(params: Any, optimizer_state: Any) -> tuple[Any, Any, Any]:
        activities = jpc.init_activities_with_ffwd(model=params[0], input=inputs)
        state = activity_optimizer.init(activities)
        options = {"output": target, "input": inputs, "loss_id": "ce"}
        for _ in range(STEPS):
            moved = jpc.update_pc_activities(
                params=params, activities=activities, optim=activity_optimizer, opt_state=state, **options
            )
            activities, state = moved["activities"], moved["opt_state"]
        learned = jpc.update_pc_params(
            params=params, activities=activities, optim=optimizer, opt_state=optimizer_state, **options
        )
        return (learned["model"], learned["skip_model"]), learned["opt_state"], learned["grads"]

    now = [*initial, None]

    def step() -> None:
        now[:] = train(now[0], now[1])

    def reset() -> None:
        now[:2] = initial

    def gradients() -> Gradients:
        reset()
        step()
        return gradients_by_name(task, jax.tree.leaves(eqx.filter(now[2], eqx.is_array)))

    return Prepared(step, gradients, "strict", reset, lambda: jax.block_until_ready(now), in_torch=False)
