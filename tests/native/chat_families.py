"""Templates with the constructs of further model families, written for these tests: how their kind nests, loops and trims.

Each uses this tokenizer's control tokens or plain words where its family has its own markers.
"""
# ruff: noqa: E501 -- template lines break as in the published templates

DEEPSEEK = """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}\
{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='', is_first_sp=true, is_last_user=false) %}\
{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}\
{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}\
{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}\
{{ bos_token }}{{ ns.system_prompt }}
{%- for message in messages %}
    {%- set content = message['content'] %}
    {%- if message['role'] == 'user' %}
        {%- set ns.is_tool = false -%}{%- set ns.is_first = false -%}{%- set ns.is_last_user = true -%}
        {{- '<|User|>' + content + '<|Assistant|>' }}
    {%- endif %}
    {%- if message['role'] == 'assistant' and message['tool_calls'] is defined and message['tool_calls'] is not none %}
        {%- set ns.is_last_user = false -%}
        {%- if ns.is_tool %}{{- '<|outputs end|>' }}{%- endif %}
        {%- set ns.is_first = false %}{%- set ns.is_tool = false -%}{%- set ns.is_output_first = true %}
        {%- for tool in message['tool_calls'] %}
            {%- set arguments = tool['function']['arguments'] if tool['function']['arguments'] is string else tool['function']['arguments'] | tojson %}
            {%- if not ns.is_first %}
                {%- if content is none or not content %}
                    {{- '<|calls begin|>' + tool['type'] + '<|sep|>' + tool['function']['name'] + '\\n```json\\n' + arguments + '\\n```<|call end|>' }}
                {%- else %}
                    {{- content + '<|calls begin|>' + tool['type'] + '<|sep|>' + tool['function']['name'] + '\\n```json\\n' + arguments + '\\n```<|call end|>' }}
                {%- endif %}
                {%- set ns.is_first = true -%}
            {%- else %}
                {{- '\\n<|call begin|>' + tool['type'] + '<|sep|>' + tool['function']['name'] + '\\n' + arguments + '<|call end|>' }}
            {%- endif %}
        {%- endfor %}
        {{- '<|calls end|>' + eos_token }}
    {%- elif message['role'] == 'assistant' %}
        {%- set ns.is_last_user = false -%}
        {%- if ns.is_tool %}
            {{- '<|outputs end|>' + content + eos_token }}
            {%- set ns.is_tool = false -%}
        {%- else %}
            {%- if '</think>' in content %}{%- set content = content.split('</think>', 1)[1] %}{%- endif %}
            {{- content + eos_token }}
        {%- endif %}
    {%- endif %}
    {%- if message['role'] == 'tool' %}
        {%- set ns.is_last_user = false -%}{%- set ns.is_tool = true -%}
        {%- if ns.is_output_first %}
            {{- '<|outputs begin|><|output begin|>' + content + '<|output end|>' }}
            {%- set ns.is_output_first = false %}
        {%- else %}
            {{- '\\n<|output begin|>' + content + '<|output end|>' }}
        {%- endif %}
    {%- endif %}
{%- endfor -%}
{% if ns.is_tool %}{{ '<|outputs end|>' }}{% endif %}
{%- if add_generation_prompt and not ns.is_last_user and not ns.is_tool %}{{ '<|Assistant|>' }}{% endif %}"""

