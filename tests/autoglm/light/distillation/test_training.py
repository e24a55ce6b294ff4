import copy
from dataclasses import replace

import pytest
import torch
from tiny_glms import CLASSES, LANGUAGE, SHAPE, random_examples, tiny_glm
from torch.nn.utils import parametrize

from fedglm.autoglm.errors import DataError, ModelError
from fedglm.autoglm.light.distillation.losses import divergences
from fedglm.autoglm.light.distillation.settings import DistillationSettings, Stage
from fedglm.autoglm.light.distillation.teacher import Teacher
from fedglm.autoglm.light.distillation.training import train_student
from fedglm.autoglm.models.parameters import to_vector
from fedglm.autoglm.tasks.task import compute_logits
from fedglm.autoglm.training.local import TrainingError

TASKS = pytest.mark.parametrize("task", [LANGUAGE, CLASSES], ids=["language", "classes"])


def small_glm(task=LANGUAGE, **more):
    """A model of one layer: what trains it asks for no second."""
    return tiny_glm(task, replace(SHAPE, layers=1), **more)


def settings(steps=6, *, stages=None, **changes):
    stage = {name: changes.pop(name) for name in list(changes) if name in Stage.model_fields}
    fixed = {"steps": steps, "learning_rate": 3e-3, "warmup_steps": 1}
    fields = {"batch_size": 8, "evaluate_every": 2, "precision": "fp32"} | changes
    return DistillationSettings(stages=stages or (Stage.model_validate(fixed | stage),), **fields)


def train(task=LANGUAGE, *, student=None, teacher="new", examples=None, chosen=None, seed=1, **more):
    student = small_glm(task) if student is None else student
    teacher = small_glm(task, seed=9, spread=4.0) if teacher == "new" else teacher
    examples = random_examples(40, task, seed=1) if examples is None else examples
    held_out = more.pop("held_out", random_examples(16, task, seed=2))
    trained = train_student(
        student, teacher, examples, chosen or settings(), task=task, held_out=held_out, seed=seed, **more
    )
    return student, trained


@TASKS
def test_the_same_seed_gives_the_same_bits_whatever_came_before(task):
    first, _ = train(task)
    torch.manual_seed(123)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    again, _ = train(task)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    other, _ = train(task, seed=2)
    assert (to_vector(first) == to_vector(again)).all()
    assert (to_vector(first) != to_vector(other)).any()


@TASKS
def test_a_student_comes_nearer_to_its_teacher(task):
    teacher, held_out = small_glm(task, seed=9, spread=4.0), random_examples(16, task, seed=2)
    before = copy.deepcopy(teacher.state_dict())

    def distance(student):
        with torch.no_grad():
            (own, batch), (wanted, _) = (
                compute_logits(m.eval(), held_out.batch(range(16))) for m in (student, teacher)
            )
        return float(divergences(own, wanted, batch, temperature=1.0).mean())

    start = distance(small_glm(task))
    chosen = settings(60, alpha=1.0, temperature=1.0, keep="last", learning_rate=1e-2)
    student, _ = train(task, teacher=teacher, held_out=held_out, chosen=chosen)
    assert distance(student) < start / 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_with_alpha_0_a_teacher_changes_nothing_and_none_is_needed():
    control = settings().without_teacher()
    one, _ = train(chosen=control)
    other, _ = train(chosen=control, teacher=None)
    assert (to_vector(one) == to_vector(other)).all()


def test_the_best_weights_are_kept_and_the_last_where_asked():
    # A rate that ruins the model: the best is the start.
    student, trained = train(chosen=settings(learning_rate=3.0, gradient_clip=0))
    assert trained.kept_step == 0
    assert (to_vector(student) == to_vector(small_glm())).all()
    student, trained = train(chosen=settings(learning_rate=3.0, gradient_clip=0, keep="last"))
    assert (trained.kept_step, trained.steps) == (6, 6)
    student, trained = train(chosen=settings(20))
    best = min(trained.history, key=lambda entry: entry[1].loss)
    assert best == (trained.kept_step, trained.held_out)
    assert LANGUAGE.evaluate(student, random_examples(16, seed=2)) == trained.held_out
    assert [step for step, _ in trained.history] == list(range(0, 21, 2))
    assert not student.training


def test_micro_batches_add_up_to_the_batch():
    whole, _ = train(chosen=settings(1, keep="last"))
    parts, _ = train(chosen=settings(1, keep="last", micro_batch_size=3))
    # AdamW's first step is the rate times g / (|g| + 1e-8): the rounding of tiny gradients shows, no more.
    difference = abs(to_vector(whole) - to_vector(parts))
    assert (difference > 1e-5).mean() < 0.01


def test_a_stage_trains_what_it_names_and_the_next_goes_on():
    start = dict(small_glm().named_parameters())
    pattern = "*.layers.0.*"
    stages = (Stage(steps=3, trained=(pattern,)), Stage(steps=2, alpha=0.0))
    for count, only in ((1, True), (2, False)):
        student, trained = train(chosen=settings(stages=stages[:count], keep="last"))
        changed = {name for name, tensor in student.named_parameters() if not torch.equal(tensor, start[name])}
        assert (changed == {name for name in start if ".layers.0." in name}) is only
        assert all(parameter.requires_grad for parameter in student.parameters())
    assert trained.steps == 5
    with pytest.raises(ModelError, match="correct the patterns"):
        train(chosen=settings(trained=("nothing",)))


