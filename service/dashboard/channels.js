// The live part of a stream: for each channel what was observed, the bands of the forecasts and the fan ahead; below them
// the surprise of all channels, with alerts marked. All share one time axis.

import { cursor, figure, mount, source, times } from "./charts.js";
import { make } from "./elements.js";
import { bits, moment, number, within } from "./format.js";
import { MOST } from "./series.js";
import { onTheme, tokens } from "./theme.js";

const ROW = 19;

/** Charts of a series in `grid` and `strip` (null: none), of all channels or `only` some; `show` says how far back. */
export class Channels {
  constructor(series, { grid, strip, only = [...series.channels.keys()], height = 150, told, limit, signal }) {
    Object.assign(this, { series, only, height, told, limit });
    this.steps = 96;
    this.at = null;
    this.heads = only.map((channel) => {
      const name = series.channels[channel];
      const parts = { value: make("span", { class: "channel-value number" }), expected: make("span", { class: "muted number" }), bits: make("span", { class: "channel-bits number" }) };
      const box = make("div", { class: "chart" });
      grid.append(make("section", { class: "channel", "aria-label": name },
        make("h3", {}, make("span", { class: "channel-name", text: name, title: name }), parts.value, make("span", { class: "grow" }), parts.bits), make("p", { class: "channel-expected" }, parts.expected), box));
      return { ...parts, box };
    });
    this.strip = strip;
    this.closers = [];
    this.stopTheme = onTheme(() => this.build());
    document.addEventListener("visibilitychange", () => document.hidden || this.update(), { signal });
    grid.setAttribute("role", "group");
    grid.setAttribute("aria-label", "Charts by channel; the arrow keys go through the moments");
    grid.tabIndex = 0;
    grid.addEventListener("keydown", (event) => this.step(event));
    signal.addEventListener("abort", () => this.close());
  }

  close() {
    this.stopTheme();
    this.unmount();
  }

  unmount() {
    for (const close of this.closers) close();
    this.closers = [];
    this.drawn = null;
  }

  /** Make the figures, anew where there were some. */
  async build() {
    this.unmount();
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const ink = tokens();
    const x = new Bokeh.Range1d({ start: 0, end: 1 });
    const names = this.only.map((channel) => this.series.channels[channel]);
    const drawn = { x, channels: names.map((name) => this.channel(name, x, ink)), surprise: this.strip && this.heat(x, ink) };
    const all = [...drawn.channels, ...(this.strip ? [drawn.surprise] : [])].map((one) => one.figure);
    drawn.cursor = cursor(all);
    for (const one of all) {
      one.on_event("mousemove", (event) => this.point(event.x));
      one.on_event("tap", (event) => this.point(event.x));
      one.on_event("mouseleave", () => this.point(null));
    }
    this.drawn = drawn;
    this.update();
    const boxes = [...this.heads.map((head) => head.box), ...(this.strip ? [this.strip] : [])];
    const texts = [...names.map((name) => `${name}: observed values and forecast bands over time`), "Surprise of every channel over time"];
    const close = await mount(boxes, all, texts);
    if (turn === this.turn) this.closers = [close];
    else close();
  }

  channel(name, x, ink) {
    const y = new Bokeh.Range1d({ start: 0, end: 1 });
    const made = figure({ label: name, height: this.height, x_range: x, y_range: y, x_axis_type: "datetime" });
    made.below[0].setv({ formatter: times() });
    const pairs = Math.floor(this.series.levels.length / 2);
    const bands = source(this.bandData(null));
    const fan = source(this.bandData(null));
    for (const [one, alpha] of [[bands, 0.6], [fan, 1]]) {
      for (let pair = 0; pair < pairs; pair += 1) {
        made.varea({ x: { field: "t" }, y1: { field: `q${pair}` }, y2: { field: `q${this.series.levels.length - 1 - pair}` }, source: one, fill_color: ink.band, fill_alpha: alpha * (0.14 + 0.3 / Math.max(pairs, 1) * (pair > 0)) });
      }
      made.line({ x: { field: "t" }, y: { field: "mid" }, source: one, line_color: ink.band, line_width: 1.6, line_alpha: alpha, line_dash: [5, 3] });
    }
    const points = source({ t: [], y: [] });
    const alerts = source({ t: [], y: [] });
    made.line({ x: { field: "t" }, y: { field: "y" }, source: points, line_color: ink.ink, line_width: 1.3, line_join: "round" });
    made.scatter({ x: { field: "t" }, y: { field: "y" }, source: points, marker: "circle", size: 3, fill_color: ink.ink, line_color: null });
    made.scatter({ x: { field: "t" }, y: { field: "y" }, source: alerts, marker: "diamond", size: 12, fill_color: ink.alert, line_color: ink.surface, line_width: 1.5 });
    const edge = new Bokeh.Span({ dimension: "height", location: 0, line_color: ink.muted, line_width: 1, line_dash: [2, 3] });
    made.add_layout(edge);
    return { figure: made, y, bands, fan, points, alerts, edge, shown: null };
  }

