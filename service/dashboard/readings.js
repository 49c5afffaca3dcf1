// What the state of a stream keeps and what it has lost: occupancy and half-life of each audited head, and the writes that
// were forgotten, with their causes. Read when the page opens and then every few seconds, as it moves with whole patches.

import { ask } from "./api.js";
import { figure, marked, mount, source, times } from "./charts.js";
import { empty, make, panel } from "./elements.js";
import { newest } from "./feed.js";
import { count, moment, ms, number, span } from "./format.js";
import { onTheme, tokens } from "./theme.js";

const SHOWN = 200;
const LISTED = 10;
const CAUSES = { decay: ["circle", "faded with time"], erase: ["square", "was overwritten by later writes"] };

/** The panels, and `refresh`. */
export function readings(stream, { model, signal }) {
  const period = model.period / 1e6;
  const occupancy = make("div", { class: "scroll" });
  const lives = make("div", { class: "chart" });
  const gone = make("div", { class: "chart" });
  const table = make("div", { class: "scroll" });
  const legend = make("p", { class: "legend" });
  const panels = [
    panel("State occupancy", { class: "occupancy" }, make("p", { class: "muted", text: `Key directions in use, of ${model.key_dim}, and how many writes are retained in effect.` }), occupancy),
    panel("Half-lives", { class: "lives" }, make("p", { class: "muted", text: "Until half of what was written has been forgotten." }), lives),
    panel("Evictions", { class: "evictions" }, legend, make("div", { class: "evictions-parts" }, gone, table)),
  ];
  let heads = [];
  let evictions = [];
  let closers = [];
  let seen = "";
  let turn = 0;

  async function refresh() {
    const [audit, forgotten] = await Promise.all([
      ask(`/v1/audit/${encodeURIComponent(stream)}?limit=1`, signal),
      newest(signal, { kind: ["forgotten"], limit: SHOWN, stream }),
    ]);
    heads = headsOf(audit.readings);
    evictions = evictionsOf(audit.evictions, forgotten?.entries ?? [], period);
    const mark = JSON.stringify([heads, evictions.length, evictions[0]?.at]);
    if (mark === seen) return;
    seen = mark;
    occupancy.replaceChildren(audit.readings === null ? none() : occupied(heads, model.key_dim));
    table.replaceChildren(listed(evictions));
    legend.replaceChildren(...summary(evictions));
    await build();
  }

  async function build() {
    const mine = (turn += 1);
    for (const close of closers) close();
    closers = [];
    const made = await Promise.all([
      heads.length ? mount([lives], [livesFigure(heads, period)], [`Half-lives: ${heads.map((head) => `${head.name} ${span(head.half * period)}`).join(", ")}`]) : null,
      evictions.length ? mount([gone], [evictionsFigure(evictions)], [`${evictions.length} evictions by time and by how long the writes were kept`]) : null,
    ]);
    if (mine === turn) closers = made.filter((close) => close !== null);
    if (!heads.length) lives.replaceChildren(none());
    if (!evictions.length) gone.replaceChildren(empty("Nothing was forgotten of what the audit follows. A write that falls below the threshold comes here, with what took it."));
  }

  const stop = onTheme(build);
  signal.addEventListener("abort", () => {
    stop();
    for (const close of closers) close();
  });
  return { panels, refresh };
}

const none = () => empty("This model is served without an audit, so there is nothing to read of its state.");

function headsOf(found) {
  return Object.entries(found ?? {}).flatMap(([channel, slot]) => slot.heads.map((head) => ({
    channel, name: slot.heads.length > 1 ? `${channel} ${head.layer}.${head.head}` : channel, place: `${head.layer}.${head.head}`,
    directions: head.directions ?? 0, retained: head.retained ?? 0, half: head.half_life ?? Infinity, writes: slot.writes,
    lost: { decay: head.ledger?.decay ?? 0, erase: head.ledger?.erase ?? 0 },
  })));
}

/** Evictions of the ledger, whose times are nanoseconds, and those that wait in the audit, whose times are steps. */
function evictionsOf(waiting, told, period) {
  const all = [
    ...told.map((entry) => entry.facts).filter((one) => Number.isFinite(one.evicted)).map((one) => ({ ...one, at: ms(one.evicted), lived: ms(one.evicted - one.written), by: one.evictor ? ms(one.evictor) : null })),
    ...waiting.map((one) => ({ ...one, at: one.time * period, lived: (one.time - one.birth) * period, by: one.evictor >= 0 ? one.evictor_time * period : null })),
  ];
  return all.sort((a, b) => b.at - a.at).slice(0, SHOWN);
}

