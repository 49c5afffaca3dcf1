// One stream: its channels live, its state, what it has lost, and what the ledger says of it. Events say when there is
// something new, so a stream that is silent costs nothing.

import { ask } from "./api.js";
import { Channels } from "./channels.js";
import { choice, empty, make, panel } from "./elements.js";
import { history } from "./feed.js";
import { bytes, count, moment, ms } from "./format.js";
import { every } from "./live.js";
import { readings } from "./readings.js";
import { follow } from "./watch.js";

const ROWS = 1_000;
const SLOW_S = 5;
const STEPS = [[48, "48 steps"], [96, "96"], [240, "240"], [1_000, "All"]];

/** Show a stream in `main` until the context's signal aborts. */
export async function openStream(main, stream, { signal, state }) {
  document.title = `${stream}, tsgdn2`;
  const facts = make("dl", { class: "facts" });
  const trouble = make("div", { hidden: true });
  const body = make("div", { class: "stream", hidden: true });
  main.append(
    make("nav", { class: "crumbs", "aria-label": "Where this is" }, make("a", { href: "#/", text: "← All streams" })),
    make("h1", { class: "stream-name", text: stream }), facts, trouble, body,
  );
  const path = `/v1/streams/${encodeURIComponent(stream)}`;

  const overview = await patiently(() => ask("/v1/overview", signal), state, signal);
  if (overview === null) return;
  const { model, alert_bits: limit } = overview;
  const told = make("span", { class: "number", role: "status", "aria-live": "off" });
  const grid = make("div", { class: "channels" });
  const strip = make("div", { class: "chart" });
  let before = null;
  let built = false;
  const series = follow(stream, { model, rows: ROWS, state, signal }, {
    drawn: (added) => built && channels.update(added),
    begun: () => {
      body.hidden = false;
      trouble.hidden = true;
      if (!built) channels.build();
      built = true;
      before = series.last;
      quietly(look());
    },
    trouble: (error) => {
      trouble.hidden = false;
      quietly(ledger.refresh());
      trouble.replaceChildren(error.status === 404
        ? empty("There is no such stream. It may have been deleted, or not have begun; its page opens when a row of it comes.")
        : make("div", { class: "problem banner", role: "alert" }, make("p", { text: error.message }), make("p", { class: "muted", text: error.remedy })));
    },
  });
  const channels = new Channels(series, { grid, strip, told, limit, signal });
  const state_ = readings(stream, { model, signal });
  const ledger = history(signal, stream);
  body.append(
    panel("Live", { class: "live", note: make("div", { class: "tools" }, told, choice("Steps of the past", STEPS, channels.steps, (steps) => channels.show(steps))) },
      legend(model.levels, limit), grid, make("h3", { class: "strip-title", text: "Surprise" }), scale(limit), strip),
    make("div", { class: "halves" }, ...state_.panels.slice(0, 2)), state_.panels[2],
  );
  main.append(ledger.panel);

  async function look() {
    const [found] = await Promise.all([ask(`${path}/state`, signal), state_.refresh(), ledger.refresh()]);
    const many = found.counters;
    facts.replaceChildren(...[
      ["Newest step", `${moment(ms(found.clock))} UTC`], ["Observations", count(many.observations)], ["Late", count(many.late)],
      ["Replaced", count(many.replaced)], ["Duplicates", count(many.duplicates)], ["Replays", count(many.replays)],
      ["State", bytes(found.state_bytes)], ["Audit", bytes(found.audit_bytes)],
    ].map(([name, value]) => make("div", {}, make("dt", { text: name }), make("dd", { class: "number", text: value }))));
  }

  every(SLOW_S, async () => {
    if (body.hidden || series.last === before) return;
    before = series.last;
    await look();
  }, signal);

  async function quietly(work) {
    try {
      await work;
    } catch (error) {
      if (!signal.aborted && error.status === undefined) throw error;
    }
  }
}

/** Ask until there is an answer; null where the view was left. */
async function patiently(question, state, signal) {
  for (let wait = 1; !signal.aborted; wait = Math.min(2 * wait, 15)) {
    try {
      return await question();
    } catch (error) {
      if (signal.aborted) return null;
      if (error.status === undefined) throw error;
      state({ state: "waiting", until: Date.now() + 1e3 * wait, why: error.message });
      await new Promise((over) => setTimeout(over, 1e3 * wait));
    }
  }
  return null;
}

function legend(levels, limit) {
  const widest = Math.round(100 * (levels.at(-1) - levels[0]));
  return make("p", { class: "legend" },
    make("span", {}, make("i", { class: "sign sign-observed", "aria-hidden": "true" }), "observed"),
    make("span", {}, make("i", { class: "sign sign-median", "aria-hidden": "true" }), "median of the forecast"),
    make("span", {}, make("i", { class: "sign sign-band", "aria-hidden": "true" }), `its bands, the widest holds ${widest} %`),
    make("span", {}, make("i", { class: "sign sign-alert", "aria-hidden": "true" }), `alert: ${limit} bits or more`));
}

function scale(limit) {
  return make("p", { class: "legend" },
    make("span", { class: "number", text: "0" }), make("i", { class: "ramp", role: "img", "aria-label": "from faint to strong" }), make("span", { class: "number", text: `${limit} bits` }),
    make("span", { class: "muted", text: "0: at the median. 10: one value in a thousand is as strange." }));
}
