"""openai-agents, unmodified, over chat completions and over responses. The backend calls `stock` once for each."""

import asyncio
import json
import os

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI


@function_tool
def stock(article: str) -> int:
    """How many of an article are in stock."""
    return {"bolts": 120}.get(article, 0)


async def over(model: object) -> dict[str, object]:
    clerk = Agent(name="clerk", instructions="Answer about the stock.", model=model, tools=[stock])
    result = await Runner.run(clerk, "How many bolts are in stock? Use the tool.")
    outputs = [item.output for item in result.new_items if item.type == "tool_call_output_item"]
    plain = Agent(name="plain", instructions="Answer in short.", model=model)
    streamed = Runner.run_streamed(plain, "What is machine learning?")
    words = [
        event.data.delta
        async for event in streamed.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    return {
        "final": result.final_output,
        "outputs": outputs,
        "streamed": "".join(words),
        "end": streamed.final_output,
    }


async def main() -> None:
    set_tracing_disabled(disabled=True)
    async with AsyncOpenAI(
        base_url=os.environ["KALA_URL"] + "/v1", api_key=os.environ["KALA_API_KEY"], max_retries=0
    ) as client:
        saw = {
            "chat": await over(OpenAIChatCompletionsModel(model="auto", openai_client=client)),
            "responses": await over(OpenAIResponsesModel(model="auto", openai_client=client)),
        }
    print(json.dumps(saw))


asyncio.run(main())
