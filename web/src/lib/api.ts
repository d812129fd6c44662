/** Requests to the local server. Every refusal becomes an Error whose message is the server's reason. */

import { useEffect, useState } from "preact/hooks";

function token(): string {
  return document.querySelector<HTMLMetaElement>('meta[name="hooke-token"]')?.content ?? "";
}

async function reason(response: Response): Promise<string> {
  try {
    const body = (await response.json()) as { error?: unknown };
    if (typeof body.error === "string") return body.error;
  } catch {
    // Not JSON: fall through to the status line.
  }
  return `the server answered ${response.status} ${response.statusText}`;
}

async function request<T>(path: string, init: RequestInit): Promise<T> {
  let response: Response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new Error("The hooke server does not answer. Is `hooke serve` still running?");
  }
  if (!response.ok) throw new Error(await reason(response));
  return (await response.json()) as T;
}

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

export function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  return request<T>(path, { signal });
}

const KEPT = 8;
const kept = new Map<string, Promise<unknown>>();

/** Ask for what will be wanted next; `useGet` then takes it from here. The server lets nothing be cached by the browser. */
export function prefetch(path: string): void {
  if (kept.has(path)) return;
  const answer = get(path);
  answer.catch(() => kept.delete(path));
  kept.set(path, answer);
  for (const oldest of [...kept.keys()].slice(0, Math.max(0, kept.size - KEPT))) kept.delete(oldest);
}

export function post<T>(path: string, body: unknown, signal?: AbortSignal): Promise<T> {
  return request<T>(path, {
    method: "POST",
    headers: { "content-type": "application/json", "x-hooke-token": token() },
    body: JSON.stringify(body),
    signal,
  });
}

export interface Loaded<T> {
  data: T | null;
  error: string | null;
  loading: boolean;
}

/**
 * Run `load` whenever `key` changes, after `delay` ms of quiet; a null key loads nothing. While a new answer is on its
 * way the old one stays, so the page does not flicker, and an answer that comes too late is dropped.
 */
export function useLoad<T>(key: string | null, load: (signal: AbortSignal) => Promise<T>, delay = 0): Loaded<T> {
  const [state, setState] = useState<Loaded<T>>({ data: null, error: null, loading: key !== null });
  useEffect(() => {
    if (key === null) {
      setState({ data: null, error: null, loading: false });
      return;
    }
    const controller = new AbortController();
    setState((old) => ({ ...old, loading: true }));
    const timer = setTimeout(() => {
      load(controller.signal).then(
        (data) => !controller.signal.aborted && setState({ data, error: null, loading: false }),
        (error: unknown) => {
          if (controller.signal.aborted || isAbort(error)) return;
          setState({ data: null, error: error instanceof Error ? error.message : String(error), loading: false });
        },
      );
    }, delay);
    return () => {
      clearTimeout(timer);
      controller.abort();
    };
  }, [key]);
  return state;
}

/** GET `path` and keep the answer fresh when the path changes. */
export function useGet<T>(path: string | null): Loaded<T> {
  return useLoad<T>(path, (signal) => (kept.get(path as string) as Promise<T> | undefined) ?? get<T>(path as string, signal));
}
