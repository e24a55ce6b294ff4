"""Reading a task from the ``task.json`` beside a model."""

from __future__ import annotations

from fedglm.autoglm.errors import DataError
from fedglm.autoglm.tasks.classification import TabularClassification, TextClassification
from fedglm.autoglm.tasks.language_modeling import LanguageModeling
from fedglm.autoglm.tasks.task import Task
from fedglm.inference.errors import InferenceError
from fedglm.inference.inputs.task import read_task_description

_TASKS: tuple[type[Task], ...] = (LanguageModeling, TextClassification, TabularClassification)


def read_task(text: str) -> Task:
    """Read the task that ``Task.to_json`` wrote, without a tokenizer.

    Raises:
        DataError: The text is no task.
    """
    by_kind = {str(task.kind): task for task in _TASKS}
    try:
        fields = read_task_description(text).model_dump()
        return by_kind[fields.pop("kind")].from_fields(**fields)
    except InferenceError as exc:
        raise DataError(str(exc)) from exc
