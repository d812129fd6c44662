/** Where the reader is: the path and the query are the whole state of a view, so a copied address shows the same page. */

import { createStore, useStore } from "./store";

export interface Place {
  path: string;
  params: URLSearchParams;
}

export type Patch = Record<string, string | number | null | undefined>;

function read(): Place {
  return { path: location.pathname, params: new URLSearchParams(location.search) };
}

const store = createStore<Place>(read());

window.addEventListener("popstate", () => store.set(read()));

function move(path: string, params: URLSearchParams, push: boolean): void {
  const query = params.toString();
  const address = query ? `${path}?${query}` : path;
  try {
    if (push) history.pushState(null, "", address);
    else history.replaceState(null, "", address);
  } catch {
    // A page opened from a file may not rewrite its address in every browser: the state then lives in memory only.
  }
  store.set({ path, params });
}

function patched(params: URLSearchParams, patch: Patch): URLSearchParams {
  const next = new URLSearchParams(params);
  for (const [key, value] of Object.entries(patch)) {
    if (value === null || value === undefined) next.delete(key);
    else next.set(key, String(value));
  }
  return next;
}

export function usePlace(): Place {
  return useStore(store);
}

export function currentPlace(): Place {
  return store.get();
}

/** Change query parameters in place (null removes one) without a new step in the browser's history. */
export function setParams(patch: Patch): void {
  const place = store.get();
  move(place.path, patched(place.params, patch), false);
}

/** Go to another view; `href` is a path with an optional query. */
export function go(href: string): void {
  const url = new URL(href, "http://page");
  move(url.pathname, url.searchParams, true);
  window.scrollTo(0, 0);
}

/** The address of a latent that keeps the reader's panel and text but not what was locked on the page before. */
export function latentHref(index: number, params: URLSearchParams = new URLSearchParams()): string {
  const kept = new URLSearchParams();
  for (const key of ["tab", "breaks", "text", "prompt", "scale", "seed", "tokens", "temperature"]) {
    const value = params.get(key);
    if (value !== null) kept.set(key, value);
  }
  const query = kept.toString();
  return query ? `/latent/${index}?${query}` : `/latent/${index}`;
}

/** A number from the query, or the default where it is absent, not a number, or outside [low, high]. */
export function numberParam(params: URLSearchParams, key: string, fallback: number, low: number, high: number): number {
  const text = params.get(key);
  if (text === null || text.trim() === "") return fallback;
  const value = Number(text);
  return Number.isFinite(value) && value >= low && value <= high ? value : fallback;
}
