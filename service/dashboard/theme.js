// Dark or light: as the system says until somebody chooses, and then as chosen, in this browser. Charts are canvases and
// read their colours once, so whoever draws one asks to be told of a change.

import { make } from "./elements.js";

const KEPT = "tsgdn2.theme";
const NEXT = { auto: "light", light: "dark", dark: "auto" };
const NAMES = { auto: "system", light: "light", dark: "dark" };
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const heard = new Set();

function kept() {
  try {
    const found = localStorage.getItem(KEPT);
    return found in NEXT ? found : "auto";
  } catch {
    return "auto"; // a browser without storage still has a theme
  }
}

let chosen = kept();

function apply() {
  document.documentElement.dataset.theme = chosen === "auto" ? (dark.matches ? "dark" : "light") : chosen;
  for (const tell of heard) tell();
}

/** Tell of every change; returns what ends it. */
export function onTheme(tell) {
  heard.add(tell);
  return () => heard.delete(tell);
}

/** The colours and fonts of the style sheet, by the names of its variables without the dashes. */
export function tokens() {
  const style = getComputedStyle(document.documentElement);
  return new Proxy({}, { get: (_, name) => style.getPropertyValue(`--${String(name)}`).trim() });
}

/** The button that goes through the choices. */
export function themeButton(button) {
  const show = () => {
    button.replaceChildren(make("span", { class: "wordy", text: "Theme: " }), NAMES[chosen]);
    button.setAttribute("aria-label", `Theme: ${NAMES[chosen]}`);
    button.title = `Go to ${NAMES[NEXT[chosen]]}`;
  };
  button.addEventListener("click", () => {
    chosen = NEXT[chosen];
    try {
      localStorage.setItem(KEPT, chosen);
    } catch {
      // it holds for this page
    }
    apply();
    show();
  });
  dark.addEventListener("change", apply);
  apply();
  show();
}
