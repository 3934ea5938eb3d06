"""litellm as a client, unmodified: prints what it saw as one JSON object. The backend calls `stock` once."""

import asyncio
import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # prices are read on import, else from the network
import litellm

litellm.suppress_debug_info = True
litellm.telemetry = False
WHERE = {
    "api_base": os.environ["KALA_URL"] + "/v1", "api_key": os.environ["KALA_API_KEY"], "num_retries": 0, "max_retries": 0,
}  # fmt: skip
QUESTION = [{"role": "user", "content": "What is machine learning?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "stock",
        "description": "How many of an article are in stock",
        "parameters": {
            "type": "object",
            "properties": {"article": {"type": "string"}},
            "required": ["article"],
        },
    },
}


def error_of(**changes: object) -> str:
    try:
        litellm.completion(**{"model": "openai/auto", "messages": QUESTION, **WHERE, **changes})
    except Exception as error:
        return type(error).__name__
    return ""


plain = litellm.completion(model="openai/auto", messages=QUESTION, **WHERE)
chunks = litellm.completion(model="openai/auto", messages=QUESTION, stream=True, **WHERE)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
later = asyncio.run(litellm.acompletion(model="openai/auto", messages=QUESTION, **WHERE))
called = litellm.completion(
    model="openai/auto",
    messages=[{"role": "user", "content": "How many bolts are in stock?"}],
    tools=[TOOL],
    **WHERE,
)
call = called.choices[0].message.tool_calls[0].function
refused = litellm.completion(
    model="openai/auto", messages=[{"role": "user", "content": os.environ["HARMFUL"]}], **WHERE
)
response = litellm.responses(model="openai/auto", input="What is machine learning?", **WHERE)

print(json.dumps({
    "plain": plain.choices[0].message.content, "tokens": plain.usage.completion_tokens, "streamed": streamed,
    "later": later.choices[0].message.content, "called": [call.name, json.loads(call.arguments)],
    "refused": refused.choices[0].finish_reason,
    "response": "".join(part.text for item in response.output if item.type == "message" for part in item.content),
    "unknown": error_of(model="openai/no-such-model"), "unauthenticated": error_of(api_key="kala_wrong"),
    "invalid": error_of(max_tokens=-1),
}))  # fmt: skip
