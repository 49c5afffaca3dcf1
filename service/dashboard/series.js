// Rows and forecasts of one stream as they are drawn: sorted by time, one row for a moment, bounded.
//
// Of the bands each moment has those of the newest forecast that was made before it: a forecast replaces what was said of
// its steps, and what it does not reach any more stays as it was. So the past shows what was really forecast, one or a few
// steps ahead, as far as this page was open, and the fan ahead is the newest forecast.

export const MOST = 1_500;

/** Rows: times [N] in milliseconds, values and surprise [channels][N] with NaN for what is not there. */
export class Series {
  constructor(channels, period) {
    this.channels = channels;
    this.period = period;
    this.times = [];
    this.values = channels.map(() => []);
    this.surprise = channels.map(() => []);
    this.bandTimes = [];
    /** [channels][levels][M] */
    this.bands = channels.map(() => []);
    this.levels = [];
    /** Where the fan ahead begins among the bands. */
    this.ahead = 0;
  }

  /** The newest moment of a row. */
  get last() {
    return this.times.at(-1) ?? null;
  }

  /** Take rows [N] as the service gives them. Gives how many are new at the end, -1 where others changed. */
  take(times, values, surprise) {
    let added = 0;
    let changed = false;
    times.forEach((time, row) => {
      let at = this.times.length;
      while (at > 0 && this.times[at - 1] >= time) at -= 1;
      if (at < this.times.length) changed = true;
      else added += 1;
      if (this.times[at] !== time) {
        this.times.splice(at, 0, time);
        this.channels.forEach((_, channel) => {
          this.values[channel].splice(at, 0, NaN);
          this.surprise[channel].splice(at, 0, NaN);
        });
      }
      this.channels.forEach((_, channel) => {
        const value = values[row][channel];
        const found = surprise[row][channel];
        if (value !== null) this.values[channel][at] = value;
        if (found !== null && Number.isNaN(this.surprise[channel][at])) this.surprise[channel][at] = found;
      });
    });
    const over = this.times.length - MOST;
    if (over > 0) for (const column of [this.times, ...this.values, ...this.surprise]) column.splice(0, over);
    return changed ? -1 : Math.min(added, MOST);
  }

  /** Take a forecast: times [H] in milliseconds, quantiles [H][channels][levels]. */
  forecast(times, quantiles, levels) {
    if (!times.length) return;
    if (this.levels.length !== levels.length) {
      this.levels = levels;
      this.bandTimes = [];
      this.bands = this.channels.map(() => levels.map(() => []));
    }
    let kept = this.bandTimes.length;
    while (kept > 0 && this.bandTimes[kept - 1] >= times[0]) kept -= 1;
    const drop = Math.max(0, kept - MOST);
    const columns = this.bands.flat();
    for (const column of [this.bandTimes, ...columns]) {
      column.length = kept;
      column.splice(0, drop);
    }
    const before = this.bandTimes.at(-1);
    if (before !== undefined && times[0] - before > 1.5 * this.period) {
      this.bandTimes.push(before + this.period); // nothing was forecast in between: the bands have a gap
      for (const column of columns) column.push(NaN);
    }
    this.ahead = this.bandTimes.length;
    this.bandTimes.push(...times);
    this.bands.forEach((levelled, channel) => levelled.forEach((column, level) => {
      for (const step of quantiles) column.push(step[channel][level] ?? NaN);
    }));
  }

  /** Rows whose surprise is an alert, of one channel. */
  alerts(channel, limit) {
    const found = { t: [], y: [] };
    this.surprise[channel].forEach((bits, row) => {
      if (bits >= limit && Number.isFinite(this.values[channel][row])) {
        found.t.push(this.times[row]);
        found.y.push(this.values[channel][row]);
      }
    });
    return found;
  }

  /** Least and largest value of a channel, bands included, from a moment on; null where there is none. */
  extent(channel, from) {
    const middle = this.bands[channel].length;
    let [low, high] = [Infinity, -Infinity];
    const see = (times, column) => {
      for (let row = times.length - 1; row >= 0 && times[row] >= from; row -= 1) {
        if (column[row] < low) low = column[row];
        if (column[row] > high) high = column[row];
      }
    };
    see(this.times, this.values[channel]);
    if (middle) {
      see(this.bandTimes, this.bands[channel][0]);
      see(this.bandTimes, this.bands[channel][middle - 1]);
    }
    return low <= high ? [low, high] : null;
  }

  /** The row of a moment, or the one nearest to it; -1 where there is none. */
  nearest(time) {
    return nearest(this.times, time);
  }

  /** The step of the bands that is nearest to a moment; -1 where there is none. */
  nearestBand(time) {
    return nearest(this.bandTimes, time);
  }

  /** Least, middle and largest quantile of a channel at the moment nearest to a time; null where nothing was forecast. */
  expected(channel, time) {
    const at = nearest(this.bandTimes, time);
    const columns = this.bands[channel];
    if (at < 0 || !columns.length || Math.abs(this.bandTimes[at] - time) > this.period / 2) return null;
    const found = [0, Math.floor(columns.length / 2), columns.length - 1].map((level) => columns[level][at]);
    return found.every(Number.isFinite) ? found : null;
  }
}

function nearest(times, time) {
  let [low, high] = [0, times.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] < time) low = middle + 1;
    else high = middle;
  }
  if (!times.length) return -1;
  if (low === times.length) return low - 1;
  return low > 0 && time - times[low - 1] < times[low] - time ? low - 1 : low;
}
