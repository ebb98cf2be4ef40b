"""Tell a world-action model in sentences what to do: the instruction of a command, and tasks that it does not know.

The sentence reaches the networks through the text encoder alone: nothing looks a task up by its sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from rewards.errors import UserError, closest_or_known
from rl.build import find_simulator
from rl.config import SimulatorConfig
from rl.envs.names import task_of_id
from world_model.spec import Spec
from world_model.wam.config import ModelConfig
from world_model.wam.model import WorldActionModel
from world_model.wam.text import encoded_by, load_encoder, words_of

Env = TypeVar("Env", bound=SimulatorConfig)


def with_instruction(
    env: Env, instruction: str | None, spec: Spec | None = None, say: Callable[[str], None] = lambda line: None
) -> Env:
    """Return `env` with `instruction` as the sentence of its one task; None: `env` itself.

    Args:
        env: names the task.
        instruction: any sentence.
        spec: of a checkpoint; if `env` names no task, its task whose sentences are nearest to `instruction` is taken.
            That chooses a scene and what counts as success there, and nothing that the networks read.
        say: called with a line that names the task, if it was taken from `spec`.

    Raises:
        UserError: it does not name exactly one task, and no single one is nearest.
    """
    if instruction is None:
        return env
    tasks = env.tasks or ((task_of_id(env.id),) if env.id else ())
    if spec is not None and not tasks and len(nearest := nearest_tasks(instruction, spec)) == 1:
        tasks, env = nearest, replace(env, tasks=nearest)
        say(f"scene: {nearest[0]}, whose sentences are nearest to the instruction; env.tasks names another one")
    if len(tasks) != 1:
        raise UserError(
            f"instruction={instruction!r:.80}: it is for one task, whose scene it is given in, and env.tasks names "
            f"{', '.join(tasks) or 'none'}; add env.tasks=drawer-open or another to the command"
        )
    return replace(env, instructions=env.instructions | {tasks[0]: instruction})


def nearest_tasks(instruction: str, spec: Spec) -> tuple[str, ...]:
    """Return the tasks of `spec` with the sentence that has most words in common with `instruction`; () if none has.

    Words in common are counted in units of all words of both sentences (the Jaccard index).
    """
    asked = set(words_of(instruction))
    if not asked:
        return ()
    found = {}
    for task in spec.tasks:
        known = [set(words_of(text)) for text in (spec.instruction(task), *spec.wordings.get(task, ()))]
        found[task] = max(len(asked & words) / len(asked | words) for words in known)
    return tuple(task for task, share in found.items() if share == max(found.values()) > 0)


def tell_of(
    model: WorldActionModel,
    env: SimulatorConfig,
    tasks: Sequence[str],
    instruction: str | None = None,
    text_encoder: str = "",
) -> list[str]:
    """Give a model that reads sentences those of a config, and the tasks that it does not know; see `tell`.

    Args:
        model: is changed; a model that reads no sentences stays as it is.
        env: its `instructions` count first, then those of the simulator.
        tasks: that will be run.
        instruction: the key `instruction` of the command, which a model without sentences cannot take.
        text_encoder: name of the frozen encoder; needed for new sentences if the model has one.

    Raises:
        UserError: as for `tell`.
    """
    early = None
    if model.reads_sentences and set(tasks) - set(model.spec.tasks):
        early = find_simulator(env).early_spec(id=env.id, tasks=tasks)
    known = {} if early is None else early.instructions
    return tell(model, tasks, known | env.instructions, env.instructions, instruction, text_encoder)


def tell(
    model: WorldActionModel,
    tasks: Sequence[str],
    sentences: Mapping[str, str],
    given: Mapping[str, str],
    instruction: str | None = None,
    text_encoder: str = "",
) -> list[str]:
    """Give a model that reads sentences new ones, and return what the user should know: a line for each of these.

    Args:
        model: is changed; a model that reads no sentences stays as it is.
        tasks: that will be run; those that the model does not know are added to its spec.
        sentences: task -> sentence for tasks that the model does not know.
        given: task -> sentence that replaces the instruction of a task that it knows.
        instruction: the key `instruction` of the command, for a model that reads none.
        text_encoder: name of the frozen encoder.

    Raises:
        UserError: the model reads no sentences, and there is an `instruction`; or an unknown task has no sentence.
    """
    spec = model.spec
    if not model.reads_sentences:
        if instruction is not None:
            raise UserError(
                f"instruction={instruction!r:.80}: the checkpoint knows its tasks by name and reads no sentence; leave "
                "it out, or choose one that was trained with model.task_conditioning=text"
            )
        return []
    unseen = tuple(dict.fromkeys(task for task in tasks if task not in spec.tasks))
    for task in unseen:
        if task not in sentences:
            raise UserError(
                f"task {task!r} is unknown to the checkpoint, and there is no sentence for it; say what to do with "
                f"instruction='...', or {closest_or_known(task, spec.tasks)}"
            )
    new = {task: given[task] for task in spec.tasks if task in given and given[task] != spec.instruction(task)}
    if not unseen and not new:
        return []
    lines = [
        f"task {task} is unseen: the checkpoint was not trained on it and has only its sentence, {sentences[task]!r}"
        for task in unseen
    ]
    lines += [_described(spec, task, text) for task, text in new.items()]
    told = replace(
        spec,
        tasks=spec.tasks + unseen,
        instructions=spec.instructions | new | {task: sentences[task] for task in unseen},
        wordings={task: texts for task, texts in spec.wordings.items() if task not in new},
    )
    model.tell(told, load_encoder(text_encoder, key="text_encoder") if text_encoder else None)
    return lines


def new_model(config: ModelConfig, spec: Spec) -> WorldActionModel:
    """Return a model with random weights; a frozen text encoder that the config names encodes the sentences of `spec`.

    Raises:
        UserError: the config is not valid, or the encoder cannot be loaded or used.
    """
    name = config.text.encoder
    if config.task_conditioning != "text" or not name:
        return WorldActionModel(config, spec)
    encode = load_encoder(name)
    dim = encoded_by(encode, ["one"], name).shape[1]
    model = WorldActionModel(replace(config, text=replace(config.text, dim=dim)), spec)
    model.tell(model.spec, encode)
    return model


def _described(spec: Spec, task: str, text: str) -> str:
    """Return a line on the sentence `text` that replaces the instruction of a task."""
    if not text:
        return f"task {task}: without a sentence"
    others = (*spec.wordings.get(task, ()), spec.instruction(task))
    if text in others:
        return f"task {task}: {text!r}, which training had"
    nearest = nearest_tasks(text, spec)
    hint = f"; it is nearer to those of {nearest[0]}" if nearest and task not in nearest else ""
    return f"task {task}: {text!r}, a wording that training did not have for it{hint}"
