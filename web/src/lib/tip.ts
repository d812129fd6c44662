/** The token under the pointer, and the one that a click has locked. */

import { createStore } from "./store";

export interface Tip {
  element: HTMLElement;
  id: number;
  text: string;
  position: number | null;
  value: number | null;
  max: number;
  note?: string;
}

export const hovered = createStore<Tip | null>(null);
export const locked = createStore<Tip | null>(null);
