"""langchain-openai, unmodified: prints what it saw as one JSON object. The backend calls `add`, then `Capital`."""

import asyncio
import json
import os

import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

WHERE = {"base_url": os.environ["KALA_URL"] + "/v1", "api_key": os.environ["KALA_API_KEY"], "max_retries": 0}
QUESTION = "What is machine learning?"


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Capital(BaseModel):
    """A country's capital."""

    country: str
    capital: str


model = ChatOpenAI(model="auto", **WHERE)
plain = model.invoke(QUESTION)
streamed = "".join(chunk.text for chunk in model.stream(QUESTION))
several = asyncio.run(model.abatch([QUESTION, QUESTION]))

asked = [HumanMessage("Add 2 and 3 with the tool.")]
calling = model.bind_tools([add]).invoke(asked)
called = calling.tool_calls[0]
result = add.invoke(called["args"])
after = model.invoke([*asked, calling, ToolMessage(str(result), tool_call_id=called["id"])])
structured = model.with_structured_output(Capital, method="function_calling").invoke(
    "Which is France's capital?"
)

refused = model.invoke(os.environ["HARMFUL"])
responses = ChatOpenAI(model="auto", use_responses_api=True, **WHERE)
answered = responses.invoke(QUESTION)
streamed_response = "".join(chunk.text for chunk in responses.stream(QUESTION))
try:
    ChatOpenAI(model="no-such-model", **WHERE).invoke(QUESTION)
    unknown = ""
except openai.NotFoundError as error:
    unknown = error.code

print(json.dumps({
    "plain": plain.text, "tokens": plain.usage_metadata["output_tokens"], "streamed": streamed,
    "several": [each.text for each in several],
    "called": [called["name"], called["args"], result], "after": after.text,
    "structured": structured.model_dump(), "refused": refused.response_metadata["finish_reason"],
    "responses": answered.text, "streamed_response": streamed_response, "unknown": unknown,
}))  # fmt: skip
