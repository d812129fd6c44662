/** A histogram drawn by Observable Plot; the pointer shows the count between two edges. */

import { axisX, axisY, gridY, plot, pointerX, rectY, ruleX, ruleY, tip } from "@observablehq/plot";
import { useEffect, useRef, useState } from "preact/hooks";
import { axisNumber, count } from "../lib/format";
import type { Histogram as Data } from "../lib/types";

interface Props {
  data: Data;
  height?: number;
  label: string;
  /** How an edge is written in the tip, and on the axis unless `tick` says otherwise. */
  edge: (value: number) => string;
  tick?: (value: number) => string;
  /** Take the height that the panel leaves, at least `height`. */
  fill?: boolean;
  /** Put the axis ticks at whole numbers (for log10 edges). */
  whole?: boolean;
  /** Colour the bars below zero as lowered and above it as raised. */
  signed?: boolean;
  logCounts?: boolean;
}

const LOG_TICKS = [1, 10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000];

/** 12000 -> 12k, for the axis. */
function short(value: number): string {
  if (value >= 1e6) return `${value / 1e6}M`;
  return value >= 1000 ? `${value / 1000}k` : String(value);
}

interface Bar {
  low: number;
  high: number;
  count: number;
}

function bars(data: Data): Bar[] {
  return data.counts.map((value, index) => ({ low: data.edges[index] ?? 0, high: data.edges[index + 1] ?? 0, count: value }));
}

function colour(bar: Bar, signed: boolean): string {
  return signed && bar.low + bar.high < 0 ? "var(--neg)" : "var(--pos)";
}

function wholeTicks(all: Bar[]): number[] {
  const low = Math.ceil(all[0]?.low ?? 0);
  const high = Math.floor(all[all.length - 1]?.high ?? 0);
  return Array.from({ length: Math.max(0, high - low + 1) }, (_, index) => low + index);
}

function draw(props: Props, width: number, height: number): Element {
  const { data, label, edge, tick = axisNumber, whole = false, signed = false, logCounts = false } = props;
  const all = bars(data);
  const base = logCounts ? 0.8 : 0;
  const shown = logCounts ? all.filter((bar) => bar.count > 0) : all;
  const title = (bar: Bar) => `${edge(bar.low)} to ${edge(bar.high)}\n${count(bar.count)}`;
  return plot({
    width,
    height,
    marginLeft: 40,
    marginRight: 14,
    marginTop: 10,
    marginBottom: 26,
    ariaLabel: label,
    style: { background: "transparent", fontSize: "11px", fontFamily: "inherit", overflow: "visible" },
    x: { domain: [all[0]?.low ?? 0, all[all.length - 1]?.high ?? 1] },
    y: logCounts ? { type: "log", domain: [base, Math.max(10, ...all.map((bar) => bar.count))] } : {},
    marks: [
      gridY({ ticks: logCounts ? LOG_TICKS : 3, stroke: "var(--line)", strokeOpacity: 1 }),
      axisX({ ticks: whole ? wholeTicks(all) : Math.max(3, Math.round(width / 90)), tickFormat: tick, tickSize: 0, tickPadding: 8, color: "var(--ink-3)", label: null }),
      axisY({ ticks: logCounts ? LOG_TICKS : 3, tickFormat: short, tickSize: 0, tickPadding: 6, color: "var(--ink-3)", label: null }),
      rectY(shown, { x1: "low", x2: "high", y1: base, y2: "count", fill: (bar: Bar) => colour(bar, signed), insetLeft: 0.5, insetRight: 0.5, rx: 1 }),
      signed ? ruleX([0], { stroke: "var(--line-strong)" }) : null,
      ruleY([base], { stroke: "var(--line-strong)" }),
      tip(shown, pointerX({ x1: "low", x2: "high", y: "count", title, fill: "var(--card)", stroke: "var(--line-strong)", fontSize: 12, lineHeight: 1.35 })),
    ],
  });
}

export function Histogram(props: Props) {
  const root = useRef<HTMLDivElement>(null);
  const [size, setSize] = useState({ width: 0, height: 0 });
  const least = props.height ?? 132;
  useEffect(() => {
    if (!root.current) return;
    const observer = new ResizeObserver((entries) => {
      const box = entries[0]?.contentRect;
      if (!box) return;
      const next = { width: Math.floor(box.width), height: Math.floor(box.height) };
      setSize((old) => (old.width === next.width && old.height === next.height ? old : next));
    });
    observer.observe(root.current);
    return () => observer.disconnect();
  }, []);
  useEffect(() => {
    if (!root.current || size.width < 40) return;
    const figure = draw(props, size.width, props.fill ? Math.max(least, size.height) : least);
    root.current.replaceChildren(figure);
    return () => figure.remove();
  }, [size, props.data, props.logCounts]);
  const style = props.fill ? { minHeight: `${least}px` } : { height: `${least}px` };
  return <div class={props.fill ? "plot fill" : "plot"} ref={root} style={style} role="img" aria-label={props.label} />;
}
