// The stream that surprised most of those that are listed, with its three most surprising channels, live on the front page.
// It is chosen once, when the page opens: what jumps about can not be read.

import { Channels } from "./channels.js";
import { choice, make, panel } from "./elements.js";
import { address } from "./streams.js";
import { follow } from "./watch.js";

const ROWS = 300;
const CHANNELS = 3;
const RECENT = 48;

/** An empty panel, and `begin` with the streams of a list and the overview; it begins once. */
export function spotlight(signal) {
  const title = make("span");
  const told = make("span", { class: "number" });
  const grid = make("div", { class: "channels" });
  let chosen = null;
  const tools = make("div", { class: "tools" }, told);
  const box = panel("Live", { class: "spotlight", hidden: true, note: tools }, grid);
  box.querySelector("h2").replaceChildren("Live: ", title);

  function begin(streams, { model, alert_bits: limit }) {
    if (chosen !== null || !streams.length || signal.aborted) return;
    const alarm = (one) => one.surprise.reduce((sum, bits) => sum + Math.min(bits ?? 0, 2 * limit), 0);
    const sound = streams.filter((one) => one.aside === null);
    if (!sound.length) return;
    chosen = sound.reduce((best, one) => (alarm(one) > alarm(best) ? one : best)).stream;
    title.replaceChildren(make("a", { href: address(chosen), text: chosen }));
    let charts = null;
    const series = follow(chosen, { model, rows: ROWS, state: () => {}, signal }, {
      drawn: (added) => charts?.update(added),
      begun: () => {
        box.hidden = false;
        if (charts !== null) return;
        charts = new Channels(series, { grid, strip: null, only: telling(series, limit), height: 210, told, limit, signal });
        tools.append(choice("Steps of the past", [[48, "48 steps"], [96, "96"], [240, "240"]], charts.steps, (steps) => charts.show(steps)));
        charts.build();
      },
      trouble: () => {
        chosen = null; // deleted, or set aside just now
        box.hidden = true;
      },
    });
  }

  return { panel: box, begin };
}

/** The channels that surprised most lately, in the order of the model. */
function telling(series, limit) {
  const sums = series.channels.map((_, channel) => series.surprise[channel].slice(-RECENT).reduce((sum, bits) => sum + Math.min(bits || 0, limit), 0));
  return [...sums.keys()].sort((a, b) => sums[b] - sums[a]).slice(0, CHANNELS).sort((a, b) => a - b);
}
