"""The mesh that a config describes, and the rows that a run divides over it."""

from typing import Any

import jax

from infopo_jax import loops, sharding

MICROBATCH = 8  # most rollouts of one, where the config leaves their number to us; on large meshes one a row shard


def make_mesh(config: Any, sizes: loops.Sizes, *, training: bool = True) -> jax.sharding.Mesh:
    """Returns the mesh that a config describes.

    Args:
        config, sizes: of the run.
        training: whether there are updates, whose rows are to fit it, too.

    Raises:
        ValueError: it does not fit the devices, or the rows of a step do not fit it; the message has the numbers.
    """
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    if config.num_seeds > 1 and mesh.size > 1:
        raise ValueError(
            f'config.num_seeds = {config.num_seeds} on the mesh {sharding.describe(mesh)}: seeds stand on an axis in '
            'front of every weight and row, which is not divided; set config.mesh.data, fsdp and tensor to 1, or start '
            'a run per seed'
        )
    sharding.check_rows(mesh, count_rows(config, sizes, mesh, training=training))
    return mesh


def count_rows(
    config: Any, sizes: loops.Sizes, mesh: sharding.AnyMesh | None, *, training: bool = True
) -> dict[str, int]:
    """Returns how many rows each program of a run divides over its mesh, by what they are; see ``make_mesh``."""
    prompts, group, updates = sizes.num_prompts, sizes.group_size, config.updates
    rows = {}
    if training:
        how = 'batch.prompts / updates.minibatches * batch.group_size / updates.microbatches'
        parts = count_microbatches(config, mesh)
        numbers = f'{prompts} / {updates.minibatches} * {group} / {parts}'
        count = prompts // updates.minibatches * group // parts
        rows[f'rollouts of a microbatch ({how} = {numbers})'] = count
    if training and config.warmstart.steps and (config.model.path is None or config.warmstart.pretrained):
        rows['examples of a warm-start step (warmstart.batch)'] = config.warmstart.batch
    if config.env.kind == 'jitted':
        rows['rollouts of an evaluation (eval.episodes, in whole groups)'] = sizes.eval_groups * group
    else:
        slots, aside = count_seats(config)
        rows['slots of the rollout (rollout.slots; 0 is batch.prompts * batch.group_size)'] = slots
        rows['rollouts kept aside (rollout.aside, at most what the slots leave of a step)'] = aside
    return rows


def count_microbatches(config: Any, mesh: sharding.AnyMesh | None) -> int:
    """Returns in how many parts the gradient of a minibatch is added up; 0 in the config leaves it to us.

    Ours are as few as make parts of at most MICROBATCH rollouts, or of one for each of the parts that the mesh divides
    rows in; parts that it divides are preferred.
    """
    if config.updates.microbatches:
        return config.updates.microbatches
    rows = max(1, config.batch.prompts // config.updates.minibatches * config.batch.group_size)  # evaluations take any
    shards = sharding.row_shards(mesh)
    fewest = -(-rows // max(MICROBATCH, shards))
    fit = [parts for parts in range(fewest, rows + 1) if rows % parts == 0]
    return next((parts for parts in fit if rows // parts % shards == 0), fit[0])


def count_seats(config: Any) -> tuple[int, int]:
    """Returns how many rollouts are decoded at once, and how many are kept aside on the device."""
    rollouts = config.batch.prompts * config.batch.group_size
    slots = min(config.rollout.slots or rollouts, rollouts)
    aside = slots if config.rollout.aside == -1 else config.rollout.aside
    return slots, min(aside, rollouts - slots)
