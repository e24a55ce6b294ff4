import pytest
from small_glms import config_of, llama_config, random_classifier, random_glm, small_config, tensors_of, uneven_glm

from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.architecture import read_architecture


@pytest.mark.parametrize(
    "make",
    [
        lambda: random_glm(small_config()),
        lambda: random_glm(small_config(tie_word_embeddings=False)),
        lambda: random_glm(llama_config()),
        random_classifier,
    ],
)
def test_a_configuration_says_what_tensors_there_are(make):
    model = make()
    shapes = {name: value.shape for name, value in tensors_of(model).items()}
    assert read_architecture(config_of(model)).tensor_shapes() == shapes


def test_layers_that_differ_are_described_one_by_one():
    model, config = uneven_glm()
    shapes = {name: value.shape for name, value in tensors_of(model).items()}
    assert read_architecture(config).tensor_shapes() == shapes
    with pytest.raises(InferenceError, match="2 layers of 3"):
        read_architecture(config | {"fedglm_layers": config["fedglm_layers"][:2]})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "must be a glm"),
        ({"architectures": None}, "must be a glm"),
        ({"architectures": ["GlmForTokenClassification"]}, "GlmForCausalLM"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"vocab_size": None}, "vocab_size is None"),
        ({"num_key_value_heads": 3}, "cannot share 3"),
        ({"hidden_act": "gelu"}, "no activation 'gelu'"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ({"rope_parameters": None}, "rope_theta is None"),
        ({"max_position_embeddings": 1 << 40}, "more than 1048576"),
    ],
)
def test_what_the_graph_cannot_do_is_named(changes, words):
    with pytest.raises(InferenceError, match=words):
        read_architecture(config_of(random_glm(small_config())) | changes)


@pytest.mark.parametrize(("key", "value"), [("rope_type", "yarn"), ("partial_rotary_factor", 0.05)])
def test_a_rotation_that_the_graph_cannot_do_is_named(key, value):
    config = config_of(random_glm(small_config()))
    with pytest.raises(InferenceError, match=r"yarn|rotates 1 of"):
        read_architecture(config | {"rope_parameters": config["rope_parameters"] | {key: value}})
