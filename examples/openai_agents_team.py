"""OpenAI's agents SDK over KALA: an agent with a tool of its own, and one that hands over to it.

pip install openai-agents
export KALA_URL=http://127.0.0.1:8800 KALA_API_KEY=$(cat ~/.local/state/kala/keys/cli.key)
python examples/openai_agents_team.py
"""

from __future__ import annotations

import asyncio
import os

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI


@function_tool
def stock(article: str) -> int:
    """How many of an article are in stock."""
    return {"bolts": 120, "nuts": 80}.get(article, 0)


async def main() -> None:
    """Let the team answer, then stream an answer."""
    # Its traces would go to OpenAI; what happens here is in KALA's log.
    set_tracing_disabled(disabled=True)
    async with AsyncOpenAI(
        base_url=os.environ["KALA_URL"] + "/v1", api_key=os.environ["KALA_API_KEY"]
    ) as client:
        model = OpenAIChatCompletionsModel(model="auto", openai_client=client)
        clerk = Agent(name="clerk", instructions="Answer about the stock.", model=model, tools=[stock])
        desk = Agent(name="desk", instructions="Hand over to the clerk.", model=model, handoffs=[clerk])
        result = await Runner.run(clerk, "How many bolts are in stock? Use the tool.")
        print(f"clerk:  {result.final_output}")
        for item in result.new_items:
            if item.type == "tool_call_output_item":
                print(f"tool:   stock said {item.output}")
        handed = await Runner.run(desk, "How many nuts are in stock?")
        print(f"desk:   {handed.final_output} [answered by {handed.last_agent.name}]")
        streamed = Runner.run_streamed(clerk, "What is machine learning?")
        print("stream: ", end="")
        async for event in streamed.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                print(event.data.delta, end="", flush=True)
        print()


if __name__ == "__main__":
    asyncio.run(main())