COMMAND_R = """\
{%- macro document_turn(documents) -%}
{# the documents as a call of a tool and its results #}
<|START|>SYSTEM{{ '\\n' }}
{%- for doc in documents %}
{{ loop.index0 }}: {
    {%- for key, val in doc.items() %}"{{ key }}": {{ val | tojson }}{% if not loop.last %}, {% endif %}{% endfor -%}
}{{ ',' if not loop.last }}
{%- endfor %}
<|END|>
{%- endmacro -%}
{%- macro tool_call_id_to_int(messages, tool_call_id) %}
{%- set counter = namespace(value=0) %}
{%- set tool_call_id_seen = namespace(value=false) %}
{%- for msg in messages %}
    {%- if msg.tool_calls %}
        {%- for tool_call in msg.tool_calls %}
            {%- if tool_call.id == tool_call_id and not tool_call_id_seen.value -%}
                {{ counter.value }}
                {%- set tool_call_id_seen.value = true %}
            {%- endif %}
            {%- set counter.value = counter.value + 1 %}
        {%- endfor %}
    {%- endif %}
{%- endfor %}
{%- endmacro %}
{%- macro format_tool_message(messages, tool_msg) -%}
{"tool_call_id": "{{ tool_call_id_to_int(messages, tool_msg.tool_call_id) }}", "results": [
{%- if tool_msg.content is string %}{{ tool_msg.content | tojson }}
{%- else %}{%- for part in tool_msg.content %}{{ part.text | tojson }}{{ ', ' if not loop.last }}{% endfor %}{%- endif -%}
], "is_error": null}
{%- endmacro -%}
{%- if messages and messages[0]['role']|lower == 'system' %}{%- set developer_preamble = messages[0]['content'] %}{% endif %}
{%- set tool_idx = namespace(value=0) %}
{%- set tool_ids_seen = namespace(value=[]) %}
{%- set sent_documents = namespace(value=false) -%}
{{ bos_token }}<|START|>SYSTEM
{%- if tools or documents %} Use what is offered.
{%- for tool in (tools or []) %}
- {{ tool['function']['name'] ~ ': ' ~ (tool.function.description | default('', true) | trim) }}
    {%- set params = tool.function.parameters.properties | default({}) %}
    {%- for name in params | sort %}{{ ' ' if loop.first else ', ' }}{{ name }}{% if name in (tool.function.parameters.required or []) %}!{% endif %}{% endfor %}
{%- endfor %}
{%- endif %}
{%- if citation_mode is defined and citation_mode | upper in ['FAST', 'ACCURATE'] %} Cite {{ citation_mode | lower }}.{% endif %}
{%- if developer_preamble is defined %}
# Preamble
{{ developer_preamble }}
{%- endif -%}
<|END|>
{%- for message in messages %}
    {%- if message.role|lower == 'system' and not (loop.first and developer_preamble) %}
<|START|>SYSTEM{{ message.content }}<|END|>
    {%- elif message.role|lower == 'user' %}
<|START|>USER{{ message.content }}<|END|>
        {%- if documents and not sent_documents.value %}
            {%- set sent_documents.value = true %}
            {%- set tool_idx.value = tool_idx.value + 1 -%}
            {{ document_turn(documents) }}
        {%- endif %}
    {%- elif message.role|lower in ['assistant', 'chatbot'] %}
<|START|>BOT
        {%- if message.tool_calls %}
            {%- if message.thinking %}<|plan|>{{ message.thinking }}{% elif message.tool_plan %}<|plan|>{{ message.tool_plan }}{% endif %}[
            {%- for tc in message.tool_calls %}
    {"id": "{{ tool_idx.value }}", "name": "{{ tc['function']['name'] }}", "parameters": {{ tc['function']['arguments'] | tojson }}}{% if not loop.last %},{% endif %}
                {%- set tool_idx.value = tool_idx.value + 1 %}
            {%- endfor %}
]
        {%- else %}<|text|>{{ message.content }}{% endif %}<|END|>
    {%- elif message.role|lower == 'tool' and message.tool_call_id not in tool_ids_seen.value %}
<|START|>RESULTS[
        {{ format_tool_message(messages, message) }}
        {%- for msg in messages[loop.index0 + 1:] %}
            {%- if msg.role | lower == 'tool' %},
        {{ format_tool_message(messages, msg) }}
                {%- set tool_ids_seen.value = tool_ids_seen.value + [msg.tool_call_id] %}
            {%- else %}
                {%- break %}
            {%- endif %}
        {%- endfor %}
]<|END|>
    {%- endif %}
{%- endfor %}{% if add_generation_prompt %}<|START|>BOT{% endif %}"""

