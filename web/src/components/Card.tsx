/** A panel: title, one line that says what is shown, its code on demand, and the content. */

import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { CodeBlock } from "./ShowCode";

interface Props {
  title: string;
  hint?: ComponentChildren;
  code?: string | null;
  actions?: ComponentChildren;
  /** Let the content take the height that a neighbour gives to the row. */
  tall?: boolean;
  testid?: string;
  children: ComponentChildren;
}

export function Card({ title, hint, code, actions, tall = false, testid, children }: Props) {
  const [open, setOpen] = useState(false);
  return (
    <section class={tall ? "card tall" : "card"} aria-label={title} data-testid={testid}>
      <header class="card-head">
        <div class="card-title">
          <h2>{title}</h2>
          {hint && <p>{hint}</p>}
        </div>
        <div class="card-actions">
          {actions}
          {code && (
            <button type="button" class="button ghost small" aria-expanded={open} aria-label={`Show code: ${title}`} onClick={() => setOpen(!open)}>
              <span class="brackets" aria-hidden="true">{"</>"}</span>
              {open ? "Hide code" : "Code"}
            </button>
          )}
        </div>
      </header>
      {open && code && <CodeBlock code={code} />}
      <div class="card-body">{children}</div>
    </section>
  );
}
