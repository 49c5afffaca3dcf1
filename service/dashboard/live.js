// Events of the service as they come, read with fetch, because an EventSource can not send a key. A connection that ends,
// is refused or falls silent is made anew, after 1, 2, 4 .. 30 seconds, and the page says so all the while.

import { reached, refusal, wanted } from "./api.js";

const FIRST = 1;
const LONGEST = 30;
const SILENT = 40e3; // the service says something every 15 seconds

/**
 * Listen until the signal aborts. on: {kind: heard}, and `open` each time a connection stands: whatever came in between
 * has been missed, so ask for it then. state hears {state: "connecting" | "live" | "waiting", until, why}.
 */
export async function listen(query, on, state, signal) {
  let wait = FIRST;
  while (!signal.aborted) {
    let why = "The connection ended.";
    state({ state: "connecting" });
    try {
      const used = sessionStorage.getItem("tsgdn2.key");
      const answer = await reached(`/v1/events?${query}`, signal);
      if (answer.status === 401) {
        await wanted(used, await refusal(answer));
        continue;
      }
      if (!answer.ok) throw await refusal(answer);
      state({ state: "live" });
      on.open();
      const began = Date.now();
      await read(answer.body, on, signal, (reason) => (why = reason));
      if (Date.now() - began > 5e3) wait = FIRST;
    } catch (error) {
      if (signal.aborted) return;
      why = error.message;
      if (error.retryAfter) wait = Math.max(wait, error.retryAfter);
    }
    if (signal.aborted) return;
    const seconds = wait * (0.75 + Math.random() / 2);
    state({ state: "waiting", until: Date.now() + 1e3 * seconds, why });
    await pause(1e3 * seconds, signal);
    wait = Math.min(2 * wait, LONGEST);
  }
}

async function read(body, on, signal, ended) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await within(reader, SILENT);
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const lines = event.split("\n");
      const kind = lines.find((line) => line.startsWith("event: "))?.slice(7);
      const data = lines.find((line) => line.startsWith("data: "))?.slice(6);
      if (kind === undefined || data === undefined) continue;
      const facts = JSON.parse(data);
      if (kind === "ended") ended(`The service says: ${facts.reason}.`);
      if (!signal.aborted) on[kind]?.(facts);
    }
  }
}

function within(reader, most) {
  let timer;
  const silence = new Promise((_, fail) => {
    timer = setTimeout(() => {
      reader.cancel().catch(() => {});
      fail(new Error("The connection fell silent."));
    }, most);
  });
  return Promise.race([reader.read(), silence]).finally(() => clearTimeout(timer));
}

/** Wait; the browser coming online, or `hurry`, ends it early. */
export function pause(milliseconds, signal) {
  return new Promise((over) => {
    const end = () => {
      clearTimeout(timer);
      window.removeEventListener("online", end);
      window.removeEventListener("tsgdn2-hurry", end);
      signal.removeEventListener("abort", end);
      over();
    };
    const timer = setTimeout(end, milliseconds);
    window.addEventListener("online", end);
    window.addEventListener("tsgdn2-hurry", end);
    signal.addEventListener("abort", end);
  });
}

/** Do something now and every so many seconds while the page is seen; after a failure it waits longer. */
export async function every(seconds, job, signal) {
  let failures = 0;
  while (!signal.aborted) {
    if (!document.hidden) {
      try {
        await job();
        failures = 0;
      } catch (error) {
        if (signal.aborted) return;
        if (!(error instanceof Error) || error.status === undefined) throw error;
        failures += 1;
      }
    }
    await pause(1e3 * Math.min(seconds * 2 ** failures, LONGEST), signal);
  }
}
