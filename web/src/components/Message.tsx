/** What the page says instead of content: an error with its reason, an empty result, or that it is waiting. */

export function Problem({ text }: { text: string }) {
  return (
    <div class="message problem" role="alert">
      <strong>That did not work.</strong> <span>{text}</span>
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
