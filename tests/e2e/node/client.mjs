// Drives an unmodified OpenAI client against a suite and prints what it saw as one JSON object.
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: `${process.env.KALA_URL}/v1`, apiKey: process.env.KALA_API_KEY, maxRetries: 0 });
const question = [{ role: "user", content: "What is machine learning?" }];
const harmful = [{ role: "user", content: process.env.HARMFUL }];

async function errorOf(action) {
  try {
    await action();
    return null;
  } catch (error) {
    return { name: error.constructor.name, status: error.status, code: error.code };
  }
}

const { data: plain, response } = await client.chat.completions
  .create({ model: "auto", messages: question })
  .withResponse();
const stream = await client.chat.completions.create({
  model: "auto", messages: question, stream: true, stream_options: { include_usage: true },
});
const streamed = { text: "", usage: null, kala: null };
for await (const chunk of stream) {
  streamed.text += chunk.choices[0]?.delta?.content ?? "";
  streamed.usage = chunk.usage ?? streamed.usage;
  streamed.kala = chunk.kala ?? streamed.kala;
}
const refused = await client.chat.completions.create({ model: "auto", messages: harmful });
const moderation = await client.moderations.create({ input: [question[0].content, process.env.HARMFUL] });
const models = [];
for await (const model of client.models.list()) models.push(model.id);
const stranger = new OpenAI({ baseURL: `${process.env.KALA_URL}/v1`, apiKey: "kala_wrong", maxRetries: 0 });

const created = await client.responses.create({ model: "auto", input: question[0].content });
const stored = await client.responses.retrieve(created.id);
let spoken = "";
for await (const event of await client.responses.create({ model: "auto", input: question[0].content, stream: true })) {
  if (event.type === "response.output_text.delta") spoken += event.delta;
}
await client.responses.delete(created.id);
const gone = await errorOf(() => client.responses.retrieve(created.id));

const file = await client.files.create({ file: await toFile(Buffer.from("{}\n"), "in.jsonl"), purpose: "batch" });
const content = await (await client.files.content(file.id)).text();
const batch = await client.batches.create({
  input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h",
});
const cancelled = await client.batches.cancel(batch.id).catch((error) => error);
const tuning = [];
for await (const job of client.fineTuning.jobs.list()) tuning.push(job.id);

console.log(JSON.stringify({
  plain: { text: plain.choices[0].message.content, finish: plain.choices[0].finish_reason, usage: plain.usage },
  receipt: response.headers.get("x-kala-receipt"),
  streamed,
  refused: { finish: refused.choices[0].finish_reason, outcome: refused.kala.decision.outcome },
  moderated: {
    flagged: moderation.results.map((result) => result.flagged),
    law: moderation.results[1].categories["law_1"],
  },
  models,
  unauthenticated: await errorOf(() => stranger.chat.completions.create({ model: "auto", messages: question })),
  unknownModel: await errorOf(() => client.chat.completions.create({ model: "no-such-model", messages: question })),
  response: { text: created.output_text, stored: stored.output_text, streamed: spoken, gone },
  file: {
    purpose: file.purpose, content, batch: batch.status,
    cancelled: ["cancelling", "cancelled", "failed"].includes(cancelled.status) || cancelled.status === 409,
  },
  tuning,
  invalid: await errorOf(() => client.chat.completions.create({ model: "auto", messages: question, max_tokens: -1 })),
}));
