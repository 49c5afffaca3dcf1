// The front page: the service in six figures, its streams, what alarmed lately, and what became of streams.

import { ask } from "./api.js";
import { draw, make } from "./elements.js";
import { alerts, history } from "./feed.js";
import { count } from "./format.js";
import { every, listen } from "./live.js";
import { spotlight } from "./spotlight.js";
import { streams } from "./streams.js";

const POLL_S = 2;
const RATES = 60;
const DONE = ["new", "missing", "duplicate", "replaced", "filled", "late", "held", "replayed"];

/** Show it in `main` until the context's signal aborts. */
export function openFront(main, { signal, state }) {
  document.title = "tsgdn2: all streams";
  const strip = make("dl", { class: "strip", "aria-label": "The service now" });
  const trouble = make("p", { class: "problem banner", role: "alert", hidden: true });
  const light = spotlight(signal);
  const list = streams(signal, (found, overview) => light.begin(found, overview));
  const alarms = alerts(signal);
  const ledger = history(signal);
  main.append(
    make("h1", { class: "hidden", text: "All streams" }), trouble, strip,
    make("div", { class: "front" }, make("div", { class: "column" }, list.panel, light.panel), make("div", { class: "column" }, alarms.panel, ledger.panel)),
  );
  const rates = rate();
  let known = null;
  let live = false;

  async function look() {
    try {
      const found = await ask("/v1/overview", signal);
      trouble.hidden = true;
      figures(strip, found, rates(found));
      if (known === null || known !== found.streams) list.reload(found);
      known = found.streams;
      alarms.limit(found.alert_bits);
      if (!live) {
        live = true;
        listening();
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === undefined) throw error;
      trouble.hidden = false;
      trouble.textContent = `${error.message} ${error.remedy ?? ""}`;
      if (!live) state({ state: "waiting", until: Date.now() + 2e3, why: error.message });
      throw error;
    }
  }

  function listening() {
    listen("kind=alert", {
      open: () => {
        list.refresh();
        alarms.refresh();
        ledger.refresh();
      },
      alert: (facts) => alarms.add(facts),
    }, state, signal);
  }

  every(POLL_S, look, signal);
  every(2 * POLL_S, () => (live ? list.refresh() : null), signal);
  every(2.5 * POLL_S, () => (live ? ledger.refresh() : null), signal);
}

/** Rows a second between one answer and the next, and those of the last minutes. */
function rate() {
  let before = null;
  const past = [];
  return ({ service, now }) => {
    if (service === null) return null;
    const rows = DONE.reduce((sum, name) => sum + (service.rows[name] ?? 0), 0);
    const at = now / 1e9;
    if (before !== null && rows >= before.rows && at > before.at) {
      past.push((rows - before.rows) / (at - before.at));
      if (past.length > RATES) past.shift();
    } else past.length = 0; // the service has begun anew
    before = { rows, at };
    return { rows, past };
  };
}

function figures(strip, { service, streams: kept, streams_more: more, aside, alert_bits: limit, tenant, model }, rates) {
  const all = [];
  if (service !== null) {
    const last = rates.past.at(-1);
    all.push(figure("Rows per second", last === undefined ? "…" : count(Math.round(10 * last) / 10), `${count(rates.rows)} since the start`, spark(rates.past)));
    all.push(figure("Rows waiting", count(service.queue_rows), `of ${count(service.queue_limit)}`, meter(service.queue_rows / service.queue_limit, "Queue")));
    all.push(figure("Streams in memory", count(service.hot), `of ${count(service.hot_limit)} that fit`, meter(service.hot / service.hot_limit, "Memory")));
  }
  const cold = service === null ? null : Math.max(kept - service.hot - aside, 0);
  all.push(figure("Streams kept", `${count(kept)}${more ? "+" : ""}`, cold === null ? `of ${tenant}` : `${count(cold)}${more ? "+" : ""} of them cold`));
  all.push(figure("Set aside", count(aside), aside ? "not sound, refused" : "all states are sound", null, aside ? "bad" : ""));
  if (service !== null) {
    const up = service.connectors.filter((one) => one.connected).length;
    const troubled = service.connectors.filter((one) => !one.connected && one.last_error);
    all.push(service.connectors.length === 0
      ? figure("Connectors", "0", "rows come over HTTP")
      : figure("Connectors", `${up} / ${service.connectors.length}`, troubled.length ? `${troubled[0].name}: ${troubled[0].last_error}` : service.connectors.map((one) => one.name).join(", "), null, troubled.length ? "bad" : ""));
  } else {
    all.push(figure("Forecast", `${model.horizon} steps`, `${model.channels.length} channels; alerts from ${limit} bits`));
  }
  strip.replaceChildren(...all);
}

function figure(name, value, note, picture = null, kind = "") {
  return make("div", { class: `figure ${kind}` },
    make("dt", { text: name }),
    make("dd", {}, make("span", { class: "figure-value", text: value }), make("span", { class: "figure-note", text: note, title: note }), picture));
}

function meter(share, label) {
  const part = Math.min(Math.max(share, 0), 1);
  return make("span", { class: "meter", role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(100 * part), vars: { "--share": `${(100 * part).toFixed(1)}%` } });
}

function spark(values, width = 160, height = 22) {
  const svg = draw("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  if (values.length < 2) return svg;
  const top = Math.max(...values, 1e-9);
  const step = width / (Math.max(values.length, 8) - 1);
  const x = (at) => (width - (values.length - 1 - at) * step).toFixed(1);
  const y = (value) => (height - 2 - (value / top) * (height - 4)).toFixed(1);
  const line = values.map((value, at) => `${x(at)} ${y(value)}`).join("L");
  svg.append(draw("path", { class: "spark-fill", d: `M${x(0)} ${height}L${line}L${width} ${height}Z` }), draw("path", { class: "spark-line", d: `M${line}` }));
  return svg;
}
