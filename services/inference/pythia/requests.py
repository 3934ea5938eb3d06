"""What the model in process makes of a request, and what its failures mean to the one who asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, TypeVar

from kala.errors import InvalidArgumentError
from services.inference.backend import BackendFailure, Blame
from services.inference.chat import ChatCall, Form, Sampling, Text
from services.inference.failures import MAX_TOLD_CHARS
from services.inference.pythia.worker import Told

T = TypeVar("T")

ABSENT_LIBRARIES: Final = "torch and transformers are not installed; install `kala-suite[inference-pythia]`"


def conversation(call: ChatCall) -> list[dict[str, str]]:
    """Write the messages as a chat template reads them."""
    return [
        {
            "role": message.role.value,
            "content": "\n".join(part.text for part in message.parts if isinstance(part, Text)),
        }
        for message in call.messages
    ]


def refuse_what_it_cannot(call: ChatCall) -> None:
    """Raise BackendFailure for what would otherwise be ignored."""
    if any(not isinstance(part, Text) for message in call.messages for part in message.parts):
        raise rejection("the model in process reads text only")
    if call.demands_a_tool:
        raise rejection("the model in process calls no tools; drop tool_choice or choose another backend")
    if call.answer_form.form is not Form.TEXT:
        raise rejection("the model in process cannot be held to a response_format; choose another backend")
    refuse_logprobs(call.sampling)


def refuse_logprobs(sampling: Sampling) -> None:
    """Raise BackendFailure where log probabilities are asked for."""
    if sampling.logprobs:
        raise rejection("the model in process gives no logprobs")


def rejection(problem: str) -> BackendFailure:
    """Make the failure that tells the caller what is wrong with the request."""
    return BackendFailure(
        "BACKEND_REJECTED", "cannot do what the request asks", blame=Blame.CALLER, told=problem
    )


def rendered(encode: Callable[[], T]) -> T:
    """Write a conversation by its template; raises InvalidArgumentError that names `messages` where it cannot be written.

    A template that is none at all is a ValueError, for no message mends it.
    """
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        return encode()
    except InvalidArgumentError as error:
        raise InvalidArgumentError("messages", error.problem) from error
    except TemplateSyntaxError as error:
        raise ValueError("the chat template is none") from error
    except TemplateError as error:
        told = f"the model's chat template refuses them: {str(error)[:MAX_TOLD_CHARS]}"
        raise InvalidArgumentError("messages", told) from error


def failure_of(error: Exception) -> BackendFailure:
    """Say what an error of the engine means."""
    if isinstance(error, InvalidArgumentError):
        return BackendFailure(
            "BACKEND_REJECTED",
            "cannot read the conversation",
            blame=Blame.CALLER,
            told=error.problem,
            field=error.field,
        )
    return BackendFailure("GENERATION_FAILED", f"failed while generating: {type(error).__name__}")


def cure_of(failure: BackendFailure) -> str:
    """Say what to do about a failed load."""
    if failure.reason == "LOAD_FAILED":
        return "get the files again, or load a smaller model"
    # These already say in their detail how to mend them.
    return failure.detail


def post(loop: asyncio.AbstractEventLoop, told: asyncio.Queue[Told], item: Told) -> None:
    """Hand something from the worker thread to the event loop; nothing where the loop is gone."""
    # It is closed between a look and the call as easily as before the look.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(told.put_nowait, item)


async def all_of(told: asyncio.Queue[Told]) -> list[Told]:
    """Give all that is there, at least one item."""
    items = [await told.get()]
    while not told.empty():
        items.append(told.get_nowait())
    return items


def texts_joined(items: list[Told]) -> list[Told]:
    """Give the items with neighbouring texts made one."""
    joined: list[Told] = []
    for item in items:
        if isinstance(item, str) and joined and isinstance(joined[-1], str):
            joined[-1] += item
        else:
            joined.append(item)
    return joined
