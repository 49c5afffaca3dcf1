// What happened: alerts as they come, and the newest entries of the ledger. Both begin with what the ledger holds, and are
// short lists, so that a storm of alerts is a number and not a page that grows.

import { ask } from "./api.js";
import { choice, empty, make, panel } from "./elements.js";
import { bits, clock, count, moment, ms, number } from "./format.js";
import { address } from "./streams.js";

const SHOWN = 40;
const DRAWN_MS = 250;
const KINDS = [["all", "All"], ["sessions", "Sessions"], ["memory", "Memory"], ["trouble", "Trouble"]];
const GROUPS = {
  sessions: ["evicted", "reloaded", "expired", "deleted", "imported"],
  memory: ["forgotten"],
  trouble: ["poisoned", "corrupt", "damaged", "late", "reopened", "recovered"],
};
GROUPS.all = Object.values(GROUPS).flat(); // alerts have a list of their own
const TOLD = {
  evicted: "left memory, its state is stored", reloaded: "came back into memory", expired: "was not used for its time to live",
  deleted: "was deleted", imported: "was put in from elsewhere", poisoned: "is set aside, its state is not finite",
  recovered: "was recovered", corrupt: "was damaged in the store", late: "had rows that came too late",
  reopened: "was opened after an unclean end", forgotten: "forgot a write", alert: "surprised the model",
};

/** Alerts: `add` one as it comes, `refresh` from the ledger, `limit` says from how many bits on. */
export function alerts(signal) {
  const list = make("ol", { class: "feed", role: "log", "aria-live": "off" });
  const total = make("span", { class: "muted" });
  const box = panel("Alerts", { class: "alerts", note: total }, list);
  const found = new Map();
  let heard = 0;
  let from = null;
  let drawing = null;

  const add = ({ stream, time, channel, surprise }) => {
    heard += 1;
    put({ stream, channel, at: ms(time), surprise });
  };

  function put(one) {
    const key = JSON.stringify([one.stream, one.channel, one.at]);
    found.delete(key);
    found.set(key, one);
    if (found.size > SHOWN) found.delete(found.keys().next().value);
    drawing ??= setTimeout(show, DRAWN_MS);
  }

  function show() {
    drawing = null;
    const items = [...found.values()].reverse().map((one) => make("li", { class: "alert" },
      make("span", { class: "alert-bits number", text: bits(one.surprise) }),
      make("span", { class: "feed-what" }, make("a", { href: address(one.stream), text: one.stream }), make("span", { class: "muted", text: ` ${one.channel}` })),
      make("time", { class: "number muted", text: clock(one.at), title: `${moment(one.at)} UTC` })));
    list.replaceChildren(...items);
    total.textContent = heard ? `${count(heard)} since you came` : "";
    if (!items.length) list.replaceChildren(make("li", {}, empty(`No alert. A value of ${from ?? "…"} bits or more under the last forecast comes here at once.`)));
  }

  async function refresh() {
    const answer = await newest(signal, { kind: ["alert"], limit: SHOWN });
    for (const entry of (answer?.entries ?? []).filter((one) => Number.isFinite(one.facts.bits)).reverse()) {
      put({ stream: entry.stream, channel: String(entry.facts.channel ?? ""), at: when(entry), surprise: Number(entry.facts.bits) });
    }
    drawing ??= setTimeout(show, DRAWN_MS);
  }

  return { panel: box, add, refresh, limit: (alert) => from !== alert && ((from = alert), show()) };
}

/** The newest entries of the ledger, of one stream where it is named: the panel, and `refresh`. */
export function history(signal, stream = null) {
  let group = "all";
  const list = make("ol", { class: "feed" });
  const box = panel("Ledger", { class: "ledger", note: choice("Kinds of entries", KINDS, group, (chosen) => ((group = chosen), refresh())) }, list);

  async function refresh() {
    const asked = group;
    const answer = await newest(signal, { kind: GROUPS[asked], limit: SHOWN, stream });
    if (answer === null || asked !== group) return;
    list.replaceChildren(...answer.entries.map((entry) => item(entry, stream === null)));
    if (!answer.entries.length) list.append(make("li", {}, empty(asked === "all" ? "Nothing yet: evictions, reloads, deletions and faults are written here." : "Nothing of this kind lately.")));
  }

  return { panel: box, refresh };
}

/** A page of the ledger, newest first; null where it could not be had. */
export async function newest(signal, { kind = [], limit, stream = null, before = null }) {
  const query = new URLSearchParams({ limit });
  for (const one of kind) query.append("kind", one);
  if (stream !== null) query.set("stream", stream);
  if (before !== null) query.set("before", before);
  try {
    return await ask(`/v1/ledger/newest?${query}`, signal);
  } catch (error) {
    if (signal.aborted || error.status !== undefined) return null;
    throw error;
  }
}

/** When what an alert speaks of was, in milliseconds: `at` is the row's own time. */
export const when = (entry) => ms(typeof entry.facts.at === "number" ? entry.facts.at : entry.time);

function item(entry, named) {
  const cause = entry.facts.cause;
  const facts = Object.entries(entry.facts).filter(([, value]) => value !== null);
  const all = facts.map(([name, value]) => `${name} ${typeof value === "number" ? number(value) : value}`).join(", ");
  const told = TOLD[entry.kind] ?? "";
  return make("li", { title: all },
    make("span", { class: `tag tag-${entry.kind}`, text: cause ? `${entry.kind}: ${cause}` : entry.kind }),
    make("span", { class: "feed-what" },
      named && entry.stream ? make("a", { href: address(entry.stream), text: entry.stream }) : make("span", { text: named ? "service" : "" }),
      make("span", { class: "muted", text: ` ${entry.facts.channel ?? told}` })),
    make("time", { class: "number muted", text: clock(ms(entry.time)), title: `${moment(ms(entry.time))} UTC` }));
}
