// The dashboard: which view is open, and whether the service is heard. #/ is all streams, #/stream/<name> is one of them.

import { keyButton } from "./api.js";
import { make } from "./elements.js";
import { openFront } from "./front.js";
import { openStream } from "./stream.js";
import { themeButton } from "./theme.js";

const main = document.getElementById("main");
const pill = document.getElementById("connection");
let leave = new AbortController();
let now = { state: "connecting" };

function shown() {
  pill.dataset.state = now.state;
  if (now.state === "live") pill.replaceChildren(make("span", { text: "Live" }));
  else if (now.state === "connecting") pill.replaceChildren(make("span", { text: "Connecting…" }));
  else {
    const left = Math.max(0, Math.ceil((now.until - Date.now()) / 1e3));
    const hurry = make("button", { type: "button", class: "link", text: "Now", "aria-label": "Connect again now" });
    hurry.addEventListener("click", () => window.dispatchEvent(new Event("tsgdn2-hurry")));
    pill.replaceChildren(make("span", { text: `Disconnected, again in ${left} s` }), hurry);
    pill.title = now.why;
  }
}

function state(found) {
  now = found;
  pill.title = "";
  shown();
}

function route() {
  leave.abort();
  leave = new AbortController();
  const [, view, name] = location.hash.split("/");
  const context = { signal: leave.signal, state };
  main.replaceChildren();
  window.scrollTo(0, 0);
  if (view === "stream" && name) openStream(main, decoded(name), context);
  else openFront(main, context);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // an address that somebody wrote by hand
  }
}

Bokeh.set_log_level("error");
themeButton(document.getElementById("theme"));
keyButton(document.getElementById("forget-key"));
shown();
setInterval(() => now.state === "waiting" && shown(), 1000);
window.addEventListener("hashchange", route);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
route();
