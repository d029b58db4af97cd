"""Model cards as the hub's client reads them; the licences of bases."""

import gguf
import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard

from perl_jax.interop import licences, model_card

FACTS = model_card.Facts(
  name="policy: of Mary's",
  settings={"stage": "rl", "LoRA": "rank 4", "learning_rate": 1e-4},
  data=model_card.Data(
    "hh_rlhf", "pairs", "MIT", "Anthropic/hh-rlhf", "Can be offensive."
  ),
  measured={
    **{"reward_before": 0.25, "reward_after": 0.5, "kl": 1.5},
    **{"accuracy": 0.75, "accuracy_low": 0.6875, "accuracy_high": 0.8},
  },
  results=[
    model_card.Result("reward", "reward", 0.5),
    model_card.Result("kl", "KL to the anchor", 1.5),
  ],
  checkpoint="last, step 3",
  base="org/base-1.5B",
  base_place="snapshot",
  licence=licences.Licence("other", "llama3.1", "https://host/LICENSE"),
)


def replaced(**fields):
  return model_card.Facts(**{**vars(FACTS), **fields})


def card(role="policy", form="merged", facts=FACTS):
  return model_card.model_card(role, form, facts, usage="RUN THIS")


@pytest.mark.parametrize("form", ["adapter", "merged", "gguf"])
@pytest.mark.parametrize("role", ["policy", "reward"])
def test_the_data_make_the_round_trip(role, form):
  read = ModelCard(card(role, form))
  written = model_card.card_data(role, form, FACTS)
  assert read.data.to_dict() == written.to_dict()
  assert ModelCard(str(read)).data.to_dict() == written.to_dict()
  assert read.text.strip().startswith("# ")


def test_what_the_hub_reads():
  """Each field by name, without our own code or the client's."""
  _, front, _ = card().split("---\n", 2)
  found = yaml.safe_load(front)
  (index,) = found.pop("model-index")
  assert found == {
    "base_model": "org/base-1.5B",
    "datasets": ["Anthropic/hh-rlhf"],
    "library_name": "transformers",
    "license": "other",
    "license_name": "llama3.1",
    "license_link": "https://host/LICENSE",
    "pipeline_tag": "text-generation",
    "tags": ["perl", "rlhf", "perl_jax"],
  }
  assert index["name"] == "policy: of Mary's"
  (result,) = index["results"]
  assert result["dataset"]["type"] == "Anthropic/hh-rlhf"
  assert result["dataset"]["split"] == "validation"
  metrics = [(m["type"], m["value"], m["name"]) for m in result["metrics"]]
  assert metrics == [
    ("reward", 0.5, "reward (last, step 3)"),
    ("kl", 1.5, "KL to the anchor (last, step 3)"),
  ]
  read = ModelCard(card()).data.eval_results
  assert all(isinstance(one, EvalResult) for one in read)


def test_the_sections():
  text = card()
  for heading in (
    "Use", "Training", "Data", "Metrics", "Intended use", "Limits", "Licence",
  ):  # fmt: skip
    assert text.count(f"\n## {heading}\n") == 1
  assert "RUN THIS" in text
  assert "| learning_rate | 0.0001 |" in text
  assert "Of the checkpoint last, step 3, on held-out rows" in text
  assert "| reward_before | 0.25 |" in text
  assert "| accuracy | 0.75 (95% interval: 0.6875 to 0.8) |" in text
  assert "accuracy_low" not in text
  assert "`hh_rlhf`: pairs. Licence of the data: MIT. Can be offensive." in text
  assert (
    "The licence of the base, `org/base-1.5B`, is llama3.1"
    " (https://host/LICENSE)." in text
  )


def test_what_is_not_known_is_said():
  unknown = licences.Licence(licences.UNKNOWN)
  text = card(
    facts=replaced(data=None, measured={}, results=[], base="", licence=unknown)
  )
  assert "What it was trained on is not known." in text
  assert "Nothing has been measured of this checkpoint." in text
  assert "licence of the base, `snapshot`, is unknown" in text
  data = ModelCard(text).data.to_dict()
  assert data["license"] == "unknown"
  assert "base_model" not in data and "model-index" not in data
  text = card(facts=replaced(base="", base_place="", licence=unknown))
  assert "no base of others" in text


@pytest.mark.parametrize(
  ("front", "expected"),
  [
    ("license: apache-2.0", licences.Licence("apache-2.0")),
    ("license: [mit]", licences.Licence("mit")),
    (
      "license: other\nlicense_name: x\nlicense_link: LICENSE",
      licences.Licence("other", "x", "LICENSE"),
    ),
    ("license_name: x", licences.Licence("other", "x")),
    ("tags: [a]", licences.Licence("unknown")),
    ("license: [mit, gpl]", licences.Licence("unknown")),
    ("license: {a: [", licences.Licence("unknown")),
    ("[", licences.Licence("unknown")),
  ],
)
def test_the_licence_of_a_directory(tmp_path, front, expected):
  assert licences.licence_of(tmp_path) == licences.Licence("unknown")
  (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# Base\n")
  assert licences.licence_of(tmp_path) == expected


def test_a_card_is_read_by_the_next_one(tmp_path):
  (tmp_path / "README.md").write_text(card())
  assert licences.licence_of(tmp_path) == FACTS.licence


def test_the_licence_of_a_gguf_file(tmp_path):
  path = tmp_path / "model.gguf"
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_license("other")
  writer.add_license_name("gemma")
  writer.add_license_link("https://ai.google.dev/gemma/terms")
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  expected = ("other", "gemma", "https://ai.google.dev/gemma/terms")
  assert licences.licence_of(path) == expected


@pytest.mark.parametrize(
  ("path", "name"),
  [
    ("/c/hub/models--org--some-name-2B/snapshots/0a", "org/some-name-2B"),
    ("/c/hub/models--gpt2/snapshots/0a", "gpt2"),
    ("/c/hub/models--org--name/snapshots/0a/model.gguf", "org/name"),
    ("/c/models/org/name", ""),
  ],
)
def test_names_in_the_cache_of_the_hub(path, name):
  assert licences.hub_name(path) == name
