// The list of streams: a page at a time from the service, so that ten thousand cost as much as fifty; a search runs there
// as well. What is shown is asked again while it is seen.

import { ask } from "./api.js";
import { bars, command, empty, make, panel } from "./elements.js";
import { bits, clock, count, moment, ms } from "./format.js";

const PAGE = 50;
const TYPING = 250;

/** The panel, `reload` with an overview to begin anew, `refresh` to ask again for what is shown; `listed` hears what that is. */
export function streams(signal, listed) {
  const search = make("input", { type: "search", id: "search", placeholder: "Search streams", "aria-label": "Search streams", autocomplete: "off", spellcheck: "false" });
  const body = make("tbody");
  const table = make("table", { class: "streams" },
    make("caption", { class: "hidden", text: "Streams with the surprise of their last rows" }),
    make("thead", {}, make("tr", {},
      make("th", { scope: "col", text: "Stream" }),
      make("th", { scope: "col", class: "wide", text: "Recent surprise" }),
      make("th", { scope: "col", class: "right", text: "Last" }),
      make("th", { scope: "col", class: "right some", text: "Newest row (UTC)" }),
      make("th", { scope: "col", class: "right some", text: "Seen" }),
      make("th", { scope: "col", class: "some", text: "State" }))), body);
  const nothing = make("div");
  const back = make("button", { type: "button", text: "← Before", disabled: true });
  const forth = make("button", { type: "button", text: "After →", disabled: true });
  const place = make("span", { class: "muted" });
  const pages = make("nav", { class: "pages", "aria-label": "Pages of streams" }, back, place, forth);
  const box = panel("Streams", { class: "list", note: search }, make("div", { class: "scroll" }, table), nothing, pages);

  let overview = null;
  let trail = [""]; // where each page up to this one begins
  let next = null;
  let asked = 0;

  async function refresh() {
    if (overview === null) return;
    const mine = (asked += 1);
    const query = new URLSearchParams({ after: trail.at(-1), limit: PAGE, contains: search.value.trim() });
    const found = await ask(`/v1/overview/streams?${query}`, signal).catch((error) => {
      if (signal.aborted || error.status !== undefined) return null;
      throw error;
    });
    if (found === null || mine !== asked) return;
    next = found.next;
    show(found.streams);
    listed(found.streams, overview);
  }

  function show(found) {
    const focused = document.activeElement?.closest?.("tbody") === body ? document.activeElement.textContent : null;
    body.replaceChildren(...found.map((one) => row(one, overview)));
    if (focused !== null) [...body.querySelectorAll("a")].find((link) => link.textContent === focused)?.focus();
    table.hidden = found.length === 0;
    nothing.replaceChildren(...(found.length ? [] : [reason()]));
    back.disabled = trail.length === 1;
    forth.disabled = next === null;
    pages.hidden = back.disabled && forth.disabled;
    place.textContent = `Page ${trail.length}`;
  }

  function reason() {
    if (search.value.trim()) return empty(next === null ? "No stream has that in its name." : "None among these; go on with After.");
    if (trail.length > 1) return empty("There are no more.");
    return empty("No stream yet. Send a row, and it begins:", command(example(overview)));
  }

  function anew() {
    trail = [""];
    return refresh();
  }

  let typing;
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(anew, TYPING);
  });
  back.addEventListener("click", () => {
    trail.pop();
    refresh();
  });
  forth.addEventListener("click", () => {
    trail.push(next);
    refresh();
  });
  return { panel: box, refresh, reload: (found) => ((overview = found), refresh()) };
}

/** The address of a stream's page. */
export const address = (stream) => `#/stream/${encodeURIComponent(stream)}`;

function row({ stream, aside, hot, observations, time, surprise }, { alert_bits: alert }) {
  const last = surprise.findLast((value) => value !== null) ?? null;
  const worst = surprise.filter((value) => value !== null && value >= alert).length;
  const label = worst ? `${worst} of the last ${surprise.length} rows alarm` : `none of the last ${surprise.length} rows alarms`;
  return make("tr", { class: aside ? "bad" : null },
    make("th", { scope: "row" }, make("a", { href: address(stream), text: stream })),
    make("td", { class: "wide" }, surprise.length ? make("span", { role: "img", "aria-label": label }, bars(surprise, alert)) : make("span", { class: "muted", text: "no row at hand" })),
    make("td", { class: `right number ${last !== null && last >= alert ? "alarm" : ""}`, text: aside ? "set aside" : last === null ? "–" : bits(last) }),
    make("td", { class: "right number some", text: time === null ? "–" : clock(ms(time)), title: time === null ? null : moment(ms(time)) }),
    make("td", { class: "right number some", text: observations === null ? "–" : count(observations) }),
    make("td", { class: "some" }, make("span", { class: `tag ${aside ? "tag-bad" : hot ? "tag-hot" : "tag-cold"}`, text: aside ? "set aside" : hot ? "in memory" : "cold", title: aside })));
}

function example({ model, role, tenant }) {
  const values = Object.fromEntries(model.channels.slice(0, 3).map((name, at) => [name, 20 + at]));
  const time = `${new Date().toISOString().slice(0, 19)}Z`;
  const body = JSON.stringify({ stream: "first/1", time, values }).replaceAll("'", "'\\''");
  const key = role === "admin" && !tenant && !sessionStorage.getItem("tsgdn2.key") ? "" : `  -H "Authorization: Bearer $KEY" \\\n`;
  return `curl ${location.origin}/v1/observe \\\n${key}  -H 'Content-Type: application/json' \\\n  -d '${body}'`;
}
