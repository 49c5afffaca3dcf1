// Figures of BokehJS in the colours of the page. A figure takes no gesture of its own, so that a finger on it scrolls the
// page; how much it shows is chosen with buttons.

import { tokens } from "./theme.js";

const { Plotting, Document, embed, ColumnDataSource } = Bokeh;

/** A column source of plain arrays. */
export const source = (data) => new ColumnDataSource({ data });

/** A figure; what is given goes to Bokeh, `left` are the pixels of the labels at the left, so that figures line up. */
export function figure({ label, left = 46, ...given }) {
  const ink = tokens();
  const made = Plotting.figure({
    sizing_mode: "stretch_width", toolbar_location: null, tools: [], min_border_left: left, min_border_right: 10,
    background_fill_color: null, border_fill_color: null, outline_line_color: null, min_border_top: 4,
    lod_threshold: null, ...given,
  });
  for (const axis of [...made.below, ...made.left]) {
    axis.setv({
      axis_line_color: null, major_tick_line_color: null, minor_tick_line_color: null,
      major_label_text_color: ink.muted, major_label_text_font: ink.font, major_label_text_font_size: "11px",
      axis_label_text_color: ink.muted, axis_label_text_font: ink.font, axis_label_text_font_size: "11px",
      axis_label_text_font_style: "normal",
    });
    if ("desired_num_ticks" in axis.ticker) axis.ticker.desired_num_ticks = made.left.includes(axis) ? 3 : 5;
  }
  for (const grid of made.center) {
    if ("grid_line_color" in grid) grid.grid_line_color = ink.grid;
  }
  made.name = label;
  return made;
}

/** Draw figures in their boxes, each a picture with a text for those who do not see it; gives what takes them out. */
export async function mount(boxes, figures, texts) {
  const drawn = new Document();
  boxes.forEach((box, at) => {
    box.replaceChildren();
    box.setAttribute("role", "img");
    box.setAttribute("aria-label", texts[at]);
    drawn.add_root(figures[at]);
  });
  const views = await embed.add_document_standalone(drawn, boxes[0], boxes);
  return () => {
    views.clear();
    drawn.clear();
  };
}

/** Label an axis at these places and nowhere else, and draw its grid there. */
export function marked(made, axis, grid, marks, text) {
  const ticker = new Bokeh.FixedTicker({ ticks: marks });
  made[axis][0].setv({ ticker, major_label_overrides: new Map(marks.map((mark) => [mark, text(mark)])) });
  made.center[grid].ticker = ticker;
}

/** Where a time axis labels: hours and days, never with a date that is cut off. */
export const times = () => new Bokeh.DatetimeTickFormatter({
  seconds: "%H:%M:%S", minsec: "%H:%M:%S", minutes: "%H:%M", hourmin: "%H:%M", hours: "%H:%M", days: "%d %b", months: "%d %b", years: "%d %b %Y",
});

/** A light vertical line through figures at one moment. */
export function cursor(figures) {
  const ink = tokens();
  const spans = figures.map((one) => {
    const span = new Bokeh.Span({ dimension: "height", location: NaN, line_color: ink.muted, line_width: 1, line_alpha: 0.7, visible: false });
    one.add_layout(span);
    return span;
  });
  return (time) => {
    for (const span of spans) span.setv({ location: time ?? 0, visible: time !== null });
  };
}
