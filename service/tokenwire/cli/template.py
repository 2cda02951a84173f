"""The flags that say how a conversation is rendered."""

import json
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Group, Parameter

from tokenwire.client import ConversationOptions

_TEMPLATE = Group("Chat template", sort_key=3)


def _is_variable(_type: Any, values: tuple[str, ...]) -> None:
    for value in values:
        _parse_variable(value)


def _no_number(text: str) -> float:
    raise ValueError(text)


def _parse_variable(text: str) -> tuple[str, str | float | bool]:
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f'"{text}" must be NAME=VALUE, for example enable_thinking=false.')
    try:
        parsed = json.loads(value, parse_constant=_no_number)
    except ValueError:
        parsed = value
    return name, parsed if isinstance(parsed, str | float | int) else value


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateFlags:
    """How the model's chat template renders a conversation."""

    template: Annotated[str, Parameter(group=_TEMPLATE, show_default=False)] = ""
    """Which of the model's templates. Default: the one called default."""
    template_var: Annotated[
        tuple[str, ...], Parameter(group=_TEMPLATE, show_default=False, negative=(), validator=_is_variable)
    ] = ()
    """NAME=VALUE, a variable of the template; may be repeated. true, false and numbers are such unless in "quotes"."""

    def options(self) -> ConversationOptions:
        """The flags that were given, as options of the client."""
        options = ConversationOptions()
        if self.template:
            options["template_name"] = self.template
        if self.template_var:
            options["template_variables"] = dict(map(_parse_variable, self.template_var))
        return options
