// Asks the server; what it refuses becomes an Error with its words.

export async function get(path, parameters = {}) {
  return answer(await fetch(`${path}?${new URLSearchParams(parameters)}`));
}

export async function post(path, body, signal) {
  return answer(await send(path, body, signal));
}

// Calls `hear` with the JSON of each server-sent event of a reply.
export async function stream(path, body, hear, signal) {
  const reply = await send(path, body, signal);
  if (!reply.ok) await answer(reply);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const frames = (rest + value).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) if (frame.startsWith("data: ")) hear(JSON.parse(frame.slice(6)));
  }
}

function send(path, body, signal) {
  const headers = { "content-type": "application/json" };
  return fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

async function answer(reply) {
  let found;
  try {
    found = await reply.json();
  } catch {
    throw new Error(`the server answered ${reply.status}`);
  }
  if (!reply.ok) throw new Error(found?.error?.message ?? `the server answered ${reply.status}`);
  return found;
}

// Runs `action`, and shows in `place` what went wrong.
export async function trying(place, action) {
  place.textContent = "";
  try {
    return await action();
  } catch (error) {
    if (error.name !== "AbortError") place.textContent = error.message;
    return null;
  }
}
