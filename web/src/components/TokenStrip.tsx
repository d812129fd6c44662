/** A run of tokens coloured by activation: hover shows the numbers, a click locks them (and the address keeps the lock). */

import { useEffect, useMemo, useRef } from "preact/hooks";
import { setParams, usePlace } from "../lib/place";
import { hovered, locked, type Tip } from "../lib/tip";
import { TokenLabel } from "./TokenLabel";

export interface StripToken {
  id: number;
  text: string;
  position: number | null;
  value: number | null;
  special?: boolean;
  note?: string;
}

interface Props {
  /** Name of this strip in the address; unique on the page. */
  id: string;
  tokens: StripToken[];
  /** The activation that gets the full colour. */
  max: number;
  focus?: number;
  breaks?: boolean;
  /** Paler colours, where every token has some value and none should shout. */
  soft?: boolean;
  onHover?: (index: number | null) => void;
}

/** Share of the full colour: any firing is visible, silence has no colour. */
function shade(value: number | null, max: number): number {
  if (value === null || value <= 0 || max <= 0) return 0;
  return 0.1 + 0.9 * Math.min(1, value / max);
}

interface SpanProps {
  token: StripToken;
  index: number;
  max: number;
  focus: boolean;
  breaks: boolean;
  soft: boolean;
}

function TokenSpan({ token, index, max, focus, breaks, soft }: SpanProps) {
  const level = shade(token.value, max) * (soft ? 0.4 : 1);
  const names = ["tok"];
  if (level > 0) names.push("on");
  if (level > 0.75) names.push("hot");
  if (focus) names.push("focus");
  if (token.special) names.push("special");
  return (
    <span class={names.join(" ")} data-i={index} style={level > 0 ? { "--v": `${(level * 100).toFixed(1)}%` } : undefined}>
      <TokenLabel text={token.text} breaks={breaks} />
    </span>
  );
}

function indexOf(target: EventTarget | null): number | null {
  const element = (target as HTMLElement | null)?.closest<HTMLElement>("[data-i]");
  return element ? Number(element.dataset.i) : null;
}

export function TokenStrip({ id, tokens, max, focus, breaks = false, soft = false, onHover }: Props) {
  const root = useRef<HTMLDivElement>(null);
  const lock = usePlace().params.get("lock");
  const lockedIndex = lock?.startsWith(`${id}.`) ? Number(lock.slice(id.length + 1)) : null;

  const tip = (index: number): Tip | null => {
    const element = root.current?.querySelector<HTMLElement>(`[data-i="${index}"]`);
    const token = tokens[index];
    if (!element || !token) return null;
    return { element, id: token.id, text: token.text, position: token.position, value: token.value, max, note: token.note };
  };

  useEffect(() => {
    if (lockedIndex === null) return;
    const found = tip(lockedIndex);
    if (!found) return;
    found.element.classList.add("locked");
    locked.set(found);
    return () => {
      found.element.classList.remove("locked");
      if (locked.get()?.element === found.element) locked.set(null);
    };
  }, [lockedIndex, tokens, max, breaks]);

  useEffect(
    () => () => {
      if (hovered.get() && root.current?.contains(hovered.get()!.element)) hovered.set(null);
    },
    [],
  );

  const drawn = useMemo(
    () =>
      tokens.map((token, index) => {
        const span = <TokenSpan key={index} token={token} index={index} max={max} focus={index === focus} breaks={breaks} soft={soft} />;
        // The signs of whitespace are no break opportunities, so lines are told where they may break.
        const turn = index > 0 && /^\s/.test(token.text) ? <wbr key={`w${index}`} /> : null;
        return [turn, span];
      }),
    [tokens, max, focus, breaks, soft],
  );

  const show = (index: number | null) => {
    hovered.set(index === null ? null : tip(index));
    onHover?.(index);
  };

  return (
    <div
      class="strip"
      ref={root}
      data-strip={id}
      onMouseOver={(event) => show(indexOf(event.target))}
      onMouseLeave={() => show(null)}
      onClick={(event) => {
        const index = indexOf(event.target);
        if (index !== null) setParams({ lock: index === lockedIndex ? null : `${id}.${index}` });
      }}
    >
      {drawn}
    </div>
  );
}
