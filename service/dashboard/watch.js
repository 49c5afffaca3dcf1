// One stream followed live: its last rows and its forecast when a connection stands, and then what events bring. What
// comes faster than it can be drawn is drawn together.

import { ask } from "./api.js";
import { newest, when } from "./feed.js";
import { ms } from "./format.js";
import { listen } from "./live.js";
import { Series } from "./series.js";

const DRAW_MS = 200;

/**
 * Follow a stream. heard: `drawn(added)` when the series has changed (-1: all of it), `begun()` each time that rows and
 * forecast were read, `trouble(error)` when they could not be. Gives the series.
 */
export function follow(stream, { model, rows: most, state, signal }, heard) {
  const series = new Series(model.channels, ms(model.period));
  const path = `/v1/streams/${encodeURIComponent(stream)}`;
  let drawing = null;
  let added = 0;
  let begun = false;

  function changed(more) {
    added = added < 0 || more < 0 ? -1 : added + more;
    drawing ??= setTimeout(() => {
      const rows = added;
      [drawing, added] = [null, 0];
      if (!signal.aborted) heard.drawn(rows);
    }, DRAW_MS);
  }

  const take = ({ times, values, surprise }) => changed(series.take(times.map(ms), values, surprise));

  function foresee({ times, quantiles, levels }) {
    series.forecast(times.map(ms), quantiles, levels);
    changed(0);
  }

  async function load() {
    try {
      const [rows, ahead] = await Promise.all([ask(`${path}/recent?limit=${most}`, signal), ask(`${path}/forecast`, signal)]);
      foresee(ahead);
      take(rows);
      await remembered();
      begun = true;
      heard.begun();
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === undefined) throw error;
      heard.trouble(error);
    }
  }

  /** Alerts that the ledger remembers of rows whose surprise this process has no more. */
  async function remembered() {
    const found = await newest(signal, { kind: ["alert"], limit: 200, stream });
    for (const entry of found?.entries ?? []) {
      const channel = model.channels.indexOf(entry.facts.channel);
      const row = series.nearest(when(entry));
      if (channel < 0 || row < 0 || series.times[row] !== when(entry)) continue;
      if (Number.isNaN(series.surprise[channel][row])) series.surprise[channel][row] = Number(entry.facts.bits);
    }
    changed(-1);
  }

  listen(new URLSearchParams([["kind", "rows"], ["kind", "forecast"], ["stream", stream]]), {
    open: load,
    rows: (event) => (begun ? take(event) : load()),
    forecast: (event) => begun && foresee(event),
  }, state, signal);
  return series;
}