PHI4 = """\
{%- set tools_text = '<|tool|>' ~ (tools | tojson(separators=(',', ':'))) ~ '<|/tool|>' if tools else '' -%}
{%- set system = messages | selectattr('role', 'in', ['system', 'developer']) | map(attribute='content') | join('\\n\\n') -%}
{%- set others = messages | rejectattr('role', 'in', ['system', 'developer']) | list -%}
{%- if system or tools_text %}{{ '<|system|>' ~ system ~ tools_text ~ '<|end|>' }}{% endif -%}
{%- for message in others -%}
{%- if message.role not in ('user', 'assistant', 'tool') -%}{{ raise_exception('Unknown role ' ~ message.role | tojson ~ ' at ' ~ loop.index) }}{%- endif -%}
{{- '<|' ~ message.role ~ '|>' -}}
{%- if message.tool_calls is defined and message.tool_calls | length > 0 -%}
{{- '<|tool_call|>' ~ (message.tool_calls | map(attribute='function') | list | tojson) ~ '<|/tool_call|>' -}}
{%- elif message.content is string -%}
{{- message.content -}}
{%- elif message.content is not none -%}
{%- for part in message.content if part.type == 'text' -%}{{- part.text if loop.first else '\\n' ~ part.text -}}{%- endfor -%}
{%- endif -%}
{{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- else -%}{{- eos_token -}}{%- endif -%}"""

