/** All latents, sorted and searched by the server; only the rows in sight exist in the page. */

import { useEffect, useRef, useState } from "preact/hooks";
import { count, fixed, percent } from "../lib/format";
import { setParams, usePlace } from "../lib/place";
import { useRows } from "../lib/rows";
import { useTyped } from "../lib/typed";
import type { LatentRow } from "../lib/types";
import { Link } from "./Link";
import { Empty, Problem } from "./Message";
import { Segmented } from "./Segmented";
import { TokenChip } from "./TokenLabel";

const ROW = 40;
const EXTRA = 8;

const COLUMNS = [
  { key: "index", label: "Latent", sortable: true },
  { key: "density", label: "Density", sortable: true },
  { key: "max", label: "Max", sortable: true },
  { key: "top", label: "Fires most on", sortable: false },
  { key: "raised", label: "Raises", sortable: false },
] as const;

const SORTS = [
  { value: "interest", label: "Interest", title: "Sparse, peaked latents with clear examples first" },
  { value: "density", label: "Density" },
  { value: "max", label: "Max" },
  { value: "index", label: "Number" },
];

/** Bar length of a density: four decades, so that rare latents still show. */
function decades(density: number): number {
  return density > 0 ? Math.max(0.02, Math.min(1, (Math.log10(density) + 5) / 5)) : 0;
}

function Cells({ row }: { row: LatentRow }) {
  return (
    <>
      <span role="cell" class="c-index">{`#${row.index}`}</span>
      <span role="cell" class="c-density">
        <span class="track" aria-hidden="true">
          <span class="fill" style={{ width: `${100 * decades(row.density)}%` }} />
        </span>
        <span class="value">{row.density > 0 ? percent(row.density) : "dead"}</span>
      </span>
      <span role="cell" class="c-max">{row.density > 0 ? fixed(row.max, 2) : "—"}</span>
      <span role="cell" class="c-top">{row.top_token ? <TokenChip text={row.top_token.text} /> : "—"}</span>
      <span role="cell" class="c-raised">
        {row.raised.map((text, index) => (
          <TokenChip key={index} text={text} />
        ))}
      </span>
    </>
  );
}

function Head({ sort, order }: { sort: string; order: string }) {
  return (
    <div role="row" class="lt-row lt-head">
      {COLUMNS.map((column) => (
        <span role="columnheader" class={`c-${column.key}`} key={column.key} aria-sort={sort === column.key ? (order === "asc" ? "ascending" : "descending") : undefined}>
          {column.sortable ? (
            <button type="button" onClick={() => chooseSort(column.key, sort, order)}>
              {column.label}
              <span class="arrow" aria-hidden="true">{sort === column.key ? (order === "asc" ? "↑" : "↓") : ""}</span>
            </button>
          ) : (
            column.label
          )}
        </span>
      ))}
    </div>
  );
}

function chooseSort(key: string, sort: string, order: string): void {
  const first = key === "index" ? "asc" : "desc";
  const next = sort === key ? (order === "asc" ? "desc" : "asc") : first;
  setParams({ sort: key === "interest" ? null : key, order: next === "desc" ? null : next });
}

function Toolbar({ sort, order, query, alive, total }: { sort: string; order: string; query: string; alive: boolean; total: number | null }) {
  const [text, type] = useTyped(query, (typed) => setParams({ query: typed || null }), 200);
  return (
    <div class="toolbar">
      <input type="search" class="field search" placeholder="Token or latent number" aria-label="Search latents" data-search value={text} onInput={(event) => type(event.currentTarget.value)} />
      <Segmented label="Sort by" choices={SORTS} value={sort} onChange={(value) => chooseSort(value, sort, order)} />
      <label class="check">
        <input type="checkbox" checked={alive} onChange={(event) => setParams({ alive: event.currentTarget.checked ? null : 0 })} />
        Alive only
      </label>
      <span class="total" data-testid="total" role="status">{total === null ? "" : `${count(total)} latents`}</span>
    </div>
  );
}

export function LatentTable() {
  const { params } = usePlace();
  const sort = SORTS.find(({ value }) => value === params.get("sort"))?.value ?? "interest";
  const order = params.get("order") === "asc" ? "asc" : "desc";
  const query = params.get("query") ?? "";
  const alive = params.get("alive") !== "0";
  const body = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(600);

  const first = Math.max(0, Math.floor(top / ROW) - EXTRA);
  const last = Math.ceil((top + height) / ROW) + EXTRA;
  const search = new URLSearchParams({ sort, order, query, alive: alive ? "1" : "0" }).toString();
  const rows = useRows(search, first, last);
  const total = rows.total ?? 0;

  useEffect(() => {
    if (body.current) body.current.scrollTop = 0;
    setTop(0);
  }, [search]);
  useEffect(() => {
    if (body.current) setHeight(body.current.clientHeight);
  }, [rows.total]);

  const shown = Array.from({ length: Math.max(0, Math.min(last, total) - first) }, (_, index) => first + index);
  return (
    <div class="latent-table">
      <Toolbar sort={sort} order={order} query={query} alive={alive} total={rows.total} />
      {rows.error && <Problem text={rows.error} />}
      <div role="table" aria-label="Latents" aria-rowcount={total} class="lt">
        <div class="lt-body" ref={body} data-testid="latent-rows" onScroll={(event) => setTop(event.currentTarget.scrollTop)}>
          <Head sort={sort} order={order} />
          {rows.total === 0 && <Empty text={query ? `No latent matches “${query}”.` : "No latents."} />}
          <div class="lt-space" style={{ height: `${total * ROW}px` }}>
            {shown.map((at) => {
              const row = rows.row(at);
              const style = { transform: `translateY(${at * ROW}px)` };
              return (
                <div role="row" aria-rowindex={at + 1} class="lt-line" style={style} key={at}>
                  {row ? (
                    <Link class="lt-row" href={`/latent/${row.index}`} label={`Latent ${row.index}`}>
                      <Cells row={row} />
                    </Link>
                  ) : (
                    <span class="lt-row pending" aria-hidden="true" />
                  )}
                </div>
              );
            })}
          </div>
        </div>
      </div>
    </div>
  );
}
