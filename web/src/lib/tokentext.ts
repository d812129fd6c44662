/** Token text made visible: whitespace, control and invisible characters become faint signs; the rest stays text. */

export interface Piece {
  text: string;
  /** A sign that stands for something invisible, drawn faint. */
  faint: boolean;
  /** True where a line ends, so that a strip with line breaks may break here. */
  newline: boolean;
}

// Zero-width characters, bidirectional controls and the byte-order mark: invisible, and able to reorder their neighbours.
const INVISIBLE = /[\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/;

function sign(char: string): string | null {
  if (char === " ") return "·";
  if (char === "\n") return "↵";
  if (char === "\t") return "→";
  if (char === "\r") return "␍";
  if (char === "\u00a0") return "⍽";
  const code = char.codePointAt(0) ?? 0;
  if (code < 32) return String.fromCodePoint(0x2400 + code);
  if (code === 127) return "␡";
  if (INVISIBLE.test(char) || (code >= 0x80 && code < 0xa0)) return `⟨${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  return null;
}

/** Split token text into runs of plain characters and faint signs. */
export function pieces(text: string): Piece[] {
  if (text === "") return [{ text: "∅", faint: true, newline: false }];
  const result: Piece[] = [];
  for (const char of text) {
    const shown = sign(char);
    const newline = char === "\n";
    const last = result[result.length - 1];
    if (last && !last.newline && !newline && last.faint === (shown !== null)) last.text += shown ?? char;
    else result.push({ text: shown ?? char, faint: shown !== null, newline });
  }
  return result;
}

/** Token text as one plain string with visible signs, for labels and titles. */
export function visible(text: string): string {
  return pieces(text).map((piece) => piece.text).join("");
}
