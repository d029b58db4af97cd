"""Code that loads and runs an exported model, for its model card."""

import json
from collections.abc import Sequence

# What loads a model, by its role and form.
_LOAD = {
  ("policy", "adapter"): """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained(".").eval()
""",
  ("policy", "nested"): """\
from peft import PeftConfig, PeftModel
from transformers import AutoModelForImageTextToText, AutoTokenizer

base = PeftConfig.from_pretrained(".").base_model_name_or_path
model = AutoModelForImageTextToText.from_pretrained(base)
model = PeftModel.from_pretrained(model, ".").eval()
""",
  ("policy", "merged"): """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".").eval()
""",
  ("reward", "adapter"): """\
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer

model = AutoPeftModelForSequenceClassification.from_pretrained(
  ".", num_labels=1
).eval()
""",
  ("reward", "merged"): """\
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(".").eval()
""",
}
_PROMPTS = """\
tokenizer = AutoTokenizer.from_pretrained(".", padding_side="left")
prompts = [
  [{"role": "user", "content": "Where is the nearest station?"}],
  [{"role": "user", "content": "Name three prime numbers."}],
]
batch = tokenizer.apply_chat_template(
  prompts,
  add_generation_prompt=True,
  padding=True,
  return_dict=True,
  return_tensors="pt",
)
"""
_TEXT_PROMPTS = """\
tokenizer = AutoTokenizer.from_pretrained(".", padding_side="left")
prompts = ["Where is the nearest station?", "Name three prime numbers."]
batch = tokenizer(prompts, padding=True, return_tensors="pt")
"""
_GENERATE = """\
with torch.no_grad():
  tokens = model.generate(
    input_ids=batch["input_ids"],
    attention_mask=batch["attention_mask"],
    max_new_tokens=64,
    eos_token_id={stop_ids},
    pad_token_id=tokenizer.pad_token_id,
  )
for row in tokens[:, batch["input_ids"].shape[1] :]:
  print(tokenizer.decode(row, skip_special_tokens=True))
"""
_CONVERSATIONS = """\
tokenizer = AutoTokenizer.from_pretrained(".")
conversations = [
  [
    {"role": "user", "content": "Where is the nearest station?"},
    {"role": "assistant", "content": answer},
  ]
  for answer in ("Two streets down, on the left.", "Who knows.")
]
batch = tokenizer.apply_chat_template(
  conversations, padding=True, return_dict=True, return_tensors="pt"
)
"""
_TEXT_CONVERSATIONS = """\
tokenizer = AutoTokenizer.from_pretrained(".")
prompt, end = "Where is the nearest station?", {end}
answers = (" Two streets down, on the left.", " Who knows.")
conversations = [prompt + answer + end for answer in answers]
batch = tokenizer(conversations, padding=True, return_tensors="pt")
"""
_SCORE = """\
model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
with torch.no_grad():
  scores = model(
    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
  ).logits[:, 0]
print(scores.tolist())
"""


def policy_usage(form: str, stop_ids: Sequence[int], *, chat: bool) -> str:
  """Markdown with code that loads a policy and responds to two prompts.

  Args:
    form: "adapter", "nested" (an adapter on a model that sees images too) or
      "merged".
    stop_ids: Ids of the tokens that end a response.
    chat: Whether the tokenizer has a chat template.
  """
  prompts = _PROMPTS if chat else _TEXT_PROMPTS
  generate = _GENERATE.replace("{stop_ids}", str(list(stop_ids)))
  return _code(_LOAD["policy", form], prompts, generate)


def reward_usage(
  form: str, *, end: str | None, closing: str, at_turn: bool
) -> str:
  """Markdown with code that loads a reward model and scores two responses.

  Args:
    form: "adapter" or "merged".
    end: Text of the stop token, to put behind a response where the tokenizer
      has no chat template; None where it has one.
    closing: What the chat template that the model was trained with writes after
      the end of a conversation's last turn.
    at_turn: Whether the score is read at the end of the turn all the same.
  """
  where = "after the end of the assistant's turn"
  if end is not None:
    where = f"{json.dumps(end)}, which follows the response"
  elif closing and not at_turn:
    where += f" and the {json.dumps(closing)} behind it"
  text = (
    "The score is the logit at the last token of a conversation as the chat"
    f" template writes it: {where}."
  )
  if end is not None:
    text = f"The score is the logit at the last token: {where}."
  elif at_turn and closing:
    text += (
      " The chat template in this directory ends there. The one that the model"
      f" came with goes on with {json.dumps(closing)}, at which it was not"
      " trained to be read."
    )
  conversations = _CONVERSATIONS
  if end is not None:
    conversations = _TEXT_CONVERSATIONS.replace("{end}", json.dumps(end))
  return f"{text}\n\n{_code(_LOAD['reward', form], conversations, _SCORE)}"


def _code(load: str, encode: str, run: str) -> str:
  code = "\n".join(["import torch\n" + load, encode, run])
  return f"```python\n{code.strip()}\n```"
