/** A search box: what is typed shows at once, and counts after a moment of quiet. */

import { useEffect, useRef, useState } from "preact/hooks";

/** The text of the box, and what to call with each new text; `commit` hears it after `delay` ms without another. */
export function useTyped(value: string, commit: (text: string) => void, delay: number): [string, (text: string) => void] {
  const [text, setText] = useState(value);
  const timer = useRef(0);
  useEffect(() => {
    if (timer.current === 0) setText(value); // Not while the reader types on: their newer letters would be lost.
  }, [value]);
  const type = (typed: string) => {
    setText(typed);
    clearTimeout(timer.current);
    timer.current = window.setTimeout(() => {
      timer.current = 0;
      commit(typed);
    }, delay);
  };
  return [text, type];
}
