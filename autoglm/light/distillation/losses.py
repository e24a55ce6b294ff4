"""The loss by which a student learns from a teacher's distribution."""

from __future__ import annotations

import torch
from torch.nn import functional

from fedglm.autoglm.tasks.task import Batch


def divergences(student: torch.Tensor, teacher: torch.Tensor, batch: Batch, *, temperature: float) -> torch.Tensor:
    """Return T^2 KL(teacher_T || student_T) of each sequence in nats, (B,), float32, with gradients for the student.

    Gradients of the softened softmax scale as 1 / T^2; the factor keeps their weight against the cross-entropy
    (Hinton et al., arXiv:1503.02531, section 2). A language model's is the mean over the predicted tokens of the
    sequence, the same positions as in its cross-entropy.

    Args:
        student: Logits of the student, (B, C) of a classifier or (B, t, V) of a language model, float32.
        teacher: Logits of the teacher, same shape.
        batch: The batch, for the positions that are no padding.
        temperature: Temperature T, positive.
    """
    if student.dim() == 3:
        student, teacher = student[:, :-1], teacher[:, :-1]
    log_student = functional.log_softmax(student / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=-1)
    each = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1) * temperature**2
    if each.dim() == 1:
        return each
    mask = batch["attention_mask"][:, 1:]
    return (each * mask).sum(1) / mask.sum(1).clamp(min=1)
