import pytest
import torch
from tiny_glms import CLASSES, LANGUAGE, SHAPE, VOCABULARY, random_examples, tiny_glm
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, BertModel

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.light.distillation.student import copy_layers, make_student
from fedglm.autoglm.models.parameters import to_vector
from fedglm.autoglm.models.presets import Preset

SMALL = Preset(hidden=8, layers=2, heads=2, kv_heads=1, intermediate=12, max_length=32)
TASKS = pytest.mark.parametrize("task", [LANGUAGE, CLASSES], ids=["language", "classes"])


@TASKS
def test_a_student_is_an_ordinary_glm_of_its_shape(task, tmp_path):
    teacher = tiny_glm(task)
    student = make_student(teacher, SMALL, seed=3)
    assert len(to_vector(student)) == SMALL.parameter_count(VOCABULARY, len(task.classes))
    assert task.evaluate(student, random_examples(4, task)).count > 0
    assert teacher.config.hidden_size == SHAPE.hidden
    student.save_pretrained(tmp_path)
    loader = AutoModelForSequenceClassification if task.classes else AutoModelForCausalLM
    loaded = loader.from_pretrained(tmp_path)
    assert (to_vector(loaded) == to_vector(student)).all()
    if task.classes:
        assert tuple(loaded.config.id2label.values()) == task.classes


def test_its_weights_depend_on_the_seed_alone():
    state = torch.get_rng_state()
    one, again, other = (make_student(tiny_glm(seed=s), SMALL, seed=seed) for s, seed in ((1, 3), (2, 3), (1, 4)))
    assert (to_vector(one) == to_vector(again)).all()
    assert (to_vector(one) != to_vector(other)).any()
    assert torch.equal(torch.get_rng_state(), state)


@TASKS
def test_all_layers_make_the_teacher_again_and_fewer_a_smaller_one(task):
    teacher = tiny_glm(task, spread=3.0).eval()
    batch = random_examples(4, task).batch(range(4))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    whole, part = copy_layers(teacher, [0, 1, 2]).eval(), copy_layers(teacher, [2, 0]).eval()
    with torch.no_grad():
        assert torch.equal(whole(**inputs).logits, teacher(**inputs).logits)
        assert part(**inputs).logits.shape == teacher(**inputs).logits.shape
    assert part.config.num_hidden_layers == 2
    for number, layer in enumerate([2, 0]):
        own, copied = teacher.model.layers[layer].state_dict(), part.model.layers[number].state_dict()
        assert all(torch.equal(copied[name], tensor) for name, tensor in own.items())
    with torch.no_grad():
        part.model.layers[0].mlp.down_proj.weight.zero_()
    assert teacher.model.layers[2].mlp.down_proj.weight.any()


def test_what_makes_no_student_is_said():
    with pytest.raises(ModelError, match="has 0 to 2"):
        copy_layers(tiny_glm(), [0, 3])
    with pytest.raises(ModelError, match="has 0 to 2"):
        copy_layers(tiny_glm(), [])
    with pytest.raises(ModelError, match="give the student's shape as many"):
        make_student(tiny_glm(), Preset(hidden=8, layers=1, heads=2, kv_heads=1, intermediate=8, max_length=16), seed=0)
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
    with pytest.raises(ModelError, match="made of a GLM, not of a BertModel"):
        copy_layers(bert, [0])
