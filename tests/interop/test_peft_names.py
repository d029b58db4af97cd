"""Tensors of other names than A and B: the way out is the right one.

PEFT leaves out what it does not know by name, with a warning alone.
"""

import re

import numpy as np
import pytest
import safetensors.numpy

from perl_jax.interop import peft
from tests.interop import test_peft
from tests.interop.test_peft import adapter_refused, edit_adapter, model, same

adapter = test_peft.adapter


def other_adapter(name):
  return name.replace(".weight", ".reward.weight")


def wrapped_layers(name):
  return name.replace("self_attn", "_fsdp_wrapped_module.self_attn")


@pytest.mark.parametrize(
  "change",
  [
    other_adapter, wrapped_layers, lambda n: f"module.{n}",
    lambda n: f"_orig_mod.module.{other_adapter(n)}",
    lambda n: n.replace("base_model.model.", "_checkpoint_wrapped_module."),
  ],
)  # fmt: skip
def test_names_that_peft_leaves_out_are_renamed_as_the_error_says(
  adapter, change
):
  """Merging with PEFT, as for other tensors, would lose the adapter."""
  plain = peft.load_adapter(adapter, model())
  found = safetensors.numpy.load_file(adapter / peft.WEIGHTS)
  edit_adapter(adapter, lambda t: {change(k): v for k, v in t.items()})
  with pytest.raises(ValueError, match="rename the tensors") as caught:
    peft.load_adapter(adapter, model())
  assert "merge_and_unload" not in str(caught.value)
  before, after = re.search(r"'(\S+)' is '(\S+)'\.", str(caught.value)).groups()
  assert after in found and change(after) == before
  names = {change(name): name for name in found}
  edit_adapter(adapter, lambda t: {names[k]: v for k, v in t.items()})
  assert same(peft.load_adapter(adapter, model()), plain)


@pytest.mark.parametrize("rows", [96, 100])
def test_a_vocabulary_that_was_resized_for_an_adapter(adapter, rows):
  """Checked with PEFT: merging onto a base of another size is an error."""
  name = "base_model.model.model.embed_tokens.weight"
  edit_adapter(adapter, lambda t: t | {name: np.zeros((rows, 16), np.float32)})
  adapter_refused(adapter, name, "merge_and_unload")
  with pytest.raises(ValueError, match="no LoRA matrix") as caught:
    peft.load_adapter(adapter, model())
  resized = "resize_token_embeddings(100)" in str(caught.value)
  assert resized == (rows == 100)
