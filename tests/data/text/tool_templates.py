"""Chat templates with branches for tools, as model families write them.

They are told in fewer words than the published ones; what is around calls,
tools and results of tools is as it is there.
"""

import dataclasses

from tests.data.text.families import FAMILIES

_SYSTEM = (
  "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}"
  "{{ messages[0].content + '\n\n' }}{% endif %}# Tools\n<tools>"
  "{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>\nReturn "
  "an object within <tool_call></tool_call>:\n<tool_call>\n{\"name\": <name>}\n"
  "</tool_call><|im_end|>\n{% elif messages[0].role == 'system' %}"
  "<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
)  # fmt: skip
_CALLS = (
  "{% for call in m.tool_calls %}{% if call.function %}"
  "{% set call = call.function %}{% endif %}{{ '\n<tool_call>\n' }}"
  "{\"name\": \"{{ call.name }}\", \"arguments\": {{ call.arguments | tojson }}"
  "}{{ '\n</tool_call>' }}{% endfor %}"
)  # fmt: skip
_RESULT = (
  "{% elif m.role == 'tool' %}{% if loop.index0 == 0 or "
  "messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
  "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
  "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}"
  "{{ '<|im_end|>\n' }}"
  "{% endif %}{% endif %}{% endfor %}"
)
_OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
# The line break before a call belongs to the prompt.
QWEN25 = (
  _SYSTEM
  + "{% for m in messages %}{% if m.role == 'user' or m.role == 'assistant' "
  "and not m.tool_calls %}{{ '<|im_start|>' + m.role + '\n' + m.content + "
  "'<|im_end|>\n' }}{% elif m.role == 'assistant' %}"
  "{{ '<|im_start|>assistant' }}{% if m.content %}{{ '\n' + m.content }}"
  "{% endif %}" + _CALLS + "{{ '<|im_end|>\n' }}" + _RESULT + _OPEN
  + "{% endif %}"
)  # fmt: skip
# Past turns lack the empty thoughts that new ones begin with.
QWEN3 = (
  _SYSTEM
  + "{% set ns = namespace(last=0) %}{% for m in messages %}"
  "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
  "{% endfor %}{% for m in messages %}{% if m.role == 'user' %}"
  "{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
  "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
  "{% if loop.index0 > ns.last and (loop.last or m.reasoning_content) %}"
  "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}"
  "{% endif %}{{ m.content }}{% if m.tool_calls %}"
  "{% for call in m.tool_calls %}"
  "{% if not loop.first or m.content %}{{ '\n' }}{% endif %}"
  "{{ '<tool_call>\n{\"name\": \"' + call.function.name + "
  "'\", \"arguments\": ' }}{% if call.function.arguments is string %}"
  "{{ call.function.arguments }}{% else %}"
  "{{ call.function.arguments | tojson }}{% endif %}{{ '}\n</tool_call>' }}"
  "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}" + _RESULT + _OPEN
  + "{% if not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
  "{% endif %}"
)  # fmt: skip
# Tools are in the first user's turn, one call is a whole turn without content,
# and results are JSON.
LLAMA31 = (
  "{{ bos_token }}{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}"
  "{% if tools is not none %}{{ 'Environment: ipython\n' }}{% endif %}"
  "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}"
  "{% set messages = messages[1:] %}{% endif %}{{ '<|eot_id|>' }}"
  "{% if tools is not none %}"
  "{{ '<|start_header_id|>user<|end_header_id|>\n\nGiven the functions:\n\n' }}"
  "{% for t in tools %}{{ t | tojson(indent=4) }}{{ '\n\n' }}{% endfor %}"
  "{{ messages[0].content | trim + '<|eot_id|>' }}"
  "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
  "{% if 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}"
  "{{ raise_exception('Only single tool-calls at once!') }}{% endif %}"
  "{% set call = m.tool_calls[0].function %}"
  "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n{\"name\": \"' + "
  "call.name + '\", \"parameters\": ' }}{{ call.arguments | tojson }}"
  "{{ '}<|eot_id|>' }}{% elif m.role == 'tool' %}"
  "{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' }}"
  "{{ m.content | tojson }}{{ '<|eot_id|>' }}{% else %}"
  "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + "
  "m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}"
  "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)  # fmt: skip
# Prompts open thoughts, and past turns have theirs.
THINKING = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
  "{% if m.role == 'assistant' %}{{ '<think>\n' + (m.reasoning_content or '')"
  " + '\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
  "{% endfor %}" + _OPEN + "{{ '<think>\n' }}{% endif %}"
)  # fmt: skip

_TAGS = ("<tool_call>", "</tool_call>")
TOOL_FAMILIES = {
  "qwen2.5": dataclasses.replace(
    FAMILIES["qwen2.5"], template=QWEN25, plain=_TAGS
  ),
  "qwen2.5_text": dataclasses.replace(FAMILIES["qwen2.5"], template=QWEN25),
  "qwen3": dataclasses.replace(
    FAMILIES["qwen3"], template=QWEN3, plain=("<think>", "</think>", *_TAGS)
  ),
  "llama3.1": dataclasses.replace(FAMILIES["llama3.2"], template=LLAMA31),
}


def call(name, arguments, number=0):
  """A tool call as OpenAI's chat files have them, with an object."""
  function = {"name": name, "arguments": arguments}
  return {"type": "function", "id": f"call0000{number}", "function": function}


def tool(name, about="Looks it up."):
  """The description of a tool with one argument."""
  place = {"type": "string", "description": "Where."}
  parameters = {"type": "object", "properties": {"place": place}}
  function = {"name": name, "description": about, "parameters": parameters}
  return {"type": "function", "function": function}
