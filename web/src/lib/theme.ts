/** Light, dark, or whatever the system says; remembered in this browser where that is allowed. */

import { createStore } from "./store";

export type Theme = "auto" | "light" | "dark";

function remembered(): Theme {
  try {
    const value = localStorage.getItem("hooke-theme");
    if (value === "light" || value === "dark") return value;
  } catch {
    // Storage is closed for pages opened from a file in some browsers.
  }
  return "auto";
}

export const theme = createStore<Theme>(remembered());

export function applyTheme(value: Theme): void {
  if (value === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = value;
}

export function nextTheme(value: Theme): Theme {
  return value === "auto" ? "light" : value === "light" ? "dark" : "auto";
}

export function setTheme(value: Theme): void {
  try {
    if (value === "auto") localStorage.removeItem("hooke-theme");
    else localStorage.setItem("hooke-theme", value);
  } catch {
    // The choice then lasts for this page only.
  }
  applyTheme(value);
  theme.set(value);
}
