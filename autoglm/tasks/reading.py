"""Reading a task from the ``task.json`` beside a model."""

from __future__ import annotations

import json
from typing import Any

from fedglm.autoglm.errors import DataError
from fedglm.autoglm.tasks.classification import TabularClassification, TextClassification
from fedglm.autoglm.tasks.language_modeling import LanguageModeling
from fedglm.autoglm.tasks.task import Task

_TASKS: tuple[type[Task], ...] = (LanguageModeling, TextClassification, TabularClassification)


def read_task(text: str) -> Task:
    """Read the task that ``Task.to_json`` wrote, without a tokenizer.

    Raises:
        DataError: The text is no task.
    """
    by_kind = {str(task.kind): task for task in _TASKS}
    try:
        fields: dict[str, Any] = json.loads(text)
        return by_kind[fields.pop("kind")].from_fields(**fields)
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise DataError(f"not the description of a task ({exc})") from exc
