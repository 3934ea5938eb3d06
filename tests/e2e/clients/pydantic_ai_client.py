"""pydantic-ai, unmodified, over chat completions and over responses. The backend calls `stock`, then `final_result`, each time."""

import asyncio
import json
import os

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Capital(BaseModel):
    country: str
    capital: str


PROVIDER = OpenAIProvider(base_url=os.environ["KALA_URL"] + "/v1", api_key=os.environ["KALA_API_KEY"])


async def over(kind: type) -> dict[str, object]:
    model = kind("auto", provider=PROVIDER)
    clerk = Agent(model, instructions="Answer about the stock.")

    @clerk.tool_plain
    def stock(article: str) -> int:
        """How many of an article are in stock."""
        return {"bolts": 120}.get(article, 0)

    told = await clerk.run("How many bolts are in stock? Use the tool.")
    returned = [
        part.content
        for message in told.all_messages()
        for part in message.parts
        if part.part_kind == "tool-return"
    ]
    structured = await Agent(model, output_type=Capital).run("Which is France's capital?")
    async with Agent(model).run_stream("What is machine learning?") as stream:
        words = [word async for word in stream.stream_text(delta=True, debounce_by=None)]
    return {
        "told": told.output,
        "returned": returned,
        "structured": structured.output.model_dump(),
        "streamed": "".join(words),
        "usage": told.usage.output_tokens
        if hasattr(told.usage, "output_tokens")
        else told.usage().output_tokens,
    }


async def main() -> None:
    saw: dict[str, object] = {
        "chat": await over(OpenAIChatModel),
        "responses": await over(OpenAIResponsesModel),
    }
    try:
        await Agent(OpenAIChatModel("no-such-model", provider=PROVIDER)).run("Hi")
    except ModelHTTPError as error:
        saw["unknown"] = error.status_code
    print(json.dumps(saw))


asyncio.run(main())
