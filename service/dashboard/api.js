// What is asked of the service: JSON with the reader's key, one question for the key however many requests need it.
// The key is in this tab's sessionStorage and in no address.

const KEPT = "tsgdn2.key";
let asking = null;

/** An answer that is no success, or none at all (status 0). */
export class Refusal extends Error {
  constructor(status, detail, remedy, retryAfter) {
    super(detail);
    this.status = status;
    this.remedy = remedy;
    this.retryAfter = retryAfter;
  }
}

/** The headers of every request. */
export function headers() {
  const key = sessionStorage.getItem(KEPT);
  return key === null ? {} : { Authorization: `Bearer ${key}` };
}

/** JSON of a path. Refusal; the reader is asked for a key where there is none that is good. */
export async function ask(path, signal) {
  for (;;) {
    const used = sessionStorage.getItem(KEPT);
    const answer = await reached(path, signal);
    if (answer.ok) return answer.json();
    if (answer.status !== 401) throw await refusal(answer);
    await wanted(used, await refusal(answer));
    signal?.throwIfAborted();
  }
}

/** The answer to a request, whatever it is. Refusal where there was none. */
export async function reached(path, signal) {
  try {
    return await fetch(path, { headers: headers(), signal, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refusal(0, "The service does not answer.", "Is it running?", null);
  }
}

/** What an answer that is no success says. */
export async function refusal(answer) {
  const body = await answer.json().catch(() => ({}));
  const detail = body.detail ?? `The service answered ${answer.status}.`;
  return new Refusal(answer.status, detail, body.what_to_do ?? "", body.retry_after ?? null);
}

/** Wait until there is another key than the one that was refused. */
export async function wanted(used, why) {
  if (sessionStorage.getItem(KEPT) !== used) return;
  asking ??= question(used === null ? "" : why.message);
  try {
    await asking;
  } finally {
    asking = null;
  }
}

function question(problem) {
  const dialog = document.getElementById("key");
  const form = document.getElementById("key-form");
  const text = document.getElementById("key-text");
  document.getElementById("key-problem").textContent = problem && `That key was refused: ${problem}`;
  text.value = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((answered) => {
    const stay = (event) => event.preventDefault(); // there is nothing behind the question
    dialog.addEventListener("cancel", stay);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const given = text.value.trim();
      text.value = "";
      if (!given) return;
      sessionStorage.setItem(KEPT, given);
      dialog.removeEventListener("cancel", stay);
      dialog.close();
      document.getElementById("forget-key").hidden = false;
      answered();
    }, { once: true });
  });
}

/** The button that forgets the key. */
export function keyButton(button) {
  button.hidden = sessionStorage.getItem(KEPT) === null;
  button.addEventListener("click", () => {
    sessionStorage.removeItem(KEPT);
    location.reload();
  });
}