  heat(x, ink) {
    const names = this.series.channels;
    const made = figure({ label: "surprise", height: names.length * ROW + 34, x_range: x, y_range: [...names].reverse(), x_axis_type: "datetime", left: 84 });
    made.below[0].setv({ formatter: times() });
    made.left[0].setv({ major_label_text_color: ink.ink });
    for (const grid of made.center) if ("grid_line_color" in grid) grid.grid_line_color = null;
    const cells = source({ t: [], c: [], s: [] });
    const alerts = source({ t: [], c: [] });
    const palette = [1, 2, 3, 4, 5, 6, 7].map((step) => ink[`heat-${step}`]);
    const mapper = new Bokeh.LinearColorMapper({ palette, low: 0, high: this.limit, nan_color: "rgba(0, 0, 0, 0)" });
    made.rect({ x: { field: "t" }, y: { field: "c" }, width: 0.96 * this.series.period, height: 0.86, source: cells, line_color: null, fill_color: { field: "s", transform: mapper } });
    made.scatter({ x: { field: "t" }, y: { field: "c" }, source: alerts, marker: "diamond", size: 10, fill_color: ink.alert, line_color: ink.surface, line_width: 1.5 });
    return { figure: made, cells, alerts };
  }

  /** Show so many steps of the past. */
  show(steps) {
    this.steps = steps;
    this.update();
  }

  /** Draw what the series has now; `added` rows are new at its end, -1 is all of it. */
  update(added = -1) {
    if (!this.drawn || document.hidden) return;
    const { series } = this;
    const end = series.bandTimes.at(-1) ?? series.last ?? Date.now();
    const edge = series.bandTimes[series.ahead] ?? end;
    const from = (series.last ?? edge) - this.steps * series.period;
    const first = Math.max(series.nearestBand(from) - 1, 0);
    this.drawn.x.setv({ start: from, end: end + series.period });
    this.only.forEach((channel, place) => {
      const one = this.drawn.channels[place];
      if (added < 0 || one.shown === null) one.points.data = { t: [...series.times], y: [...series.values[channel]] };
      else if (added > 0) one.points.stream({ t: series.times.slice(-added), y: series.values[channel].slice(-added) }, MOST);
      one.shown = series.times.length;
      one.alerts.data = series.alerts(channel, this.limit);
      one.bands.data = this.bandData(channel, first, series.ahead + 1);
      one.fan.data = this.bandData(channel, series.ahead);
      one.edge.location = edge - series.period / 2;
      const extent = series.extent(channel, from);
      if (extent !== null) {
        const pad = 0.08 * (extent[1] - extent[0]) || Math.abs(extent[0]) / 10 || 1;
        one.y.setv({ start: extent[0] - pad, end: extent[1] + pad });
      }
    });
    if (this.strip) this.warm(from);
    this.heading();
  }

  bandData(channel, from = 0, to = undefined) {
    const { series } = this;
    const cut = (column) => (channel === null ? [] : column.slice(from, to));
    const data = { t: cut(series.bandTimes) };
    const columns = channel === null ? series.levels.map(() => []) : series.bands[channel];
    columns.forEach((column, level) => (data[`q${level}`] = cut(column)));
    data.mid = cut(columns[Math.floor(columns.length / 2)] ?? []);
    return data;
  }

  warm(from) {
    const { series } = this;
    const cells = { t: [], c: [], s: [] };
    const alerts = { t: [], c: [] };
    for (let row = series.times.length - 1; row >= 0 && series.times[row] >= from; row -= 1) {
      series.channels.forEach((name, channel) => {
        const found = series.surprise[channel][row];
        if (Number.isNaN(found)) return;
        cells.t.push(series.times[row]);
        cells.c.push(name);
        cells.s.push(found);
        if (found >= this.limit) {
          alerts.t.push(series.times[row]);
          alerts.c.push(name);
        }
      });
    }
    this.drawn.surprise.cells.data = cells;
    this.drawn.surprise.alerts.data = alerts;
  }

  step(event) {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") this.point(null);
    else if (way) {
      event.preventDefault();
      this.point((this.at ?? this.series.last ?? 0) + way * this.series.period);
    }
  }

  /** Tell of one moment in the heads of the charts; null is the newest row. */
  point(time) {
    if (!this.drawn) return;
    const known = [...this.series.times.slice(-1), ...this.series.bandTimes.slice(-1)];
    this.at = time === null || !known.length ? null : Math.min(Math.max(Math.round(time / this.series.period) * this.series.period, this.series.times[0] ?? time), Math.max(...known));
    this.drawn.cursor(this.at);
    this.heading();
  }

  heading() {
    const { series } = this;
    const at = this.at ?? series.last;
    const row = at === null ? -1 : series.nearest(at);
    const here = row >= 0 && Math.abs(series.times[row] - at) < series.period / 2;
    this.told.textContent = at === null ? "" : `${moment(at)} UTC${this.at === null ? ", newest" : here ? "" : ", ahead"}`;
    this.heads.forEach((head, place) => {
      const channel = this.only[place];
      const value = here ? series.values[channel][row] : NaN;
      const found = here ? series.surprise[channel][row] : NaN;
      const expected = at === null ? null : series.expected(channel, at);
      const [low, middle, high] = (expected ?? []).map((one) => within(one, expected[2] - expected[0]));
      head.value.textContent = Number.isFinite(value) ? number(value) : here ? "missing" : expected ? `≈ ${middle}` : "–";
      head.expected.textContent = expected ? `forecast ${middle}, ${this.share()} within ${low} … ${high}` : here ? "no forecast of this moment at hand" : " ";
      head.bits.textContent = Number.isFinite(found) ? bits(found) : "";
      head.bits.classList.toggle("alarm", found >= this.limit);
    });
  }

  share() {
    const { levels } = this.series;
    return `${Math.round(100 * (levels.at(-1) - levels[0]))} %`;
  }
}
