"""Small tokenizers in the way of each model family, with its chat template.

The templates are those that the models are published with, without their
branches for tools. Vocabularies are small; the pipelines around them (spaces,
bytes, BOS) and the tokenizer classes are those of the families.
"""

import dataclasses
import json
import pathlib

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = ["hello there, what can I get you? 12 mochas and\n\nmilk [INST]"] * 8


LLAMA2 = (
  "{% if messages[0]['role'] == 'system' %}"
  "{% set loop_messages = messages[1:] %}"
  "{% set system_message = messages[0]['content'] %}{% else %}"
  "{% set loop_messages = messages %}{% set system_message = false %}"
  "{% endif %}{% for message in loop_messages %}"
  "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
  "{{ raise_exception('Conversation roles must alternate "
  "user/assistant/user/assistant/...') }}{% endif %}"
  "{% if loop.index0 == 0 and system_message != false %}"
  "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + "
  "message['content'] %}{% else %}{% set content = message['content'] %}"
  "{% endif %}{% if message['role'] == 'user' %}"
  "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
  "{% elif message['role'] == 'assistant' %}"
  "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
  "{% set loop_messages = messages %}{% for message in loop_messages %}"
  "{% set content = '<|start_header_id|>' + message['role'] + "
  "'<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
  "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
  "{{ content }}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA32 = r"""{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"""
LLAMA32 += r"""+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
MISTRAL1 = (
  "{{ bos_token }}{% for message in messages %}"
  "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
  "{{ raise_exception('Conversation roles must alternate "
  "user/assistant/user/assistant/...') }}{% endif %}"
  "{% if message['role'] == 'user' %}"
  "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
  "{% elif message['role'] == 'assistant' %}"
  "{{ message['content'] + eos_token}}{% else %}"
  "{{ raise_exception('Only user and assistant roles are supported!') }}"
  "{% endif %}{% endfor %}"
)
MISTRAL2 = r"""{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, conversation"""
MISTRAL2 += r""" roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system_message is defined %}
            {{- ' [INST] ' + system_message + '\n\n' + message['content']"""
MISTRAL2 += r""" + ' [/INST]' }}
        {%- else %}
            {{- ' [INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token}}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are supported') }}
    {%- endif %}
{%- endfor %}
"""
QWEN2 = (
  "{% for message in messages %}"
  "{% if loop.first and messages[0]['role'] != 'system' %}"
  "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
  "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
  "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN25 = r"""{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are"""
QWEN25 += r""" a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not"""
QWEN25 += r""" loop.first) or (message.role == "assistant" and not"""
QWEN25 += r""" message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content +"""
QWEN25 += r""" '<|im_end|>' + '\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role !="""
QWEN25 += r""" "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- message.content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
QWEN3 = r"""{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index="""
QWEN3 += r"""messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content"""
QWEN3 += (
  r""" is string and not(message.content.startswith('<tool_response>') and"""
)
QWEN3 += r""" message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not"""
QWEN3 += r""" loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>'"""
QWEN3 += r""" + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0]"""
QWEN3 += r""".rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\n<think>\n' +"""
QWEN3 += r""" reasoning_content.strip('\n') + '\n</think>\n\n' +"""
QWEN3 += r""" content.lstrip('\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""
GEMMA = (
  "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
  "{{ raise_exception('System role not supported') }}{% endif %}"
  "{% for message in messages %}"
  "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
  "{{ raise_exception('Conversation roles must alternate "
  "user/assistant/user/assistant/...') }}{% endif %}"
  "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
  "{% else %}{% set role = message['role'] %}{% endif %}"
  "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + "
  "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}"
  "{{'<start_of_turn>model\n'}}{% endif %}"
)
GEMMA3 = r"""{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {{ message['content'] | trim }}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
""".replace("}}\n    {{ m", "}}{{ m").replace("}}\n    {{ '<e", "}}{{ '<e")


_LLAMA3 = (
  "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
  "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
)  # fmt: skip
_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_GEMMA = (
  "<pad>",
  "<eos>",
  "<bos>",
  "<unk>",
  "<start_of_turn>",
  "<end_of_turn>",
)
_LLAMA2 = ("<unk>", "<s>", "</s>")


@dataclasses.dataclass(frozen=True)
class Family:
  """How a family turns text into tokens.

  Attributes:
    template: Its chat template.
    kind: "bytes", "llama" (spaces as a letter, one put in front) or "gemma".
    special: Special tokens.
    config: Of tokenizer_config.json.
    eos: eos_token_id of generation_config.json, as tokens; None for no file.
    stops: The stop set that this gives, as tokens.
    plain: Added tokens that are not special.
    bos: The token, or None.
  """

  template: str | None
  kind: str
  special: tuple[str, ...]
  config: dict[str, object]
  eos: str | tuple[str, ...] | None
  stops: tuple[str, ...]
  plain: tuple[str, ...] = ()

  @property
  def bos(self):
    return self.config.get("bos_token")


def _config(bos, eos, name, **more):
  found = {"bos_token": bos, "eos_token": eos, "tokenizer_class": name}
  return found | more


_OF_LLAMA2 = _config("<s>", "</s>", "LlamaTokenizer", add_bos_token=True)
_OF_LLAMA3 = _config(
  "<|begin_of_text|>", "<|eot_id|>", "PreTrainedTokenizerFast",
  clean_up_tokenization_spaces=True,
)  # fmt: skip
_OF_QWEN = _config(
  None, "<|im_end|>", "Qwen2Tokenizer", pad_token="<|endoftext|>",
  add_bos_token=False,
)  # fmt: skip
_OF_GEMMA = _config(
  "<bos>", "<eos>", "GemmaTokenizer", pad_token="<pad>", add_bos_token=True
)
_QWEN_EOS = ("<|im_end|>", "<|endoftext|>")
_THINK = ("<think>", "</think>")
FAMILIES = {
  "llama2": Family(LLAMA2, "llama", _LLAMA2, _OF_LLAMA2, "</s>", ("</s>",)),
  # The class that others save it with keeps the pipeline of tokenizer.json.
  "llama2_fast": Family(
    LLAMA2, "llama", _LLAMA2,
    _OF_LLAMA2 | {"tokenizer_class": "PreTrainedTokenizerFast"}, None,
    ("</s>",),
  ),
  "llama3": Family(
    LLAMA3, "bytes", _LLAMA3, _OF_LLAMA3 | {"eos_token": "<|end_of_text|>"},
    ("<|end_of_text|>", "<|eot_id|>"), ("<|eot_id|>", "<|end_of_text|>"),
  ),
  "llama3.2": Family(
    LLAMA32, "bytes", _LLAMA3, _OF_LLAMA3,
    ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
  ),
  "mistral1": Family(
    MISTRAL1, "llama", _LLAMA2, _OF_LLAMA2 | {"legacy": True}, "</s>",
    ("</s>",),
  ),
  "mistral2": Family(
    MISTRAL2, "llama", (*_LLAMA2, "[INST]", "[/INST]"), _OF_LLAMA2, "</s>",
    ("</s>",),
  ),
  "qwen2": Family(QWEN2, "bytes", _QWEN, _OF_QWEN, _QWEN_EOS, _QWEN_EOS),
  "qwen2.5": Family(QWEN25, "bytes", _QWEN, _OF_QWEN, _QWEN_EOS, _QWEN_EOS),
  "qwen3": Family(
    QWEN3, "bytes", _QWEN, _OF_QWEN, _QWEN_EOS, _QWEN_EOS, plain=_THINK
  ),
  "gemma2": Family(
    GEMMA, "gemma", _GEMMA, _OF_GEMMA, "<eos>", ("<end_of_turn>", "<eos>")
  ),
  "gemma3": Family(
    GEMMA3, "gemma", _GEMMA, _OF_GEMMA, ("<eos>", "<end_of_turn>"),
    ("<end_of_turn>", "<eos>"),
  ),
}  # fmt: skip


def write(family: Family, directory: pathlib.Path) -> pathlib.Path:
  """The files of its tokenizer, as they lie beside its weights."""
  directory.mkdir(parents=True, exist_ok=True)
  backend = _backend(family)
  backend.save(str(directory / "tokenizer.json"))
  config = {"clean_up_tokenization_spaces": False} | family.config
  if family.template is not None:
    config["chat_template"] = family.template
  (directory / "tokenizer_config.json").write_text(json.dumps(config))
  if family.eos is not None:
    eos = backend.token_to_id
    ids = (
      eos(family.eos)
      if isinstance(family.eos, str)
      else [*map(eos, family.eos)]
    )
    (directory / "generation_config.json").write_text(
      json.dumps({"eos_token_id": ids})
    )
  return directory


def _backend(family: Family) -> tokenizers.Tokenizer:
  if family.kind == "bytes":
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    _train(backend, family.special, pre_tokenizers.ByteLevel.alphabet())
  else:
    backend = _of_pieces(family)
  backend.add_tokens(
    [tokenizers.AddedToken(t, normalized=False) for t in family.plain]
  )
  if family.config.get("add_bos_token") or family.kind == "bytes":
    _add_bos(backend, family.bos)
  return backend


def _of_pieces(family: Family) -> tokenizers.Tokenizer:
  """As converted from SentencePiece: bytes where a piece is missing."""
  space = "\u2581"
  every_byte = [f"<0x{i:02X}>" for i in range(256)]
  learner = tokenizers.Tokenizer(models.BPE())
  learner.normalizer = normalizers.Replace(" ", space)
  learner.pre_tokenizer = pre_tokenizers.Split(space, "merged_with_next")
  alphabet = [space, *map(chr, range(33, 127))]
  _train(learner, [*family.special, *every_byte], alphabet, size=480)
  found = json.loads(learner.to_str())["model"]
  merges = [tuple(pair) for pair in found["merges"]]
  backend = tokenizers.Tokenizer(
    models.BPE(
      found["vocab"], merges, unk_token="<unk>", fuse_unk=True,
      byte_fallback=True,
    )
  )  # fmt: skip
  steps = [
    decoders.Replace(space, " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
  ]
  if family.kind == "llama":
    backend.normalizer = normalizers.Sequence(
      [normalizers.Prepend(space), normalizers.Replace(" ", space)]
    )
    steps.append(decoders.Strip(" ", 1, 0))
  else:
    backend.normalizer = normalizers.Replace(" ", space)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  backend.decoder = decoders.Sequence(steps)
  backend.add_special_tokens(list(family.special))
  return backend


def _train(backend, special, alphabet, size=330) -> None:
  trainer = trainers.BpeTrainer(
    vocab_size=size,
    special_tokens=list(special),
    initial_alphabet=sorted(alphabet),
    show_progress=False,
  )
  backend.train_from_iterator(TEXTS, trainer)


def _add_bos(backend, bos) -> None:
  if bos is not None:
    backend.post_processor = tokenizers.processors.TemplateProcessing(
      single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )
