/** The rows of the latent table, fetched in pages as they scroll into sight. */

import { useEffect, useRef, useState } from "preact/hooks";
import { get, isAbort } from "./api";
import type { LatentPage, LatentRow } from "./types";

export const PAGE = 200;

export interface Rows {
  total: number | null;
  error: string | null;
  row(index: number): LatentRow | undefined;
}

/** Pages of `query` that cover rows [first, last]; a new query starts from nothing, answers to an old one are dropped. */
export function useRows(query: string, first: number, last: number): Rows {
  const [pages, setPages] = useState<{ query: string; map: Map<number, LatentRow[]>; total: number | null }>({ query, map: new Map(), total: null });
  const [error, setError] = useState<string | null>(null);
  const asked = useRef<{ query: string; pages: Set<number> }>({ query, pages: new Set() });

  useEffect(() => {
    if (asked.current.query !== query) asked.current = { query, pages: new Set() };
    const controller = new AbortController();
    const wanted: number[] = [];
    for (let page = Math.floor(first / PAGE); page <= Math.floor(last / PAGE); page += 1) {
      if (!asked.current.pages.has(page)) wanted.push(page);
    }
    if (wanted.length === 0) return;
    // A short wait: a fast drag of the scroll bar passes over thousands of pages that nobody looks at.
    const timer = setTimeout(() => {
      for (const page of wanted) {
        asked.current.pages.add(page);
        const mine = asked.current;
        get<LatentPage>(`/api/latents?${query}&offset=${page * PAGE}&limit=${PAGE}`, controller.signal).then(
          (body) => {
            if (mine !== asked.current) return;
            setError(null);
            setPages((old) => {
              const map = old.query === query ? new Map(old.map) : new Map<number, LatentRow[]>();
              map.set(page, body.rows);
              return { query, map, total: body.total };
            });
          },
          (problem: unknown) => {
            mine.pages.delete(page);
            if (!isAbort(problem) && mine === asked.current) setError(problem instanceof Error ? problem.message : String(problem));
          },
        );
      }
    }, 40);
    return () => {
      clearTimeout(timer);
      // Requests on their way are kept while the query is the same: their rows may scroll back into sight.
    };
  }, [query, first, last]);

  return {
    total: pages.total,
    error,
    row: (index) => (pages.query === query ? pages.map.get(Math.floor(index / PAGE))?.[index % PAGE] : undefined),
  };
}