class Halve(torch.nn.Module):
    def forward(self, weight):
        return weight / 2


class Watch:
    def __init__(self):
        self.seen = []

    def penalty(self, student):
        self.seen.append("penalty")
        return 1e3 * student.model.norm.weight.square().sum()

    def before_update(self, student, step):
        self.seen.append(("before", step, float(student.model.norm.weight.grad.norm())))

    def after_update(self, student, step):
        self.seen.append(("after", step))
        with torch.no_grad():
            student.model.layers[0].mlp.down_proj.weight[:, 0] = 0


def test_hooks_see_every_step_and_what_they_add_counts():
    watch = Watch()
    student, _ = train(chosen=settings(2, keep="last"), hooks=(watch,))
    assert [entry if entry == "penalty" else entry[:2] for entry in watch.seen] == [
        *("penalty", ("before", 1), ("after", 1)),
        *("penalty", ("before", 2), ("after", 2)),
    ]
    assert watch.seen[1][2] == pytest.approx(2e3 * 4, rel=0.01)  # of 16 weights of 1, before the clipping
    assert (student.model.layers[0].mlp.down_proj.weight[:, 0] == 0).all()


def test_parametrizations_train_and_buffers_are_restored():
    student = small_glm()
    parametrize.register_parametrization(student.model.layers[0].mlp.down_proj, "weight", Halve())
    student.register_buffer("count", torch.zeros(1))

    class Count(Watch):
        def penalty(self, _student):
            return None

        def before_update(self, student, _step):
            student.count += 1

    original = student.model.layers[0].mlp.down_proj.parametrizations.weight.original
    before = original.detach().clone()
    _, trained = train(student=student, chosen=settings(20), hooks=(Count(),))
    assert not torch.equal(original, before)
    assert int(student.count) == trained.kept_step
    student, trained = train(student=student, chosen=settings(4, learning_rate=3.0, gradient_clip=0), hooks=(Count(),))
    assert trained.kept_step == 0


def test_an_interrupt_keeps_the_best_so_far():
    def stop(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    held_out = random_examples(16, seed=2)
    student, trained = train(chosen=settings(20), progress=stop, held_out=held_out)
    assert trained.interrupted
    assert (trained.steps, trained.kept_step) == (5, 4)
    assert LANGUAGE.evaluate(student, held_out) == trained.held_out
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_progress_tells_every_step():
    seen = []
    _, trained = train(progress=seen.append)
    assert [entry.step for entry in seen] == list(range(7))
    assert [(entry.step, entry.held_out) for entry in seen if entry.held_out] == list(trained.history)
    assert all(entry.loss > 0 for entry in seen[1:])


def test_what_cannot_train_is_said_in_a_line():
    with pytest.raises(ModelError, match="name a teacher, or set alpha to 0"):
        train(teacher=None)
    with pytest.raises(DataError, match="there are none"):
        train(examples=random_examples(4).select([]))
    with pytest.raises(DataError, match="there are none"):
        train(held_out=random_examples(4).select([]))
    with pytest.raises(ModelError, match="same classes or vocabulary"):
        train(teacher=small_glm(CLASSES))
    with pytest.raises(ModelError, match="other examples"):
        train(teacher=Teacher(small_glm(), random_examples(40)))
    with pytest.raises(TrainingError, match="lower the learning_rate"):
        train(chosen=settings(learning_rate=10.0, gradient_clip=0, steps=40), student=small_glm(spread=1e18))


# --- the teacher


@TASKS
def test_a_teacher_computes_each_sequence_once_within_its_bound(task):
    examples = random_examples(30, task)
    model = small_glm(task, spread=3.0)
    batches = []
    model.register_forward_hook(lambda _module, _inputs, output: batches.append(len(output.logits)))
    teacher = Teacher(model, examples, precision="fp32")
    order = [torch.tensor([4, 4, 7]), torch.arange(20), torch.arange(10, 30)]
    found = [teacher.logits(indices) for indices in order]
    assert sum(batches) == 31  # each once; of a batch that holds one twice, both
    for indices, logits in zip(order, found, strict=True):
        with torch.no_grad():
            wanted, batch = compute_logits(model.eval(), examples.batch(indices))
        if wanted.dim() == 3:
            wanted = wanted * batch["attention_mask"][..., None]
        assert torch.allclose(logits, wanted, rtol=2**-11, atol=1e-4)  # half a unit of a float16
    assert model.training is False
    width = found[0].shape[-1]
    tokens = int(examples.lengths.sum()) if task is LANGUAGE else 30
    assert teacher.kept_bytes == 2 * width * tokens
    bounded = Teacher(model, examples, precision="fp32", cache_bytes=1000)
    again = [bounded.logits(indices) for indices in order]
    assert bounded.kept_bytes <= 1000
    assert all(torch.allclose(a, b, rtol=2**-10, atol=1e-4) for a, b in zip(again, found, strict=True))
