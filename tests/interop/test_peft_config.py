"""Fields of adapter_config.json: honoured, harmless, or refused by name.

`test_peft_kinds` compares with PEFT itself, and finds fields that are new.
"""

import json
import shutil

import pytest

from perl_jax.interop import hf_names, peft_config
from tests.interop.test_damaged import edit_json
from tests.interop.tiny import REFERENCES


@pytest.fixture
def adapter(tmp_path):
  """A directory with a config alone."""
  source = REFERENCES / "llama2" / "adapter" / peft_config.CONFIG
  shutil.copy(source, tmp_path)
  return tmp_path


def meaning(directory):
  """What a config says of every projection of three layers."""
  config = peft_config.read(directory)
  names = [
    f"model.layers.{i}.{module}"
    for i in range(3)
    for module in hf_names.PROJECTIONS.values()
  ]
  of_modules = [
    (config.targets(n), config.rank_of(n), config.alpha_of(n)) for n in names
  ]
  return config.dropout, config.rslora, config.is_reward, of_modules


def refused(directory, *texts):
  with pytest.raises(ValueError) as caught:
    peft_config.read(directory)
  for text in texts:
    assert text in str(caught.value)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    *((name, True) for name in peft_config.REFUSED if name != "bias"),
    ("bias", "lora_only"),
    ("modules_to_save", ["score", "embed_tokens"]),
    ("modules_to_save", "lm_head"),
    ("task_type", "SEQ_2_SEQ_LM"),
    ("a_field_of_a_newer_peft", {"scale": 2}),
    ("enable_lora", [True, False]),
    *(
      ("init_lora_weights", start)
      for start in ("pissa", "PiSSA_niter_16", "olora", "loftq", "corda",
                    "lora_ga", "a newer start", 1, {})
    ),
    ("r", 0),
    ("r", 2.0),
    ("r", True),
    ("r", None),
    ("lora_alpha", float("nan")),
    ("lora_alpha", -6),
    ("lora_alpha", "6"),
    ("lora_dropout", 1.0),
    ("use_rslora", "true"),
    ("rank_pattern", {"q_proj": 0}),
    ("rank_pattern", ["q_proj"]),
    ("alpha_pattern", {"q_proj": float("inf")}),
    ("alpha_pattern", {"(q_proj": 3}),
    ("target_modules", "(q_proj"),
    ("target_modules", [0]),
    ("layers_to_transform", [0.5]),
    ("base_model_name_or_path", ["a"]),
  ],
)  # fmt: skip
def test_values_that_are_refused_with_file_and_field(adapter, field, value):
  edit_json(adapter / peft_config.CONFIG, **{field: value})
  refused(adapter, str(adapter / peft_config.CONFIG), f"{field}={value!r}")


@pytest.mark.parametrize(
  ("field", "value"),
  [
    *((name, None) for name in peft_config.REFUSED if name != "bias"),
    *((name, []) for name in ("layer_replication", "target_parameters")),
    ("modules_to_save", ["score"]),
    ("task_type", None),
    ("a_field_of_a_newer_peft", None),
    ("a_field_of_a_newer_peft", False),
    *(("init_lora_weights", start) for start in peft_config.PLAIN_STARTS),
    ("init_lora_weights", "Gaussian"),
    ("auto_mapping", {"base_model_class": "LlamaForCausalLM"}),
    ("fan_in_fan_out", True),
    ("inference_mode", False),
    ("revision", "main"),
    ("loftq_config", {"loftq_bits": 4}),
    ("eva_config", {"rho": 2.0}),
    ("runtime_config", {"ephemeral_gpu_offload": True}),
    ("ensure_weight_tying", True),
    ("merge_weights", False),
    ("layers_to_transform", []),
    ("layers_to_transform", [0, 1, 2]),
    ("rank_pattern", None),
    ("rank_pattern", {"unused": 64}),
    ("exclude_modules", ["lm_head"]),
    ("lora_dropout", None),
  ],
)  # fmt: skip
def test_values_that_change_nothing(adapter, field, value):
  plain = meaning(adapter)
  edit_json(adapter / peft_config.CONFIG, **{field: value})
  assert meaning(adapter) == plain


