/** The numbers of one token, next to it: follows the pointer, stays when locked. One for the whole page. */

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { fixed, percent } from "../lib/format";
import { useStore } from "../lib/store";
import { hovered, locked, type Tip } from "../lib/tip";

interface Spot {
  left: number;
  top: number;
}

/** Below the token where there is room, else above it; always inside of the window. */
function place(anchor: DOMRect, box: DOMRect): Spot {
  const gap = 8;
  const left = Math.max(gap, Math.min(anchor.left, window.innerWidth - box.width - gap));
  const below = anchor.bottom + gap;
  const top = below + box.height > window.innerHeight ? Math.max(gap, anchor.top - box.height - gap) : below;
  return { left, top };
}

export function Tooltip() {
  const hover = useStore(hovered);
  const lock = useStore(locked);
  const tip = hover ?? lock;
  const box = useRef<HTMLDivElement>(null);
  const [spot, setSpot] = useState<Spot | null>(null);

  const update = () => {
    if (!tip || !box.current || !tip.element.isConnected) return;
    // Tokens wrap over lines; the first of their boxes is the anchor.
    const anchor = tip.element.getClientRects()[0];
    if (anchor) setSpot(place(anchor, box.current.getBoundingClientRect()));
  };
  useLayoutEffect(update, [tip]);
  useEffect(() => {
    if (!tip) return;
    window.addEventListener("scroll", update, { passive: true, capture: true });
    window.addEventListener("resize", update);
    return () => {
      window.removeEventListener("scroll", update, { capture: true });
      window.removeEventListener("resize", update);
    };
  }, [tip]);

  if (!tip) return null;
  return (
    <div ref={box} class="tip" role="tooltip" data-locked={tip === lock || undefined} style={spot ? { left: `${spot.left}px`, top: `${spot.top}px` } : { left: "0px", top: "0px" }}>
      <Rows tip={tip} />
      {tip === lock && <p class="tip-hint">Locked. <kbd>Esc</kbd> unlocks.</p>}
    </div>
  );
}

function Rows({ tip }: { tip: Tip }) {
  return (
    <>
      <div class="tip-text">{JSON.stringify(tip.text)}</div>
      <dl>
        {tip.value !== null && (
          <>
            <dt>activation</dt>
            <dd>
              {fixed(tip.value, 3)}
              {tip.max > 0 && tip.value > 0 && <span> · {percent(tip.value / tip.max)} of max</span>}
            </dd>
          </>
        )}
        <dt>token id</dt>
        <dd>{tip.id}</dd>
        {tip.position !== null && (
          <>
            <dt>position</dt>
            <dd>{tip.position}</dd>
          </>
        )}
        {tip.note && (
          <>
            <dt>note</dt>
            <dd>{tip.note}</dd>
          </>
        )}
      </dl>
    </>
  );
}
