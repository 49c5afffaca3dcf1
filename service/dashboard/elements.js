// Elements of the page. Text is always text: nothing here, or anywhere in the dashboard, reads HTML out of data, because
// names of streams come from whoever sends rows.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `given` are attributes, `text` its text, `on` its listeners; children that are null are left out. */
export function make(name, given = {}, ...children) {
  return finished(document.createElement(name), given, children);
}

/** The same within <svg>. */
export function draw(name, given = {}, ...children) {
  return finished(document.createElementNS(SVG, name), given, children);
}

function finished(element, given, children) {
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "on") for (const [kind, heard] of Object.entries(value)) element.addEventListener(kind, heard);
    else if (name === "vars") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A block with a heading. */
export function panel(title, given = {}, ...children) {
  const { note, ...rest } = given;
  const head = make("header", { class: "panel-head" }, make("h2", { text: title }), note ?? null);
  return make("section", { ...rest, class: `panel ${rest.class ?? ""}`.trim(), "aria-label": title }, head, ...children);
}

/** One of several choices, as buttons; `choose` hears which. */
export function choice(label, options, chosen, choose) {
  const group = make("div", { class: "choice", role: "group", "aria-label": label });
  for (const [value, text] of options) {
    const button = make("button", { type: "button", text, "aria-pressed": String(value === chosen) });
    button.addEventListener("click", () => {
      for (const other of group.children) other.setAttribute("aria-pressed", String(other === button));
      choose(value);
    });
    group.append(button);
  }
  return group;
}

/** Bars of the last surprises, oldest first; those of `alert` bits or more in the colour and height of an alert. */
export function bars(bits, alert, { width = 132, height = 26, most = 32 } = {}) {
  const svg = draw("svg", { class: "bars", viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
  const step = width / most;
  svg.append(draw("line", { class: "bars-base", x1: 0, x2: width, y1: height - 0.5, y2: height - 0.5 }));
  bits.slice(-most).forEach((value, at, shown) => {
    if (value === null) return;
    const tall = Math.max(1.5, Math.min(value / (1.25 * alert), 1) * (height - 2));
    const x = width - (shown.length - at) * step;
    svg.append(draw("rect", {
      class: value >= alert ? "bar bar-alert" : "bar", x: x + 0.5, y: height - tall, width: Math.max(step - 1.2, 1), height: tall,
    }));
  });
  return svg;
}

/** What stands where there is nothing, and what to do about it. */
export function empty(text, ...more) {
  return make("div", { class: "empty" }, make("p", { text }), ...more);
}

/** A command to copy. */
export function command(text) {
  const copy = make("button", { type: "button", class: "quiet", text: "Copy" });
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    copy.textContent = "Copied";
  });
  return make("div", { class: "command" }, make("pre", {}, make("code", { text })), navigator.clipboard ? copy : null);
}
