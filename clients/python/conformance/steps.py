"""One step of a case: the call, made with the client, and its outcome in the form of clients/CONFORMANCE.md."""

from collections.abc import Callable
from typing import Any

import messages

import tokenwire.client as tw
from tokenwire.client import ChatSession, Client, Stream, TokenwireError

Control = Callable[[str], Any]
Outcome = dict[str, Any]


def call(client: Client, step: dict[str, Any], request: dict[str, Any], control: Control) -> Outcome:
    """Make the call of a step."""
    common: dict[str, Any] = {}
    if "deadline_ms" in step:
        common["timeout"] = step["deadline_ms"] / 1000
    if "request_id" in step:
        common["request_id"] = step["request_id"]
    outcome: Outcome = {}
    try:
        outcome |= _CALLS[step["call"]](client, request, common, step, control)
        outcome.setdefault("status", "OK")
    except TokenwireError as error:
        outcome |= failure(error)
    return outcome


def failure(error: TokenwireError) -> Outcome:
    """How a call failed."""
    details = error.details
    outcome: Outcome = {
        "status": error.code.name,
        "message": error.message,
        "reason": error.reason,
        "request_id": error.request_id,
        "no_answer": isinstance(error, tw.ConnectionFailed),
        "info": dict(details.info),
        "violations": [{"field": each.field, "description": each.description} for each in details.violations],
    }
    if details.retry_after is not None:
        outcome["retry_after_ms"] = details.retry_after * 1000
    return outcome


def _answer(answer: tw.Generation) -> Outcome:
    return {
        "response": messages.generation_view(answer),
        "request_id": answer.request_id,
        "text": answer.text,
        "texts": list(answer.texts),
        "warnings": [each.code for each in answer.warnings],
    }


def _generate(client: Client, request: Any, common: Any, *_: Any) -> Outcome:
    prompt, special = messages.prompt(request.get("prompt", {}))
    return _answer(client.generate(prompt, **messages.options(request), **special, **common))


def _generate_stream(client: Client, request: Any, common: Any, step: Any, control: Control) -> Outcome:
    prompt, special = messages.prompt(request.get("prompt", {}))
    return _read(client.stream(prompt, **messages.options(request), **special, **common), step, control)


def _chat(client: Client, request: Any, common: Any, *_: Any) -> Outcome:
    said, options = messages.conversation(request["conversation"])
    return _answer(client.chat(said, **options, **messages.options(request), **common))


def _chat_stream(client: Client, request: Any, common: Any, step: Any, control: Control) -> Outcome:
    said, options = messages.conversation(request["conversation"])
    return _read(client.chat_stream(said, **options, **messages.options(request), **common), step, control)


def _read(stream: Stream, step: dict[str, Any], control: Control) -> Outcome:
    """Read a stream to its end, and do what is to be done on the way."""
    deltas: list[str] = []

    def act() -> None:
        if step.get("after") == len(deltas):
            if step["then"] == "cancel":
                stream.cancel()
            else:
                control(step["then"])

    with stream:
        try:
            act()
            for delta in stream:
                if delta.sequence_index == 0:
                    deltas.append(delta.text)
                    act()
            return {**_answer(stream.result()), "deltas": deltas}
        except TokenwireError as error:
            return {"text": stream.text_so_far, "deltas": deltas, **failure(error)}


def _batch(client: Client, request: Any, common: Any, *_: Any) -> Outcome:
    prompts = [messages.prompt(each)[0] for each in request["prompts"]]
    items = [
        {"error": failure(each)} if isinstance(each, TokenwireError) else {"response": messages.generation_view(each)}
        for each in client.generate_batch(prompts, **messages.options(request), **common)
    ]
    return {"response": {"items": items}}


def _tokenize(client: Client, request: Any, common: Any, *_: Any) -> Outcome:
    return {"response": {"tokens": messages.view(client.tokenize(**request, **common))}}


def _detokenize(client: Client, request: Any, common: Any, *_: Any) -> Outcome:
    options = {name: value for name, value in request.items() if name != "token_ids"}
    return {"response": {"text": client.detokenize(request["token_ids"]["ids"], **options, **common)}}


def _render(client: Client, request: Any, common: Any, *_: Any) -> Outcome:
    said, options = messages.conversation(request["conversation"])
    rendered = client.render_chat(said, **options, **common)
    return {"response": {"text": rendered.text, "token_ids": {"ids": list(rendered.token_ids)}}}


def _model(client: Client, request: Any, common: Any, *_: Any) -> Outcome:
    return {"response": {"model": messages.view(client.model(**request, **common))}}


def _wait(client: Client, _request: Any, common: Any, *_: Any) -> Outcome:
    client.wait_until_ready(common["timeout"])
    return {}


def _session(client: Client, request: Any, common: Any, _step: Any, control: Control) -> Outcome:
    base = request["base"]
    said, rendering = messages.conversation(base.get("conversation", {}))
    session = ChatSession(client, said, **rendering, **messages.options(base), **common)
    outcome: Outcome = {}
    for turn in request["turns"]:
        if turn.get("stream"):
            outcome = _read(session.stream(turn["text"]), turn, control)
        else:
            outcome = _answer(session.say(turn["text"]))
    return outcome | {"response": {"messages": [messages.message_view(each) for each in session.messages]}}


_CALLS: dict[str, Callable[..., Outcome]] = {
    "Generate": _generate,
    "GenerateStream": _generate_stream,
    "GenerateBatch": _batch,
    "Chat": _chat,
    "ChatStream": _chat_stream,
    "Tokenize": _tokenize,
    "Detokenize": _detokenize,
    "RenderChat": _render,
    "GetModel": _model,
    "WaitUntilReady": _wait,
    "ChatSession": _session,
}