function occupied(heads, most) {
  const share = (value) => ({ "--share": `${Math.min(100, (100 * value) / most).toFixed(1)}%` });
  return make("table", { class: "occupied" },
    make("caption", { class: "hidden", text: "Occupancy of the state by channel and head" }),
    make("thead", {}, make("tr", {}, ["Channel", "Layer.head", "Directions", "Retained", "Writes", "Lost to decay / erase"].map((text, at) => make("th", { scope: "col", class: at > 2 ? "right" : null, text })))),
    make("tbody", {}, heads.map((head) => {
      const lost = head.lost.decay + head.lost.erase;
      return make("tr", {},
        make("th", { scope: "row", text: head.channel }), make("td", { class: "number", text: head.place }),
        make("td", {}, make("span", { class: "gauge", vars: share(head.directions) }, make("span", { class: "number", text: head.directions.toFixed(1) }))),
        make("td", { class: "right number", text: number(head.retained) }), make("td", { class: "right number", text: count(head.writes) }),
        make("td", { class: "right" }, lost > 0
          ? make("span", { class: "split", vars: { "--share": `${((100 * head.lost.decay) / lost).toFixed(1)}%` }, title: `${Math.round((100 * head.lost.decay) / lost)} % to decay, ${Math.round((100 * head.lost.erase) / lost)} % to erase`, role: "img", "aria-label": `${Math.round((100 * head.lost.decay) / lost)} % to decay` })
          : make("span", { class: "muted", text: "–" })));
    })));
}

function livesFigure(heads, period) {
  const ink = tokens();
  const finite = heads.map((head) => head.half * period).filter((half) => Number.isFinite(half) && half > 0);
  const low = Math.min(...finite, 4 * period) / 2;
  const high = Math.max(...finite, 16 * period) * 2;
  const names = heads.map((head) => head.name);
  const made = figure({ label: "half-lives", height: Math.max(90, names.length * 33.5 + 34), x_axis_type: "log", x_range: new Bokeh.Range1d({ start: low, end: high }), y_range: [...names].reverse(), left: 84 });
  marked(made, "below", 0, marks(low, high), span);
  made.left[0].setv({ major_label_text_color: ink.ink });
  made.center[1].grid_line_color = null;
  const at = (head) => (Number.isFinite(head.half) ? Math.max(head.half * period, low * 1.05) : high / 1.12);
  const ended = heads.filter((head) => Number.isFinite(head.half));
  const more = heads.filter((head) => !Number.isFinite(head.half));
  made.segment({ x0: { field: "low" }, y0: { field: "name" }, x1: { field: "x" }, y1: { field: "name" }, source: source({ low: heads.map(() => low), x: heads.map(at), name: names }), line_color: ink.band, line_width: 3, line_alpha: 0.45 });
  made.scatter({ x: { field: "x" }, y: { field: "name" }, source: source({ x: ended.map(at), name: ended.map((head) => head.name) }), marker: "circle", size: 10, fill_color: ink.band, line_color: ink.surface, line_width: 1.5 });
  made.scatter({ x: { field: "x" }, y: { field: "name" }, source: source({ x: more.map(at), name: more.map((head) => head.name) }), marker: "triangle", angle: -Math.PI / 2, size: 11, fill_color: ink.good, line_color: null });
  return made;
}

/** Round spans between two, about five of them. */
function marks(low, high) {
  const all = [1, 10, 60, 600, 3600, 6 * 3600, 86400, 4 * 86400, 16 * 86400, 64 * 86400, 365 * 86400].map((seconds) => 1e3 * seconds);
  return all.filter((one) => one >= low && one <= high);
}

function evictionsFigure(evictions) {
  const ink = tokens();
  const lives = evictions.map((one) => Math.max(one.lived, 1));
  const [low, high] = [Math.min(...lives) / 1.6, Math.max(...lives) * 1.6];
  const made = figure({ label: "evictions", height: 350, x_axis_type: "datetime", y_axis_type: "log", y_range: new Bokeh.Range1d({ start: low, end: high }), y_axis_label: "kept for", left: 64 });
  made.below[0].setv({ formatter: times() });
  marked(made, "left", 1, marks(low, high), span);
  for (const [cause, [marker]] of Object.entries(CAUSES)) {
    const mine = evictions.filter((one) => one.cause === cause);
    made.scatter({ x: { field: "x" }, y: { field: "y" }, source: source({ x: mine.map((one) => one.at), y: mine.map((one) => Math.max(one.lived, 1)) }), marker, size: 7, fill_color: ink[cause], fill_alpha: 0.65, line_color: ink.surface, line_width: 0.5 });
  }
  return made;
}

function summary(evictions) {
  return Object.entries(CAUSES).map(([cause, [, told]]) => make("span", {},
    make("i", { class: `sign sign-${cause}`, "aria-hidden": "true" }), make("b", { text: `${evictions.filter((one) => one.cause === cause).length} by ${cause}` }), make("span", { class: "muted", text: ` (${told})` })));
}

function listed(evictions) {
  if (!evictions.length) return "";
  const names = ["When (UTC)", "Channel", "Cause", "Kept for", "Overwritten by"];
  return make("table", {},
    make("caption", { class: "hidden", text: "The newest evictions" }),
    make("thead", {}, make("tr", {}, names.map((text, at) => make("th", { scope: "col", class: at > 3 ? "right some" : at > 2 ? "right" : null, text })))),
    make("tbody", {}, evictions.slice(0, LISTED).map((one) => make("tr", {},
      make("td", { class: "number", text: moment(one.at) }), make("th", { scope: "row", text: one.channel ?? "all" }),
      make("td", {}, make("i", { class: `sign sign-${one.cause}`, "aria-hidden": "true" }), one.cause),
      make("td", { class: "right number", text: span(one.lived) }),
      make("td", { class: "right number some", text: one.cause === "erase" && one.by !== null ? moment(one.by) : "–" })))));
}
