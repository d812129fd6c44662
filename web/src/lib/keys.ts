/** Keyboard: arrows step, Esc unlocks, "/" goes to the search box. Keys typed into a field are left alone. */

import { useLayoutEffect } from "preact/hooks";

function typing(event: KeyboardEvent): boolean {
  const target = event.target as HTMLElement | null;
  return !!target && (target.isContentEditable || ["INPUT", "TEXTAREA", "SELECT"].includes(target.tagName));
}

export type KeyHandlers = Record<string, () => void>;

/** Call `handlers[event.key]` for keys pressed outside of fields; Escape is always heard. */
export function useKeys(handlers: KeyHandlers): void {
  // With the view itself, not after it: a key pressed on what is seen must not meet the handlers of the view before.
  useLayoutEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (typing(event) && event.key !== "Escape") return;
      const handler = handlers[event.key];
      if (!handler) return;
      if (event.key !== "Escape") event.preventDefault();
      handler();
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  });
}
