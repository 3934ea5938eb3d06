// Drives an unmodified Vercel AI SDK against a suite and prints what it saw as one JSON object.
// The backend calls `stock` once over chat completions and once over responses.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const where = { baseURL: `${process.env.KALA_URL}/v1`, apiKey: process.env.KALA_API_KEY };
const compatible = createOpenAICompatible({ name: "kala", ...where, includeUsage: true });
const openai = createOpenAI(where);
const question = "What is machine learning?";
const stock = tool({
  description: "How many of an article are in stock",
  inputSchema: z.object({ article: z.string() }),
  execute: async ({ article }) => ({ bolts: 120 })[article] ?? 0,
});

async function over(model) {
  const plain = await generateText({ model, prompt: question, maxRetries: 0 });
  const stream = streamText({ model, prompt: question, maxRetries: 0 });
  let streamed = "";
  for await (const piece of stream.textStream) streamed += piece;
  const looped = await generateText({
    model, prompt: "How many bolts are in stock? Use the tool.", tools: { stock }, stopWhen: stepCountIs(3), maxRetries: 0,
  });
  return {
    plain: plain.text, finish: plain.finishReason, tokens: plain.usage.outputTokens, streamed,
    tool: looped.steps[0].toolResults.map((result) => result.output), after: looped.text,
  };
}

async function errorOf(model) {
  try {
    await generateText({ model, prompt: question, maxRetries: 0 });
    return null;
  } catch (error) {
    return APICallError.isInstance(error) ? error.statusCode : String(error);
  }
}

const refused = await generateText({ model: compatible("auto"), prompt: process.env.HARMFUL, maxRetries: 0 });
console.log(JSON.stringify({
  chat: await over(compatible("auto")),
  responses: await over(openai.responses("auto")),
  refused: refused.finishReason,
  unknown: await errorOf(compatible("no-such-model")),
}));
