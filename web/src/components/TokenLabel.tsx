/** A token's text with visible whitespace, always as text nodes. */

import { pieces } from "../lib/tokentext";

export function TokenLabel({ text }: { text: string }) {
  return (
    <>
      {pieces(text).map((piece, index) => (piece.faint ? <i key={index}>{piece.text}</i> : piece.text))}
    </>
  );
}

/** A token as a small chip in lists and tables. */
export function TokenChip({ text }: { text: string }) {
  return (
    <span class="chip" title={JSON.stringify(text)}>
      <TokenLabel text={text} />
    </span>
  );
}