def test_fields_that_are_left_out_have_the_defaults_of_peft(adapter):
  path = adapter / peft_config.CONFIG
  path.write_text(json.dumps({"peft_type": "LORA"}))
  settings = peft_config.read(adapter)
  assert (settings.base, settings.rslora, settings.dropout) == ("", False, 0.0)
  name = "model.layers.1.self_attn.q_proj"
  assert (settings.rank_of(name), settings.alpha_of(name)) == (8, 8.0)
  assert settings.targets(name) and settings.targets(name[:-6] + "v_proj")
  assert not settings.targets(name[:-6] + "k_proj")


def test_layers_cannot_be_chosen_beside_an_expression(adapter):
  changes = {"target_modules": ".*", "layers_to_transform": [0]}
  edit_json(adapter / peft_config.CONFIG, **changes)
  refused(adapter, "target_modules='.*'", "layers_to_transform=[0]")


@pytest.mark.parametrize(
  ("fields", "targeted"),
  [
    ({"target_modules": "all-linear"}, "q0 q1 q2 up0 up1 up2"),
    (
      {"target_modules": "All-Linear", "exclude_modules": ["q_proj"]},
      "up0 up1 up2",
    ),
    ({"target_modules": ["proj", "lm_head"]}, ""),
    ({"target_modules": r".*\.[02]\..*q_proj"}, "q0 q2"),
    ({"target_modules": "q_proj"}, ""),
    ({"target_modules": ["1.mlp.up_proj"]}, "up1"),
    ({"target_modules": None}, "q0 q1 q2"),
    ({"layers_to_transform": 1}, "q1 up1"),
    ({"layers_to_transform": [0], "layers_pattern": "layers"}, "q0 up0"),
    ({"layers_to_transform": [0], "layers_pattern": ["h", "blocks"]}, ""),
    (
      {
        "target_modules": ["model.layers.0.mlp.up_proj", "q_proj"],
        "layers_to_transform": [2],
      },
      "q2 up0",  # a whole name is taken at its word
    ),
    ({"exclude_modules": r".*\.1\..*"}, "q0 q2 up0 up2"),
  ],
)
def test_which_modules_have_an_adapter(adapter, fields, targeted):
  """By the rules of PEFT; `test_peft_kinds` asks PEFT."""
  edit_json(adapter / peft_config.CONFIG, **fields)
  config = peft_config.read(adapter)
  names = {
    f"{short}{layer}": f"model.layers.{layer}.{module}"
    for short, module in (("q", "self_attn.q_proj"), ("up", "mlp.up_proj"))
    for layer in range(3)
  }
  found = {short for short, name in names.items() if config.targets(name)}
  assert found == set(targeted.split())


def test_the_first_pattern_that_ends_a_name_counts(adapter):
  edit_json(
    adapter / peft_config.CONFIG,
    rank_pattern={"proj": 3, r"layers\.1\..*": 5, ".*_proj": 7},
    alpha_pattern={"^model.layers.0.mlp.up_proj": 1, "mlp.up_proj": 2.5},
  )
  config = peft_config.read(adapter)
  ranks = [config.rank_of(f"model.layers.{i}.mlp.up_proj") for i in (0, 1)]
  alphas = [config.alpha_of(f"model.layers.{i}.mlp.up_proj") for i in (0, 1)]
  assert ranks == [7, 5]
  assert alphas == [1, 2.5]
  assert config.alpha_of("model.layers.0.self_attn.q_proj") == 6


def test_a_learned_prompt_is_told_from_what_can_be_merged(adapter):
  path = adapter / peft_config.CONFIG
  path.write_text(json.dumps({"peft_type": "PREFIX_TUNING"}))
  refused(adapter, "peft_type='PREFIX_TUNING'", "cannot be merged")
  path.write_text(json.dumps({"peft_type": "VERA"}))
  refused(adapter, "peft_type='VERA'", "merge_and_unload")


def test_an_adapter_of_mlx_is_merged_by_what_wrote_it(adapter):
  """PEFT cannot."""
  path = adapter / peft_config.CONFIG
  path.write_text(json.dumps({"fine_tune_type": "lora", "num_layers": 16}))
  refused(adapter, str(path), "fine_tune_type='lora'", "`mlx_lm.fuse")
  with pytest.raises(ValueError, match=f"--adapter-path {adapter} "):
    peft_config.read(adapter)
