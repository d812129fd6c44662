/** What the page says instead of content: an error with its reason, an empty result, or that it is waiting. */

/** The server's reasons begin in lower case; a sentence here does not. Field names ("sort: ...") stay as they are. */
export function sentence(text: string): string {
  return /^[a-z]+ /.test(text) ? text[0]!.toUpperCase() + text.slice(1) : text;
}

export function Problem({ text }: { text: string }) {
  return (
    <div class="message problem" role="alert">
      <strong>That did not work.</strong> <span>{sentence(text)}</span>
    </div>
  );
}

export function Empty({ text }: { text: string }) {
  return <div class="message">{text}</div>;
}

export function Waiting({ text = "Loading" }: { text?: string }) {
  return (
    <div class="message waiting" role="status">
      {text}
      <span class="dots" aria-hidden="true" />
    </div>
  );
}