GRANITE = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = "The cutoff is March.\\nToday is " + strftime_now('%B %d, %Y') + ".\\nYou answer." %}
    {%- if tools and documents %}
        {%- set system_message = system_message + " You have tools and documents. List calls, then answer from documents." %}
    {%- elif tools %}
        {%- set system_message = system_message + " You have tools. Write <|tool_call|> and a JSON list." %}
    {%- elif documents %}
        {%- set system_message = system_message + " Answer from the documents." %}
    {%- elif thinking is defined and thinking %}
        {%- set system_message = system_message + " Think within <think></think>, answer within <response></response>." %}
    {%- endif %}
    {%- if length is defined and length is string and length in ('short', 'long') %}
        {%- set system_message = system_message + {'short': ' Be brief.', 'long': ' Be thorough.'}[length] %}
    {%- endif %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- '<|im_start|>system<|role|>' + system_message + '<|im_end|>\\n' }}
{%- if tools %}
    {{- '<|im_start|>tools<|role|>' }}
    {{- tools | tojson(indent=4) }}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- if documents %}
    {%- for document in documents %}
        {{- '<|im_start|>document {"document_id": "' + (document['doc_id'] | default(loop.index, true)) | string + '"}<|role|>\\n' }}
        {{- document['text'] }}
        {{- '<|im_end|>\\n' }}
    {%- endfor %}
{%- endif %}
{%- for message in loop_messages %}
    {%- if message['role'] == 'assistant_tool_call' or (message['role'] == 'assistant' and message.tool_calls is defined) %}
        {{- '<|im_start|>assistant<|role|><|tool_call|>' + message.tool_calls | map(attribute='function') | list | tojson(indent=1) + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '<|role|>' + message['content'] + '<|im_end|>\\n' }}
    {%- endif %}
    {%- if loop.last and add_generation_prompt %}
        {{- '<|im_start|>assistant' }}
        {%- if controls is defined %}{{- ' ' + controls | tojson() }}{%- endif %}
        {{- '<|role|>' }}
    {%- endif %}
{%- endfor %}
"""

SMOLLM3 = """\
{# ---- defaults ---- #}
{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}
{%- if enable_thinking -%}{%- set reasoning_mode = "/think" -%}{%- else -%}{%- set reasoning_mode = "/no_think" -%}{%- endif -%}
{{- "<|im_start|>system\\n" -}}
{%- if messages[0].role == "system" -%}
  {%- set system_message = messages[0].content -%}
  {%- if "/no_think" in system_message -%}
    {%- set reasoning_mode = "/no_think" -%}
  {%- elif "/think" in system_message -%}
    {%- set reasoning_mode = "/think" -%}
  {%- endif -%}
  {%- set custom_instructions = system_message.replace("/no_think", "").replace("/think", "").rstrip() -%}
{%- endif -%}
{%- if "/system_override" in system_message -%}
  {{- custom_instructions.replace("/system_override", "").rstrip() -}}
  {{- "<|im_end|>\\n" -}}
{%- else -%}
  {{- "## Metadata\\n\\n" -}}
  {{- "Cutoff: June\\n" -}}
  {%- set today = strftime_now("%d %B %Y") -%}
  {{- "Today: " ~ today ~ "\\n" -}}
  {{- "Mode: " + reasoning_mode + "\\n\\n" -}}
  {{- "## Instructions\\n\\n" -}}
  {%- if custom_instructions -%}
    {{- custom_instructions + "\\n\\n" -}}
  {%- elif reasoning_mode == "/think" -%}
    {{- "Think, then answer.\\n\\n" -}}
  {%- else -%}
    {{- "Answer.\\n\\n" -}}
  {%- endif -%}
  {%- if tools -%}
    {{- "### Tools\\n\\n" -}}
    {%- set ns = namespace(xml_tool_string="You may call:\\n<tools>\\n") -%}
    {%- for tool in tools[:] -%}
      {%- set ns.xml_tool_string = ns.xml_tool_string ~ (tool | string) ~ "\\n" -%}
    {%- endfor -%}
    {{- ns.xml_tool_string + "</tools>\\n\\n" -}}
  {%- endif -%}
  {{- "<|im_end|>\\n" -}}
{%- endif -%}
{# ---- conversation ---- #}
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else "" -%}
    {%- if message.role == "user" -%}
        {{ "<|im_start|>" + message.role + "\\n"  + content + "<|im_end|>\\n" }}
    {%- elif message.role == "assistant" -%}
        {% generation %}
        {%- if reasoning_mode == "/think" -%}
            {{ "<|im_start|>assistant\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}
        {%- else -%}
            {{ "<|im_start|>assistant\\n" + "<think>\\n\\n</think>\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}
        {%- endif -%}
        {% endgeneration %}
    {%- elif message.role == "tool" -%}
    {{ "<|im_start|>" + "user\\n"  + content + "<|im_end|>\\n" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if reasoning_mode == "/think" -%}
        {{ "<|im_start|>assistant\\n" }}
    {%- else -%}
        {{ "<|im_start|>assistant\\n" + "<think>\\n\\n</think>\\n"  }}
    {%- endif -%}
{%- endif -%}
"""

GPT_OSS = """\
{#- ---- a schema as a TypeScript type ---- #}
{%- macro typescript(spec, required, is_nullable=false) -%}
    {%- if spec.type == "array" -%}
        {%- if spec['items'] -%}
            {%- if spec['items']['type'] == "string" -%}
                {{- "string[]" }}
            {%- elif spec['items']['type'] in ("number", "integer") -%}
                {{- "number[]" }}
            {%- else -%}
                {%- set inner = typescript(spec['items'], required) -%}
                {%- if inner == "object | object" or inner | length > 50 -%}
                    {{- "any[]" }}
                {%- else -%}
                    {{- inner + "[]" }}
                {%- endif -%}
            {%- endif -%}
            {%- if spec.nullable -%}{{- " | null" }}{%- endif -%}
        {%- else -%}
            {{- "any[]" }}
        {%- endif -%}
    {%- elif spec.type is defined and spec.type is iterable and spec.type is not string and spec.type is not mapping and spec.type[0] is defined -%}
        {%- if spec.type | length > 1 -%}{{- spec.type | join(" | ") }}{%- else -%}{{- spec.type[0] }}{%- endif -%}
    {%- elif spec.oneOf -%}
        {%- set has_object_variants = false -%}
        {%- for variant in spec.oneOf -%}
            {%- if variant.type == "object" -%}{%- set has_object_variants = true -%}{%- endif -%}
        {%- endfor -%}
        {%- if has_object_variants and spec.oneOf | length > 1 -%}
            {{- "any" }}
        {%- else -%}
            {%- for variant in spec.oneOf -%}
                {{- typescript(variant, required) -}}
                {%- if variant.description %}{{- "// " + variant.description }}{%- endif -%}
                {%- if variant.default is defined %}{{ "// default: " + variant.default | tojson }}{%- endif -%}
                {%- if not loop.last %}{{- " | " }}{% endif -%}
            {%- endfor -%}
        {%- endif -%}
    {%- elif spec.type == "string" -%}
        {%- if spec.enum -%}
            {{- '"' + spec.enum | join('" | "') + '"' -}}
        {%- else -%}
            {{- "string" }}
            {%- if spec.nullable %}{{- " | null" }}{%- endif -%}
        {%- endif -%}
    {%- elif spec.type in ["number", "integer"] -%}
        {{- "number" }}
    {%- elif spec.type == "boolean" -%}
        {{- "boolean" }}
    {%- elif spec.type == "object" -%}
        {%- if spec.properties -%}
            {{- "{\\n" }}
            {%- for prop_name, prop_spec in spec.properties.items() -%}
                {{- prop_name -}}
                {%- if prop_name not in (spec.required or []) -%}{{- "?" }}{%- endif -%}
                {{- ": " }}{{ typescript(prop_spec, spec.required or []) }}
                {%- if not loop.last -%}{{-", " }}{%- endif -%}
            {%- endfor -%}
            {{- "}" }}
        {%- else -%}
            {{- "object" }}
        {%- endif -%}
    {%- else -%}
        {{- "any" }}
    {%- endif -%}
{%- endmacro -%}
{%- macro tool_namespace(namespace_name, tools) -%}
    {{- "## " + namespace_name + "\\n\\nnamespace " + namespace_name + " {\\n\\n" }}
    {%- for tool in tools %}
        {%- set tool = tool.function %}
        {{- "// " + tool.description + "\\n" }}
        {{- "type "+ tool.name + " = " }}
        {%- if tool.parameters and tool.parameters.properties -%}
            {{- "(_: {\\n" }}
            {%- for param_name, param_spec in tool.parameters.properties.items() %}
                {%- if param_spec.description %}{{- "// " + param_spec.description + "\\n" }}{%- endif %}
                {{- param_name }}
                {%- if param_name not in (tool.parameters.required or []) -%}{{- "?" }}{%- endif -%}
                {{- ": " }}
                {{- typescript(param_spec, tool.parameters.required or []) }}
                {%- if param_spec.default is defined -%}
                    {%- if param_spec.enum %}{{- ", // default: " + param_spec.default }}{%- elif param_spec.oneOf %}{{- "// default: " + param_spec.default }}{%- else %}{{- ", // default: " + param_spec.default | tojson }}{%- endif -%}
                {%- endif -%}
                {%- if not loop.last %}{{- ",\\n" }}{%- else %}{{- ",\\n" }}{%- endif -%}
            {%- endfor %}
            {{- "}) => any;\\n\\n" }}
        {%- else -%}
            {{- "() => any;\\n\\n" }}
        {%- endif -%}
    {%- endfor %}
    {{- "} // namespace " + namespace_name }}
{%- endmacro -%}
{%- macro system_message() -%}
    {%- if model_identity is not defined %}{%- set model_identity = "You are a model." %}{%- endif %}
    {{- model_identity + "\\n" }}
    {{- "Date: " + strftime_now("%Y-%m-%d") + "\\n\\n" }}
    {%- if reasoning_effort is not defined %}{%- set reasoning_effort = "medium" %}{%- endif %}
    {{- "Reasoning: " + reasoning_effort + "\\n\\n" }}
    {{- "# Channels: analysis, final." }}
    {%- if tools -%}{{- "\\nCalls go to commentary: 'functions'." }}{%- endif -%}
{%- endmacro -%}
{{- "<|im_start|>system<|message|>" }}
{{- system_message() }}
{{- "<|im_end|>" }}
{%- if messages[0].role == "developer" or messages[0].role == "system" %}
    {%- set developer_message = messages[0].content %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set developer_message = "" %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if developer_message or tools %}
    {{- "<|im_start|>developer<|message|>" }}
    {%- if developer_message %}{{- "# Instructions\\n\\n" }}{{- developer_message }}{{- "\\n\\n" }}{%- endif %}
    {%- if tools -%}{{- "# Tools\\n\\n" }}{{- tool_namespace("functions", tools) }}{%- endif -%}
    {{- "<|im_end|>" }}
{%- endif %}
{%- set last_tool_call = namespace(name=none) %}
{%- for message in loop_messages -%}
    {%- if message.role == 'assistant' -%}
        {%- if "content" in message %}
            {%- if "<|channel|>analysis" in message.content or "<|channel|>final" in message.content %}
                {{- raise_exception("A message has <|channel|> tags in its content; put thinking into 'thinking'.") }}
            {%- endif %}
        {%- endif %}
        {%- if "tool_calls" in message %}
            {%- set future_final_message = namespace(found=false) %}
            {%- for future_message in loop_messages[loop.index:] %}
                {%- if future_message.role == 'assistant' and "tool_calls" not in future_message %}
                    {%- set future_final_message.found = true %}
                {%- endif %}
            {%- endfor %}
            {%- set tool_call = message.tool_calls[0] %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {%- if message.content and message.thinking %}
                {{- raise_exception("Cannot have both content and thinking beside tool calls.") }}
            {%- elif message.content and not future_final_message.found %}
                {{- "<|im_start|>assistant<|channel|>analysis<|message|>" + message.content + "<|im_end|>" }}
            {%- elif message.thinking and not future_final_message.found %}
                {{- "<|im_start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|im_end|>" }}
            {%- endif %}
            {{- "<|im_start|>assistant to=" }}
            {{- "functions." + tool_call.name + "<|channel|>commentary " }}
            {{- (tool_call.content_type if tool_call.content_type is defined else "json") + "<|message|>" }}
            {{- tool_call.arguments | tojson }}
            {{- "<|call|>" }}
            {%- set last_tool_call.name = tool_call.name %}
        {%- elif loop.last and not add_generation_prompt %}
            {%- if "thinking" in message %}
                {{- "<|im_start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|im_end|>" }}
            {%- endif %}
            {{- "<|im_start|>assistant<|channel|>final<|message|>" + message.content + "<|return|>" }}
        {%- else %}
            {{- "<|im_start|>assistant<|channel|>final<|message|>" + message.content + "<|im_end|>" }}
            {%- set last_tool_call.name = none %}
        {%- endif %}
    {%- elif message.role == 'tool' -%}
        {%- if last_tool_call.name is none %}
            {{- raise_exception("A tool message without a call before it!") }}
        {%- endif %}
        {{- "<|im_start|>functions." + last_tool_call.name }}
        {{- " to=assistant<|channel|>commentary<|message|>" + message.content | tojson + "<|im_end|>" }}
    {%- elif message.role == 'user' -%}
        {{- "<|im_start|>user<|message|>" + message.content + "<|im_end|>" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{%- endif -%}"""

MISTRAL_STRICT = """\
{%- set default_system_message = "Today is " ~ (date_string | default(strftime_now("%d-%m-%Y"))) ~ "." %}
{{- bos_token }}
{%- if messages[0]["role"] == "system" %}
    {%- if messages[0]["content"] is string %}
        {%- set system_message = messages[0]["content"] %}
    {%- else %}
        {%- set system_message = messages[0]["content"][0]["text"] %}
    {%- endif %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = default_system_message %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- elif tools is not none %}
    {%- set parallel_tool_prompt = "Call several tools with one list." %}
    {%- if system_message is defined %}{%- set system_message = parallel_tool_prompt + "\\n\\n" + system_message %}{%- else %}{%- set system_message = parallel_tool_prompt %}{%- endif %}
{%- endif %}
{{- "[SYSTEM_PROMPT]" + system_message + "[/SYSTEM_PROMPT]" }}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set filtered_messages = [] %}
{%- for message in loop_messages %}
    {%- if message["role"] not in ["tool", "tool_results"] and not message.get("tool_calls") %}
        {%- set filtered_messages = filtered_messages + [message] %}
    {%- endif %}
{%- endfor %}
{%- set ns = namespace(index=0, last=none) %}
{%- for message in loop_messages if not (message.role == "tool" or message.get("tool_calls")) %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("Roles must alternate user and assistant, but message " ~ (ns.index + 1) ~ " is of " ~ message["role"]) }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
    {%- set ns.last = message %}
{%- endfor %}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS]" + tools | tojson + "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if message["content"] is string %}
            {{- "[INST]" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST]" }}
            {%- for block in message["content"] | sort(attribute="type", reverse=true) %}
                {%- if block["type"] == "text" %}{{- block["text"] }}{%- else %}{{- raise_exception("Only text: " ~ block["type"]) }}{%- endif %}
            {%- endfor %}
            {{- "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "tool_calls" or message.tool_calls is defined %}
        {%- if message.tool_calls is defined %}{%- set tool_calls = message.tool_calls %}{%- else %}{%- set tool_calls = message.content %}{%- endif %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in tool_calls %}
            {%- set out = tool_call.function | tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id is not string or tool_call.id | length < 9 %}
                {{- raise_exception("Tool call IDs should be strings of length 9 or more!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id[-9:] + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {%- if message["content"] is string %}{{- " " + message["content"] + eos_token }}{%- else %}{{- " " + message["content"][0]["text"] + eos_token }}{%- endif %}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}{%- set content = message.content.content %}{%- else %}{%- set content = message.content %}{%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content | string + ", " }}
        {%- if not message.tool_call_id is defined or message.tool_call_id | length != 9 %}
            {{- raise_exception("Tool call IDs should be strings of length 9!") }}
        {%- endif %}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user, assistant and tool roles") }}
    {%- endif %}
{%- endfor %}
"""

CONSTRUCTS = """\
{#- What the families use here and there, in one template. -#}
{%- macro item(value, depth=0) -%}
  {%- if value is mapping -%}
    {%- for k, v in value | dictsort(reverse=true) %}{{ "  " * depth ~ k ~ ":" }}{{ item(v, depth=depth + 1) }}{% endfor -%}
  {%- elif value is string or value is not iterable -%}
    {{ value | string | replace("\\n", "\\\\n") | truncate(20, true, '…') if truncated is defined else value | string }};
  {%- else -%}
    {%- for v in value -%}{{ loop.index0 ~ "/" ~ loop.length }}{{ item(v, depth + 1) }}{%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set window = messages[-max_turns:] if max_turns is defined and max_turns is integer and max_turns > 0 else messages -%}
{%- set roles = namespace(seen=[], count={}) -%}
{%- for m in window -%}
  {%- if m.role not in roles.seen -%}{%- set roles.seen = roles.seen + [m.role] -%}{%- endif -%}
{%- endfor -%}
{{ roles.seen | join(',') | upper }}|{{ window | map(attribute='role') | unique | list }}
{% for m in window[::-1] | list if m.content is defined and m.content %}
  {%- if m.content is string %}
{{ loop.revindex }}{{ 'first' if loop.first else '' }}{{ 'last' if loop.last }}:{{ m.role.title().ljust(9, '.') }}{{ m.content.strip().split()[:3] | join('_') }}
  {%- else %}
{{ m.content | map(attribute='text') | map('trim') | select | join('+') }}
  {%- endif %}
{% else %}
nothing
{% endfor %}
{{ messages[-1] | tojson }}
{%- for m in messages | selectattr('tool_calls', 'defined') %}
{%- for call in m.tool_calls -%}
{%- with f = call.function, id = call.get('id', 'none') %}
{{ id[:3] }}{{ id[-2:] }}{{ f.name }}({% for k, v in f.arguments.items() -%}
{{ k }}={{ v | tojson(ensure_ascii=true) }}{{ ", " if not loop.last }}
{%- endfor %}){{ f.arguments | length }}
{%- endwith %}
{%- endfor %}
{{ item(m.tool_calls) }}
{{ m.tool_calls | tojson(indent=2, sort_keys=true) }}
{%- endfor %}
{%- for tool in tools or [] %}
{%- set p = (tool.function.parameters | default({})).get('properties', {}) %}
{{ tool.function.name.split('_') | map('capitalize') | join }}{{ p.keys() | list }}{{ p.values() | map(attribute='type', default='?') | list }}
{%- endfor %}
{%- if temperature_hint is defined %}{{ "%.2f"|format(temperature_hint) }}{{ temperature_hint | round(1) }}{{ (temperature_hint * 100) | int }}{% endif %}
{%- if flag is defined %}{{ flag }}{{ flag | int }}{{ 'yes' if flag is true else 'no' if flag is false else 'odd' }}{% endif %}
{%- if note is defined %}{{ note is string }}{{ note.startswith(('a', 'b')) }}{{ note.count('a') }}{{ note.find('b') }}{{ note | length > 3 }}{{ note[1:-1] }}{{ note | e }}{% endif %}
{%- for d in documents or [] %}
{{ d.title or 'untitled' }}#{{ loop.index }}: {{ d.text | indent(2) | wordcount }}
{%- endfor %}
{%- set parts = [] %}{% set _ = parts %}{{ parts is sequence and not parts }}
{%- if add_generation_prompt %}{{ '\\n' ~ strftime_now('%Y %j %H') ~ '>' }}{% endif %}
"""

FAMILIES = {
    "deepseek": DEEPSEEK,
    "command-r": COMMAND_R,
    "phi4": PHI4,
    "granite": GRANITE,
    "smollm3": SMOLLM3,
    "gpt-oss": GPT_OSS,
    "mistral-strict": MISTRAL_STRICT,
    "constructs": CONSTRUCTS,
}
