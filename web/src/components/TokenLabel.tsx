/** A token's text with visible whitespace, always as text nodes. */

import { pieces } from "../lib/tokentext";

interface Props {
  text: string;
  /** Really break the line after a run of newlines, so that the indentation that follows stands on its own line. */
  breaks?: boolean;
}

export function TokenLabel({ text, breaks = false }: Props) {
  const all = pieces(text);
  return (
    <>
      {all.map((piece, index) => {
        const shown = piece.faint ? <i key={index}>{piece.text}</i> : piece.text;
        return breaks && piece.newline && !all[index + 1]?.newline ? [shown, <br key={`b${index}`} />] : shown;
      })}
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
