"""Every rule about conversations, checked before any work."""

import math
import re
from collections.abc import Iterator

import msgspec

from tokenwire.convert_chat import template_name_of
from tokenwire.v1 import chat_pb2
from tokenwire.validation import Bounds, Verbatim, Violations, shorten, within

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Who may speak in a conversation."""

SERVER_VARIABLES = frozenset(
    {
        *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
        *("strftime_now", "raise_exception"),
    }
)
"""Template variables that the server sets, beside the model's special tokens, or that have a field of their own."""


def check_conversation(
    conversation: chat_pb2.Conversation, bounds: Bounds, violations: Violations, path: str = "conversation"
) -> None:
    """Check roles, contents, tools, documents, what the template is given and how the turn is to be opened."""
    limits = bounds.limits
    messages, tools = conversation.messages, conversation.tools
    if not messages:
        violations.add(f"{path}.messages", "must have at least one message", Verbatim("none"))
    if within(messages, limits.max_messages, violations, f"{path}.messages", "messages"):
        for index, message in enumerate(messages):
            _check_message(message, violations, f"{path}.messages[{index}]")
    if within(tools, limits.max_tools, violations, f"{path}.tools", "tools"):
        for index, tool in enumerate(tools):
            if not tool.name:
                violations.add(f"{path}.tools[{index}].name", "must not be empty", "")
            _check_json_object(tool.parameters_json, violations, f"{path}.tools[{index}].parameters_json")
    if within(conversation.documents, limits.max_documents, violations, f"{path}.documents", "documents"):
        for index, document in enumerate(conversation.documents):
            if not document.text:
                violations.add(f"{path}.documents[{index}].text", "must not be empty", "")
    variables = conversation.template_variables
    if within(variables, limits.max_template_variables, violations, f"{path}.template_variables", "variables"):
        for name, value in variables.items():
            _check_variable(name, value, bounds, violations, f"{path}.template_variables")
    _check_template_name(conversation, bounds, violations, f"{path}.template_name")
    if conversation.continue_final_message:
        if conversation.add_generation_prompt:
            violations.add(f"{path}.continue_final_message", "must not be set with add_generation_prompt", True)
        elif messages and not messages[-1].content:
            rule = "must be set with continue_final_message"
            violations.add(f"{path}.messages[{len(messages) - 1}].content", rule, Verbatim("none"))
    total = _text_bytes(conversation)
    if total > bounds.max_prompt_bytes:
        rule = f"must be at most {bounds.max_prompt_bytes} bytes together: more do not fit the {bounds.capacity_name}"
        violations.add(f"{path}.messages", rule, Verbatim(f"{total} bytes"))


def _check_variable(
    name: str, value: chat_pb2.TemplateValue, bounds: Bounds, violations: Violations, path: str
) -> None:
    if not (name.isascii() and name.isidentifier()):
        rule = "must have names of ASCII letters, digits and underscores, not beginning with a digit"
        violations.add(path, rule, name)
        return
    path = f"{path}[{shorten(Verbatim(name))}]"
    if name in SERVER_VARIABLES or name in bounds.info.special_tokens:
        violations.add(path, "must not be set: the server sets it", Verbatim(value.WhichOneof("kind")))
    match value.WhichOneof("kind"):
        case None:
            violations.add(path, "must have a value", Verbatim("none"))
        case "number_value" if not math.isfinite(value.number_value):
            violations.add(path, "must be finite", value.number_value)
        case _:
            pass


def _check_template_name(
    conversation: chat_pb2.Conversation, bounds: Bounds, violations: Violations, path: str
) -> None:
    names = bounds.info.chat_templates
    chosen = template_name_of(conversation, names)
    if chosen is None:
        rule = f"must name one of the model's templates, which has no default: {', '.join(sorted(names))}"
        violations.add(path, shorten(Verbatim(rule), 200), "")
    elif chosen not in names:
        rule = f"must be one of the model's templates: {', '.join(sorted(names))}"
        violations.add(path, shorten(Verbatim(rule), 200), chosen)


def _text_bytes(conversation: chat_pb2.Conversation) -> int:
    """UTF-8 bytes of all text that the chat template is given, roles apart."""
    return sum(len(text.encode()) for text in _texts(conversation))


def _texts(conversation: chat_pb2.Conversation) -> Iterator[str]:
    for message in conversation.messages:
        yield from (message.name, message.reasoning_content, message.tool_call_id)
        yield from (part.text for part in message.content)
        for call in message.tool_calls:
            yield from (call.id, call.name, call.arguments_json)
    for tool in conversation.tools:
        yield from (tool.name, tool.description, tool.parameters_json)
    for document in conversation.documents:
        yield from (document.title, document.text)
    for name, value in conversation.template_variables.items():
        yield from (name, value.string_value)


def _check_message(message: chat_pb2.ChatMessage, violations: Violations, path: str) -> None:
    if message.role not in ROLES:
        violations.add(f"{path}.role", f"must be one of {', '.join(ROLES)}", message.role)
    if not message.content and not message.tool_calls:
        violations.add(f"{path}.content", "must not be empty without tool_calls", Verbatim("none"))
    for index, part in enumerate(message.content):
        if part.WhichOneof("part") is None:
            violations.add(f"{path}.content[{index}]", "must have text", Verbatim("nothing this server knows"))
    if message.role != "assistant":
        if message.tool_calls:
            violations.add(f"{path}.tool_calls", "only for role assistant", Verbatim(f"role {shorten(message.role)}"))
        if message.reasoning_content:
            rule = "only for role assistant"
            violations.add(f"{path}.reasoning_content", rule, Verbatim(f"role {shorten(message.role)}"))
    if message.role != "tool" and message.tool_call_id:
        violations.add(f"{path}.tool_call_id", "only for role tool", Verbatim(f"role {shorten(message.role)}"))
    for index, call in enumerate(message.tool_calls):
        if not call.name:
            violations.add(f"{path}.tool_calls[{index}].name", "must not be empty", "")
        _check_json_object(call.arguments_json, violations, f"{path}.tool_calls[{index}].arguments_json")


MAX_JSON_NESTING = 100
"""Objects and lists inside each other in arguments of tool calls and parameters of tools."""


def _check_json_object(text: str, violations: Violations, path: str) -> None:
    if not text:
        return
    if _nesting(text) > MAX_JSON_NESTING:
        violations.add(path, f"must be a JSON object of at most {MAX_JSON_NESTING} levels", text)
        return
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        violations.add(path, f"must be a JSON object that can be read ({error})", text)
    else:
        if not isinstance(value, dict):
            violations.add(path, "must be a JSON object", text)


_STRINGS_AND_BRACKETS = re.compile(r'"(?:[^"\\]|\\.?)*+(?:"|\Z)|[\[\]{}]', re.DOTALL)


def _nesting(text: str) -> int:
    """How deep the brackets of a JSON text are nested, without recursion and whether or not it can be read."""
    depth = deepest = 0
    for found in _STRINGS_AND_BRACKETS.finditer(text):
        character = found[0][0]
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest
